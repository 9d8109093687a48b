"""Every command in the README runs as shown; training runs are shortened by extra settings."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from dinocore import build_model, load_config
from dinocore.weights.convert.to_official import official_state

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
TABLE = re.findall(r"^\| `(dino [^`]+)` \|", README, re.M)
COMMANDS = sorted({part.strip() for part in re.split(r"&&|\n", BLOCKS) if part.strip().startswith("dino ")} | {*TABLE})
SHORT = ["--epochs", "1", "--set", "data.train_scales=[64]", "--set", "data.crop_chance=0.0", "--set", "data.workers=0"]


def test_the_readme_shows_every_command():
    names = {command.split()[1] for command in COMMANDS}
    assert names == {
        "train",
        "eval",
        "predict",
        "inspect-mask",
        "inspect-proposals",
        "inspect-matching",
        "inspect-attention",
        "presets",
        "convert",
        "info",
        "weights",
        "sample-data",
        "check-data",
        "inspect-data",
        "convert-data",
        "benchmark",
        "serve",
        "export",
        "push",
    }


TESTED_ELSEWHERE = ("dino serve", "dino export", "dino push")  # tested in test_serve.py, tests/export and test_push.py


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(TESTED_ELSEWHERE)])
def test_a_command_of_the_readme_runs(command, dino, image_folder, settings, tmp_path, monkeypatch):
    if command.startswith(("dino eval", "dino inspect-matching")):
        monkeypatch.setattr("dinocore.data.dataset.sample_folder", lambda num_images: image_folder)
    for folder in ("my-data", "coco"):
        shutil.copytree(image_folder, tmp_path / folder)
    shutil.copy(next((image_folder / "val2017").iterdir()), tmp_path / "img.jpg")
    if "checkpoint0011_4scale.pth" in command:
        config = load_config("r50-4scale").model
        state = official_state(build_model(config).state_dict(), config)
        torch.save({"model": state}, tmp_path / "checkpoint0011_4scale.pth")
    if "drawn/val2017" in command:
        shutil.copytree(image_folder, tmp_path / "drawn")
    text = command.replace("DIR", "my-data" if "train" in command else "out").replace("[NAME]", "")
    arguments = shlex.split(text)[1:]
    if arguments == ["sample-data", "out"]:
        arguments += ["--num-images", "8"]  # instead of 200
    if arguments[0] == "train":
        arguments += SHORT + (settings if "r50-4scale" in command else [])
    result = dino(*arguments)
    assert result.code == 0, result.err
    assert result.out or list(tmp_path.iterdir())


def test_the_python_example_of_the_readme_runs(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((image_folder / "val2017").iterdir()), tmp_path / "img.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(code, names)
    assert names["detections"].boxes_xyxy.shape == (len(names["detections"].scores), 4)


def test_every_file_linked_in_the_readme_exists():
    root = Path(__file__).parents[2]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and [link for link in links if not (root / link).exists()] == []
