"""Configs from presets, files and overrides, and their TOML."""

import pytest

from dinocore.config import Config
from dinocore.errors import ConfigError
from dinocore.presets import config_to_toml, list_presets, load_config, preset_title


@pytest.fixture
def write_toml(tmp_path):
    def write(content: str | bytes, name="mine.toml"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refusal(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **kwargs)
    return str(caught.value)


def test_the_documented_presets_exist():
    documented = {"r50-4scale", "r50-5scale", "r50-4scale-24e", "r50-5scale-36e", "tiny", "notes-r50-4scale"}
    assert documented <= set(list_presets())


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_has_a_title_and_can_be_loaded_from_its_toml(name, tmp_path):
    config = load_config(name)
    assert preset_title(name).startswith(("DINO", "A "))
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(path) == config
    assert load_config("r50-5scale-36e", file=path) == config, "a file with all settings overrides the whole preset"


def test_r50_4scale_equals_the_defaults_and_other_presets_differ():
    assert load_config("r50-4scale") == load_config() == Config()
    assert all(load_config(name) != Config() for name in list_presets() if name != "r50-4scale")


def test_the_notes_preset_has_the_settings_of_the_notes():
    config = load_config("notes-r50-4scale")
    assert (config.model.first_stage, config.model.heads, config.model.denoising.num_groups) == (
        "foreground", "per-layer", 5)  # fmt: skip
    assert config.loss.proposal_labels == "foreground"


def test_overrides_take_precedence_over_the_file_and_the_file_over_the_preset(write_toml):
    file = write_toml("[train]\nepochs = 3\nbatch_size = 5\n")
    config = load_config("tiny", ["train.epochs=7", "train.epochs=8"], file)
    assert (config.train.epochs, config.train.batch_size, config.train.lr) == (8, 5, load_config("tiny").train.lr)


def test_overrides_support_nested_settings_lists_and_strings():
    config = load_config(overrides=["model.denoising.box_noise=0.4", "data.crop_size=[10, 20]", " train.epochs = 3 ",
                                    "data.path=/a folder/with = sign", "model.queries=pure"])  # fmt: skip
    assert config.model.denoising.box_noise == 0.4 and config.model.denoising.label_noise == 0.5
    assert config.data.crop_size == (10, 20) and config.train.epochs == 3
    assert config.data.path == "/a folder/with = sign" and config.model.queries == "pure"


def test_requesting_backbone_weights_drops_the_presets_weights_but_not_explicit_ones():
    assert load_config("tiny").train.weights == "bundled"
    assert load_config("tiny", ["model.backbone_weights=none"]).train.weights == ""
    config = load_config("tiny", ["model.backbone_weights=none", "train.weights=a.safetensors"])
    assert config.train.weights == "a.safetensors"


@pytest.mark.parametrize("text", ["epochs", "=3", "train..epochs=3", ".=3", ""])
def test_an_invalid_override_is_refused_with_an_example(text):
    error_message = refusal(overrides=[text])
    assert error_message.startswith(f"`{text}` is not an override") and "train.epochs=24" in error_message


def test_the_error_for_an_unknown_preset_names_similar_ones():
    assert refusal("r50-4scal") == "no preset or file `r50-4scal`; did you mean `r50-4scale`?"
    assert refusal("R50-4SCALE") == "no preset or file `R50-4SCALE`; did you mean `r50-4scale`?"
    listed = "presets include r50-4scale, swin-l-4scale and tiny; `dino presets` lists all"
    assert refusal("eva") == f"no preset or file `eva`; {listed}"
    assert "no preset or file `mine.toml`" in refusal("mine.toml")


def test_a_byte_order_mark_is_accepted(write_toml):
    assert load_config(write_toml(b"\xef\xbb\xbf[train]\nepochs = 3\n")).train.epochs == 3


@pytest.mark.parametrize(
    ("content", "error_message"),
    [
        ("[train\nepochs = 3", "line 1"),
        ("[train]\nepochs = 3\nepochs = 4", "Cannot overwrite a value"),
        ("[train]\nepochs = 3".encode("utf-16"), "save it as UTF-8"),
        ("[train]\npath = 'caf\xe9'".encode("latin-1"), "at byte 19; save it as UTF-8"),
    ],
)
def test_a_file_that_is_not_toml_is_reported_with_the_position(write_toml, content, error_message):
    path = write_toml(content)
    for message in (refusal(path), refusal("tiny", file=path)):
        assert message.startswith(str(path)) and error_message in message


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    missing = tmp_path / "none.toml"
    assert refusal(file=missing) == f"no config file `{missing}`"
    assert refusal(file=tmp_path).startswith(str(tmp_path))


@pytest.mark.parametrize("content", ["model = 3", "train = [1]", "[model]\ndenoising = 'none'"])
def test_a_value_in_place_of_a_section_is_refused(write_toml, content):
    assert "it must be a section" in refusal("tiny", file=write_toml(content))
