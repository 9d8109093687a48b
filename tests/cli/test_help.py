"""Help pages, tab completion, and the documentation of settings."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from dinocli.app import COMMANDS, load_command
from dinocli.completion import preset_names, setting_values
from dinocore.config import Config
from dinocore.presets import config_from_dict, list_presets, load_config
from dinocore.settings import list_settings, settings_page

ROOT = Path(__file__).parents[2]


def test_commands_are_listed_in_groups(dino):
    listing = dino("-h").out
    groups = ("Train and measure", "Use", "Look inside", "Data", "Weights")
    positions = [listing.index(f"─ {group} ─") for group in groups]
    assert positions == sorted(positions)
    assert all(f"│ {name} " in listing for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(dino, name):
    result = dino(name, "-h")
    assert result.code == 0
    assert f"Example: dino {name} " in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_examples_use_existing_options(name):
    command = load_command(name)
    known = {flag for option in command.params for flag in option.opts}
    example = command.help.partition("Example: ")[2]
    assert {word for word in example.split() if word.startswith("--")} <= known


def test_every_option_of_train_is_in_a_panel(dino):
    text = dino("train", "--help").out
    assert all(f"─ {panel} ─" in text for panel in ("Start from", "Recipe", "Run folder", "Machine", "Settings"))
    assert [option.name for option in load_command("train").params if not option.rich_help_panel] == []


def test_tab_completion_offers_presets_settings_and_their_values():
    assert preset_names("swin-l-4") == ["swin-l-4scale", "swin-l-4scale-36e"]
    assert setting_values("train.lr") == ["train.lr=", "train.lr_schedule=", "train.lr_drop_epochs="]
    assert setting_values("train.lr_schedule=c") == ["train.lr_schedule=cosine"]
    assert setting_values("data.exif=") == ["data.exif=true", "data.exif=false"]
    assert setting_values("train.lr=") == setting_values("no.such=") == []


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["train", "--preset", "swin-l-5"], ["swin-l-5scale", "swin-l-5scale-36e"]),
        (["train", "--preset", "=", "swin-l-5"], ["swin-l-5scale", "swin-l-5scale-36e"]),
        (["train", "--set", "model.queries", "="], ["mixed", "pure", "static"]),
        (["train", "--set", "model.queries", "=", "st"], ["static"]),
        (["train", "--set", "=", "model.queries", "=", "st"], ["static"]),
        (["train", "--set", "train.lr_s"], ["train.lr_schedule="]),
        (["train", "--set", "train.lr", "=", "1", "--set", "data.exif", "=", "t"], ["true"]),
        (["train", "--set", "train.lr", "=", "1", "--set", "data.exi"], ["data.exif="]),
        (["export", "--format", ""], ["onnx", "openvino", "torch-export", "aoti"]),
        (["export", "--precision", "i"], ["int8"]),
        (["export", "--pixels", "f"], ["float32"]),
    ],
)
def test_bash_completion_works_with_words_split_at_equals_signs(dino, monkeypatch, words, completions):
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # else click sees `python -m pytest`
    monkeypatch.setenv("_DINO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["dino", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert dino().out.split() == completions


def test_every_setting_is_listed_with_its_comment_and_official_name():
    settings = {setting.name: setting for setting in list_settings()}
    expected = {
        f"{section}.{key}" for section, values in Config().model_dump().items() for key in values if key != "denoising"
    }
    assert expected <= settings.keys() and "model.denoising.box_noise" in settings
    assert settings["model.num_heads"].official == "nheads"
    assert settings["model.num_points"].official == "enc_n_points, dec_n_points"
    assert settings["data.depth"].comment.startswith("grey")


@pytest.mark.parametrize("name", ["tiny", "notes-r50-4scale"])
def test_a_printed_preset_has_comments_and_loads_to_the_same_config(dino, name):
    text = dino("presets", name).out
    assert config_from_dict(tomllib.loads(text)) == load_config(name)
    assert "# " in text and "official DINO: nheads" in text
    assert name in list_presets()


def test_every_setting_has_a_comment():
    assert [setting.name for setting in list_settings() if not (setting.comment or setting.official)] == []


def test_the_settings_page_is_up_to_date():
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run: python -m dinocore.settings > docs/settings.md"


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("train.learning_rate", "train.lr"),
        ("learning_rate", "train.lr"),
        ("model.lr", "train.lr"),
        ("trian.lr", "train.lr"),
        ("optimizer.lr", "train.lr"),
        ("model.nheads", "model.num_heads"),
        ("model.num_querys", "model.num_queries"),
        ("dn_number", "model.denoising.num_pairs"),
    ],
)
def test_a_misspelt_or_foreign_setting_gets_a_suggestion(dino, setting, suggestion):
    result = dino("presets", "tiny", "--set", f"{setting}=1")
    assert result.code == 2
    assert f"did you mean `{suggestion}`?" in result.err


def test_the_page_for_users_of_other_codebases_names_existing_settings_and_options():
    rows = re.findall(r"^\|.*\|([^|]*)\|$", (ROOT / "docs/coming-from.md").read_text(encoding="utf-8"), re.M)
    names = " ".join(re.findall(r"`([^`]*)`", " ".join(rows)))
    settings = re.findall(r"\b(?:model|loss|train|data|eval)(?:\.[a-z_]+)+\b(?!\.)", names)
    flags = re.findall(r"--[a-z-]+", names)
    known_flags = {flag for name in COMMANDS for option in load_command(name).params for flag in option.opts}
    assert len(settings) > 20 and {*settings} <= {setting.name for setting in list_settings()}
    assert len(flags) > 20 and {*flags} <= known_flags
