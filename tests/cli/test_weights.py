"""`dino weights`, and the names that every command accepts as weights."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from dinocli import progress
from dinocli.commands import weights as weights_command
from dinocore.weights.shipped import BUNDLED


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DINO_OFFLINE", "1")


@pytest.fixture
def image_file(image_folder):
    return next((image_folder / "val2017").iterdir())


def test_the_list_fits_eighty_columns(dino, monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(weights_command, "stdout", Console(file=output, width=80))
    assert dino("weights").code == 0
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert any(
        line.split() == ["mmdet/r50-4scale-improved-12e", "ResNet-50,", "better", "hyper", "50.1"] for line in lines
    )
    assert any(line.split()[0] == "official/r50-4scale-24e" and line.endswith("by hand") for line in lines if line)


def test_the_list_as_json(dino):
    entries = {entry["name"]: entry for entry in json.loads(dino("weights", "--json").out)}
    assert len(entries) == 44
    direct = entries["mmdet/r50-4scale-12e"]
    assert direct["AP"] == 49.0 and direct["sha256_begins_with"] == "55b2bba2" and direct["cached"] is None
    assert direct["address"].endswith("-55b2bba2.pth") and direct["by_hand_from"] is None
    manual = entries["official/r50-4scale-24e"]
    assert manual["address"] is None and manual["then"].startswith(
        "dino convert checkpoint0023_4scale.pth --preset r50-4scale-24e"
    )
    hub = entries["official/r50-4scale-12e"]
    assert hub["address"] == "hf:LibreYOLO/LibreDINODETRr50" and hub["original_sha256"].startswith("0bcd6b0c33d6")


@pytest.mark.filterwarnings("always::FutureWarning")
def test_an_old_name_still_works_and_the_new_one_is_reported(dino):
    for scales in ("4scale", "5scale"):
        message = f"official/r50-{scales} are now called official/r50-{scales}-12e; the old name still works"
        result = dino("weights", f"official/r50-{scales}", "--json")
        assert json.loads(result.out)["name"] == f"official/r50-{scales}-12e" and result.code == 0
        assert message in " ".join(result.err.split())
    assert "now called" not in dino("weights", "official/r50-4scale-12e").err


def test_one_entry_of_the_list_is_shown_in_detail(dino):
    text = dino("weights", "detrex/r50-4scale-24e").out
    assert "50.6" in text and "https://github.com/IDEA-Research/detrex-storage/" in text
    unknown = dino("weights", "detrex/r50-4scale-25e")
    assert unknown.code == 2 and "did you mean detrex/r50-4scale-24e?" in unknown.err


@pytest.mark.parametrize("command", [
    ["predict", "IMAGE", "--json"],
    ["eval", "--data", "FOLDER", "--json"],
    ["inspect-proposals", "IMAGE", "--json"],
    ["inspect-mask", "--json"],
    ["benchmark", "--size", "32x32", "--repeats", "1", "--json"],
])  # fmt: skip
def test_every_command_accepts_bundled_as_weights(command, dino, image_file, image_folder):
    replacements = {"IMAGE": str(image_file), "FOLDER": str(image_folder)}
    result = dino(*[replacements.get(part, part) for part in command], "--weights", "bundled")
    assert result.code == 0, result.err
    assert json.loads(result.out) and f"weights: {BUNDLED}" in result.err


def test_info_and_convert_accept_bundled_and_cells(dino):
    cells = {1: "RBC", 2: "WBC", 3: "Platelets"}
    info = {name: json.loads(dino("info", name, "--json").out) for name in ("bundled", "cells")}
    classes = {name: {c["id"]: c["name"] for c in content["classes"]} for name, content in info.items()}
    assert {content["preset"] for content in info.values()} == {"tiny"}
    assert (
        classes["cells"] == cells
        and cells.items() <= classes["bundled"].items()
        and "person" in classes["bundled"].values()
    )
    refused = dino("convert", "bundled", "--to", "official", "--out", "x.pth")
    assert refused.code == 4 and "official DINO cannot represent this model" in refused.err


@pytest.mark.parametrize("command", [
    ["predict", "IMAGE", "--weights"], ["eval", "--weights"], ["train", "--data", "FOLDER", "--weights"],
    ["inspect-proposals", "IMAGE", "--weights"], ["benchmark", "--weights"],
    ["convert", "--out", "x.safetensors"], ["info"],
])  # fmt: skip
def test_published_weights_not_downloaded_give_a_one_line_error(command, dino, image_file, image_folder, tmp_path):
    replacements = {"IMAGE": str(image_file), "FOLDER": str(image_folder)}
    result = dino(*[replacements.get(part, part) for part in command], "detrex/r50-4scale-24e")
    assert result.code == 5 and result.err.count("\n") == 1 and "detrex/r50-4scale-24e" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_progress_bar_is_shown_in_a_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "stderr", Console(file=terminal, force_terminal=True, width=80))
    with progress.watching() as watch:
        watch.progress(5_000_000, 10_000_000)
    assert "downloading" in terminal.getvalue() and "5.0/10.0 MB" in terminal.getvalue()
    plain = io.StringIO()
    monkeypatch.setattr(progress, "stderr", Console(file=plain, force_terminal=False, width=80))
    with progress.watching() as watch:
        watch.progress(5, 10)
    assert plain.getvalue() == ""


def test_listing_weights_does_not_import_torch(tmp_path):
    script = (
        "import sys; sys.argv = ['dino', 'weights', '--json']\nfrom dinocli import app\ntry:\n    app.main()\n"
        "except SystemExit:\n    pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.stderr.strip() == "False" and len(json.loads(result.stdout)) == 44
