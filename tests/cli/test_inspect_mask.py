"""`dino inspect-mask`: what it prints to stdout and stderr, the files it writes, and its errors."""

import io
import json
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from PIL import Image
from rich.console import Console

from dinocli import app, console


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def inspect_mask(monkeypatch, capsys) -> Callable[..., Result]:
    """Runs `dino inspect-mask` in this process, with the exit codes and error messages of the real command."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["dino", "inspect-mask", *map(str, arguments)])
        try:
            app.main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        return Result(code, *capsys.readouterr())

    return run


def test_the_notes_example(inspect_mask):
    result = inspect_mask("--dn-groups", 5, "--num-gt", 3)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[2] == "group 0 + " + "· " * 3 * 2 + "██" * 24 + "│········"
    assert "denoising queries  30 = 5 x (3 positive + 3 negative)" in lines
    assert "matching queries   900" in lines
    assert "blocked            27,720 of 930 x 930 pairs: 3.20%" in lines
    assert max(map(len, lines)) <= 80


def test_the_default_is_the_published_recipe(inspect_mask):
    result = inspect_mask()
    assert result.code == 0
    assert "denoising queries  198 = 33 x (3 positive + 3 negative)" in result.out


def test_json_is_the_only_output_on_stdout(inspect_mask):
    result = inspect_mask("--dn-groups", 2, "--num-gt", 3, "--num-gt", 1, "--json")
    output = json.loads(result.out)
    assert result.err == ""
    assert list(output)[:8] == ["preset", "num_groups", "num_denoising", "num_positive", "num_negative",
                                "num_matching", "num_queries", "slots_per_group"]  # fmt: skip
    assert output["preset"] == "r50-4scale"
    assert [image["objects"] for image in output["images"]] == [3, 1]
    assert output["mask"][0] == {"rows": [0, 6], "blocked": [[6, 12]]}
    assert output["mask"][-1] == {"rows": [12, 912], "blocked": [[0, 12]]}


def test_presets_and_settings_are_used(inspect_mask):
    result = inspect_mask("--preset", "tiny", "--set", "model.denoising.num_groups=4", "--num-gt", 2, "--json")
    output = json.loads(result.out)
    assert (output["num_matching"], output["num_denoising"]) == (150, 4 * 2 * 2)


def test_a_flag_overrides_a_setting(inspect_mask):
    result = inspect_mask("--set", "model.denoising.num_groups=4", "--dn-groups", 2, "--json")
    assert json.loads(result.out)["num_groups"] == 2


def test_out_writes_an_image_and_creates_its_folder(inspect_mask, tmp_path):
    target = tmp_path / "new" / "mask.png"
    result = inspect_mask("--dn-groups", 5, "--out", target)
    assert result.code == 0 and "wrote" in result.err and "group 0" in result.out
    with Image.open(target) as image:
        assert image.format == "PNG" and min(image.size) > 1000
    assert [path.name for path in target.parent.iterdir()] == ["mask.png"]


def test_json_is_printed_if_out_is_given(inspect_mask, tmp_path):
    result = inspect_mask("--dn-groups", 2, "--json", "--out", tmp_path / "MASK.PNG")
    assert json.loads(result.out)["num_groups"] == 2 and (tmp_path / "MASK.PNG").is_file()


@pytest.mark.parametrize("arguments", [("--dn-groups", 0), ("--num-gt", 0), ("--set", "model.denoising.kind=none")])
def test_a_mask_that_blocks_nothing_is_reported(inspect_mask, arguments):
    result = inspect_mask(*arguments)
    assert result.code == 0 and "nothing is blocked" in result.err
    assert "0 of 900 x 900 pairs: 0.00%" in result.out


def test_objects_beyond_the_limit_of_denoising_queries_are_reported(inspect_mask):
    result = inspect_mask("--num-gt", 150, "--json")
    assert "image 0 has 150 objects and 100 of them take part" in result.err and "num_pairs" in result.err
    assert json.loads(result.out)["images"][0]["taking_part"] == 100


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--dn-groups", -1), "--dn-groups"),
        (("--num-gt", -3), "--num-gt"),
        (("--num-gt", "many"), "--num-gt"),
        (("--dn-groups", 10**9), "2,000,000,000 denoising and 900 matching queries need more than 1,000,000 GB"),
        (("--num-gt", 10**9), "1,000,000,000 objects, 200 denoising and 900 matching queries need 48.0 GB"),
        (("--dn-groups", 1500), "less than or equal to 1000"),
        (("--preset", "r50-3scale"), "no preset or file `r50-3scale`"),
        (("--set", "model.denoising.num_group=3"), "did you mean `model.denoising.num_groups`"),
    ],
)
def test_invalid_numbers_and_names_are_usage_errors(inspect_mask, arguments, reason):
    result = inspect_mask(*arguments, *(() if "--num-gt" in arguments else ("--num-gt", 3)))
    assert result.code == 2 and result.out == ""
    assert reason in result.err.replace("\n", "")
    assert "Traceback" not in result.err


def test_an_invalid_out_is_refused_before_drawing(inspect_mask, tmp_path):
    folder = inspect_mask("--out", tmp_path)
    assert folder.code == 2 and "is a folder" in folder.err and folder.out == ""
    suffix = inspect_mask("--out", tmp_path / "mask.jpg")
    assert suffix.code == 2 and "mask.png" in suffix.err and suffix.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("LANG", "C"), ("LC_ALL", "POSIX")])
def test_ascii_is_used_in_the_c_and_posix_locales(inspect_mask, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    result = inspect_mask("--dn-groups", 2, "--num-gt", 3, "--num-gt", 1)
    assert result.out.isascii()
    assert result.out.splitlines()[2] == "group 0 + . . . . . . ############|........"


def test_ascii_is_used_if_the_encoding_of_stdout_is_ascii(inspect_mask, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert inspect_mask("--dn-groups", 2).code == 0
    stream.seek(0)
    assert "group 0 + . . . . . . ####" in stream.read()


@pytest.mark.parametrize("terminal", [True, False])
def test_colours_are_used_only_in_a_terminal(inspect_mask, monkeypatch, terminal):
    terminal_console = Console(highlight=False, soft_wrap=True, force_terminal=terminal, color_system="auto", width=80,
                               _environ={"TERM": "xterm-256color"})  # fmt: skip
    monkeypatch.setattr(console, "stdout", terminal_console)
    assert ("\x1b[" in inspect_mask("--dn-groups", 2).out) == terminal


def test_no_color_is_honoured_on_a_terminal(inspect_mask, monkeypatch):
    terminal_console = Console(highlight=False, soft_wrap=True, force_terminal=True, width=80,
                               _environ={"TERM": "xterm-256color", "NO_COLOR": "1"})  # fmt: skip
    monkeypatch.setattr(console, "stdout", terminal_console)
    assert "\x1b[" not in inspect_mask("--dn-groups", 2).out


def test_query_explains_one_query_instead_of_drawing_the_mask(inspect_mask):
    result = inspect_mask("--dn-groups", 2, "--num-gt", 3, "--num-gt", 1, "--query", 4)
    assert result.out.splitlines()[0] == "query 4: a negative of denoising group 0"
    assert "image 1: a padding slot" in result.out and "█" not in result.out
    output = json.loads(inspect_mask("--dn-groups", 2, "--query", 4, "--json").out)
    assert output["query"]["kind"] == "negative" and output["query"]["images"][0]["object"] == 1
    invalid = inspect_mask("--dn-groups", 2, "--query", 912)
    assert invalid.code == 2 and "queries 0 to 911" in invalid.err


@pytest.mark.parametrize(("name", "start"), [("mask.svg", "<svg"), ("mask.html", "<!doctype html>")])
def test_the_suffix_of_out_sets_its_format(inspect_mask, tmp_path, name, start):
    assert inspect_mask("--dn-groups", 2, "--out", tmp_path / name).code == 0
    assert (tmp_path / name).read_text().startswith(start)


def test_the_mask_of_real_images(inspect_mask, make_coco, tmp_path):
    """0007.png has a disc and a ring, 0009.png one ring."""
    make_coco()
    arguments = ["--preset", "tiny", "--data", tmp_path, "--dn-groups", 2, "--query", 1]
    result = inspect_mask(*arguments, "--images", "0007.png", "--images", "0009.png")
    assert "image 0 (0007.png): a noisy copy of object 1 (ring)" in result.out
    assert "image 1 (0009.png): a padding slot" in result.out
    batch = json.loads(inspect_mask(*arguments[:-2], "--json").out)["images"]
    assert sorted(image["file"] for image in batch) == ["0007.png", "0009.png"]
    unknown = inspect_mask(*arguments, "--images", "0008.png")
    assert unknown.code == 3 and "they have 000" in unknown.err


@pytest.mark.parametrize("arguments", [("--images", "a.jpg"), ("--data", ".", "--num-gt", 3)])
def test_images_requires_data_and_num_gt_excludes_it(inspect_mask, arguments):
    result = inspect_mask(*arguments)
    assert result.code == 2 and "--data" in result.err
