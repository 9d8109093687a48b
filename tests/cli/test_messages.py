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
RUN_COMMAND = """
import sys
from dinocli import app
sys.argv = ["dino", *sys.argv[1:]]
try:
    app.main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""


def test_missing_weights_are_reported_before_torch_is_imported(tmp_path):
    command = ("predict", "a.jpg", "--weights", "yolo.pt")
    result = subprocess.run(
        [sys.executable, "-c", RUN_COMMAND, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.stdout.split() == ["4", "False"], result.stderr
    assert "the weights yolo.pt: this file does not exist; `dino weights` lists" in " ".join(result.stderr.split())


def test_a_file_that_is_not_a_weights_file_is_reported(dino, tmp_path, image_folder):
    (tmp_path / "yolo11n.pt").write_bytes(b"not a checkpoint at all")
    result = dino("predict", image_folder / "val2017", "--weights", "yolo11n.pt")
    assert result.code == 4 and "is not a weights file (safetensors or PyTorch)" in result.err


def test_the_error_of_a_missing_image_does_not_mention_annotations(dino):
    from dinocore import load_detector

    result = dino("inspect-attention", "nothere.jpg")
    assert result.code == 3 and "check its name" in result.err and "annotations" not in result.err
    with pytest.raises(DataError, match=r"no image nothere\.jpg; check its name and folder$"):
        load_detector(amp="off")("nothere.jpg")


def test_the_error_of_a_bad_image_suggests_a_command(dino, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    result = dino("predict", "bad.jpg")
    assert result.code == 3 and "check what it is: file bad.jpg" in result.err


def test_the_error_of_a_file_list_given_as_an_image_explains_how_to_use_it(dino):
    Path("images.txt").write_text("a.jpg\nb.jpg\n")
    result = dino("predict", "images.txt")
    assert result.code == 3
    assert "if it is a list of files, one per line: dino predict - < images.txt" in result.err


def test_written_files_are_reported_with_the_same_verb(dino, tmp_path, image_folder):
    written = dino("sample-data", "drawn", "--num-images", "3", "--size", "64x64")
    assert re.search(r"^wrote drawn: \d images? to train on and \d to evaluate on; ", written.err, re.M)
    fixed = dino("check-data", image_folder, "--fix", "fixed.json")
    assert re.search(r"^wrote fixed\.json: \d+ changes? in train, listed in fixed\.json\.log$", fixed.err, re.M)
    assert "most objects per image" in fixed.out


def test_eval_reports_data_without_objects(dino, tmp_path, image_folder, run_folder):
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


def test_eval_reports_data_with_only_crowds(dino, image_folder, tmp_path):
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

    measured = SimpleNamespace(
        device="cpu", threads=1, precision="float32", parameters=1e6, flops=1e9, latency_p50_s=0.1, latency_p90_s=0.1,
        images_per_s=10, peak_memory_mb=1,
    )  # fmt: skip
    _show("tiny", "inference", 1, {"batch": 1, "size": "8x8"}, measured, [])  # pyright: ignore[reportArgumentType]
    out = capsys.readouterr().out
    assert "1 thread," in out and "1 call\n" in out


def test_paths_in_suggested_commands_are_quoted_if_needed(dino):
    result = dino("sample-data", "my cells", "--num-images", "2", "--size", "96x72")
    assert result.code == 0 and "next: dino train --data 'my cells'\n" in result.err
    result = dino("predict", "my cells", "--out", "my boxes.xyz")
    assert result.code == 2 and "; try --out 'my boxes.json'" in result.err
    result = dino("eval", "--report", "my boxes.xyz")
    assert result.code == 2 and "; try --report 'my boxes.html'" in result.err


def test_no_suggested_command_has_an_unquoted_path():
    command = r"(dino (train|eval|predict|convert|info)\b[^\"`]*|try --\w+)"
    unquoted = re.compile(command + r" \{(?!typed)[\w.]*(path|folder|weights|out)\b")
    sources = [path for name in ("dinocore", "dinocli") for path in (ROOT / name).rglob("*.py")]
    matches = [f"{path.name}: {match[0]}" for path in sources for match in unquoted.finditer(path.read_text())]
    assert len(sources) > 150 and matches == []
