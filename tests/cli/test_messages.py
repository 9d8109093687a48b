"""Messages: suggested commands, consistent wording for written files, and errors about inputs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dinocore.errors import DataError

ROOT = Path(__file__).parents[2]
MISSING = """
import sys
from dinocli import app
sys.argv = ["dino", *sys.argv[1:]]
try:
    app.main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""


def test_weights_that_are_missing_are_told_before_torch_is_imported(tmp_path):
    command = ("predict", "a.jpg", "--weights", "yolo.pt")
    done = subprocess.run(
        [sys.executable, "-c", MISSING, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["4", "False"], done.stderr
    assert "the weights yolo.pt: this file does not exist; `dino weights` lists" in " ".join(done.stderr.split())


def test_a_file_that_is_not_a_weights_file_is_named_as_such(dino, tmp_path, image_folder):
    (tmp_path / "yolo11n.pt").write_bytes(b"not a checkpoint at all")
    result = dino("predict", image_folder / "val2017", "--weights", "yolo11n.pt")
    assert result.code == 4 and "is not a weights file (safetensors or PyTorch)" in result.err


def test_an_image_that_is_missing_has_nothing_to_do_with_annotations(dino):
    from dinocore import load_detector

    result = dino("inspect-attention", "nothere.jpg")
    assert result.code == 3 and "check its name" in result.err and "annotations" not in result.err
    with pytest.raises(DataError, match=r"no image nothere\.jpg; check its name and folder$"):
        load_detector(amp="off")("nothere.jpg")


def test_a_file_that_is_no_image_comes_with_what_to_type(dino, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    result = dino("predict", "bad.jpg")
    assert result.code == 3 and "check what it is: file bad.jpg" in result.err


def test_a_list_of_files_in_the_place_of_an_image_is_explained(dino):
    Path("images.txt").write_text("a.jpg\nb.jpg\n")
    result = dino("predict", "images.txt")
    assert result.code == 3
    assert "if it is a list of files, one per line: dino predict - < images.txt" in result.err


def test_what_was_written_is_reported_with_one_verb(dino, tmp_path, image_folder):
    made = dino("sample-data", "drawn", "--num-images", "3", "--size", "64x64")
    assert re.search(r"^wrote drawn: \d images? to train on and \d to evaluate on; ", made.err, re.M)
    fixed = dino("check-data", image_folder, "--fix", "fixed.json")
    assert re.search(r"^wrote fixed\.json: \d+ changes? in train, listed in fixed\.json\.log$", fixed.err, re.M)
    assert "most objects per image" in fixed.out


def test_data_without_objects_is_reported_to_have_nothing_to_judge_by(dino, tmp_path, image_folder, run_folder):
    source = image_folder / "annotations" / "instances_val2017.json"
    empty = json.loads(source.read_text()) | {"annotations": []}
    for name in ("train2017", "val2017"):
        (tmp_path / "blank" / name).mkdir(parents=True)
        for image in (image_folder / name).iterdir():
            (tmp_path / "blank" / name / image.name).write_bytes(image.read_bytes())
    (tmp_path / "blank" / "annotations").mkdir()
    train = source.with_name("instances_train2017.json")
    (tmp_path / "blank" / "annotations" / train.name).write_bytes(train.read_bytes())
    (tmp_path / "blank" / "annotations" / source.name).write_text(json.dumps(empty))
    result = dino("eval", "--weights", run_folder, "--data", "blank", "--bootstrap", "0", "--out", "found.json")
    assert result.code == 0 and "no objects to evaluate on" in result.err
    assert re.search(r"^wrote found\.json: \d+ detections?, in COCO's result format$", result.err, re.M)


def test_data_with_crowds_alone_is_reported_to_have_nothing_to_judge_by(dino, image_folder, tmp_path):
    (tmp_path / "crowds").mkdir()
    content = json.loads((image_folder / "annotations" / "instances_val2017.json").read_text())
    content["annotations"] = [row | {"iscrowd": 1} for row in content["annotations"]]
    (tmp_path / "crowds" / "annotations.json").write_text(json.dumps(content))
    for image in (image_folder / "val2017").iterdir():
        (tmp_path / "crowds" / image.name).write_bytes(image.read_bytes())
    (tmp_path / "found.json").write_text("[]")
    result = dino("eval", "--results", "found.json", "--data", "crowds", "--split", "train", "--bootstrap", "0")
    assert result.code == 0 and "no objects to evaluate on" in result.err


def test_one_thread_and_one_call_are_singular(capsys):
    from dinocli.commands.benchmark import _show

    found = SimpleNamespace(
        device="cpu", threads=1, precision="float32", parameters=1e6, flops=1e9, latency_p50_s=0.1, latency_p90_s=0.1,
        images_per_s=10, peak_memory_mb=1,
    )  # fmt: skip
    _show("tiny", "inference", 1, {"batch": 1, "size": "8x8"}, found, [])  # pyright: ignore[reportArgumentType]
    out = capsys.readouterr().out
    assert "1 thread," in out and "1 call\n" in out


def test_a_path_in_a_command_to_type_is_in_quotes_where_a_shell_needs_them(dino):
    result = dino("sample-data", "my cells", "--num-images", "2", "--size", "96x72")
    assert result.code == 0 and "next: dino train --data 'my cells'\n" in result.err
    result = dino("predict", "my cells", "--out", "my boxes.xyz")
    assert result.code == 2 and "; try --out 'my boxes.json'" in result.err
    result = dino("eval", "--report", "my boxes.xyz")
    assert result.code == 2 and "; try --report 'my boxes.html'" in result.err


def test_no_command_to_type_has_a_bare_path():
    command = r"(dino (train|eval|predict|convert|info)\b[^\"`]*|try --\w+)"
    bare = re.compile(command + r" \{(?!typed)[\w.]*(path|folder|weights|out)\b")
    sources = [path for name in ("dinocore", "dinocli") for path in (ROOT / name).rglob("*.py")]
    found = [f"{path.name}: {hit[0]}" for path in sources for hit in bare.finditer(path.read_text())]
    assert len(sources) > 150 and found == []
