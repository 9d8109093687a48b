"""Every command checks its output path before any work, with the same messages."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dinocore.errors import ConfigError
from dinocore.system.files import check_file

FILES = {  # a command up to the option for an output file: an accepted suffix
    ("benchmark", "--profile"): ".json",
    ("check-data", "nowhere", "--html"): ".html",
    ("check-data", "nowhere", "--fix"): ".json",
    ("eval", "--report"): ".html",
    ("eval", "--out"): ".json",
    ("inspect-proposals", "--out"): ".png",
    ("inspect-proposals", "--report"): ".html",
    ("inspect-matching", "--out"): ".png",
    ("inspect-matching", "--report"): ".html",
    ("inspect-attention", "--out"): ".png",
    ("inspect-attention", "--report"): ".html",
    ("inspect-mask", "--out"): ".png",
    ("inspect-data", "--out"): ".png",
    ("convert", "nowhere.pth", "--out"): ".safetensors",
    ("export", "bundled", "--out"): ".onnx",
}


@pytest.mark.parametrize("command", FILES, ids=" ".join)
def test_an_output_file_that_is_a_folder_or_has_a_wrong_suffix_is_refused(command, dino, tmp_path):
    option = command[-1]
    folder = tmp_path / f"made{FILES[command]}"
    folder.mkdir()
    result = dino(*command, folder)
    message = " ".join(result.err.split())
    assert result.code == 2 and f"{option} " in message and "is a folder; give a file, such as" in message
    result = dino(*command, tmp_path / "f.xyz")
    message = "".join(result.err.split())
    assert result.code == 2 and f"try{option}{tmp_path}/f{FILES[command]}" in message
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "IMAGE", "--format", "yolo", "--out"),
        ("predict", "IMAGE", "--format", "labelme", "--out"),
        ("predict", "IMAGE", "--save-images"),
        ("sample-data",),
        ("convert-data", "nowhere", "--to", "yolo"),
    ],
    ids=" ".join,
)
def test_an_output_folder_named_like_a_file_is_refused(command, dino, image_folder, tmp_path):
    image_file = next((image_folder / "val2017").iterdir())
    arguments = [image_file if word == "IMAGE" else word for word in command]
    result = dino(*arguments, tmp_path / "x.txt")
    assert result.code == 2 and "must be a folder of files" in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


def test_label_files_can_be_written_into_the_current_folder(dino, image_folder, tmp_path):
    shutil.copy(next((image_folder / "val2017").iterdir()), tmp_path / "a.jpg")
    result = dino("predict", "a.jpg", "--format", "yolo", "--out", ".")
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.txt", "classes.txt"]


def test_a_suggested_file_name_has_one_suffix(dino, image_folder, tmp_path):
    image_file = next((image_folder / "val2017").iterdir())
    assert "try --out b.csv," in dino("predict", image_file, "--format", "csv", "--out", "b.csv.gz").err
    with pytest.raises(ConfigError, match=r"try --report r\.html$"):
        check_file("--report", type(tmp_path)("r.html.gz"), ".html")


@pytest.mark.parametrize(("kind", "label"), [("yolo", "IMAGE.txt"), ("yolo", "classes.txt"), ("labelme", "IMAGE.json")])
def test_labels_beside_the_images_are_not_overwritten(dino, image_folder, tmp_path, kind, label):
    image_file = shutil.copy(next((image_folder / "val2017").iterdir()), tmp_path)
    label_file = tmp_path / label.replace("IMAGE", Path(image_file).stem)
    label_file.write_text("mine")
    result = dino("predict", image_file, "--format", kind, "--out", ".")
    assert result.code == 2 and f"would overwrite {label_file.name}" in " ".join(result.err.split())
    assert label_file.read_text() == "mine"
    label_file.unlink()
    assert dino("predict", image_file, "--format", kind, "--out", ".").code == 0 and label_file.is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["presets", "tiny"], ["presets", "--json"], ["--help"]])
def test_a_full_stdout_gives_one_error_message_and_exits_with_5(arguments):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "dinocli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert result.returncode == 5
    assert result.stderr == (
        "error[ENVIRONMENT]: stdout cannot be written: No space left on device; redirect it to a disk with free space\n"
    )


def test_label_files_not_named_like_their_image_are_reported(dino, run_folder, tmp_path):
    for suffix in ("png", "bmp"):
        Image.new("RGB", (64, 48)).save(tmp_path / f"x.{suffix}")
    command = ("predict", tmp_path, "--weights", run_folder, "--threshold", "0")
    result = dino(*command, "--format", "yolo", "--out", "labels")
    message = "using a different name for 1 image: "
    assert message in result.err and result.err.split(message)[1].splitlines()[0].endswith("x.png as x-2")
    assert sorted(path.name for path in Path("labels").iterdir()) == ["classes.txt", "x-2.txt", "x.txt"]
    assert message not in dino(*command, "--out", "boxes.json").err  # each JSON entry has its image's path
