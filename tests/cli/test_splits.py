"""Commands with --split accept all three splits, and evaluations report the number of images."""

import json
import shutil
from pathlib import Path

import pytest

COMMANDS = {
    "eval": lambda output: output["images"],
    "inspect-matching": lambda output: 3 if output["file"].endswith("t.jpg") else 0,
    "inspect-proposals": lambda output: len(output["pictures"] if "pictures" in output else output["images"]),
}


@pytest.fixture
def three_splits(image_folder, tmp_path) -> Path:
    """Synthetic data with a test split of three images, copied from train and named *t.jpg."""
    folder = Path(shutil.copytree(image_folder, tmp_path / "three"))
    document = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    (folder / "test2017").mkdir()
    document["images"] = document["images"][:3]
    for image in document["images"]:
        name = image["file_name"].replace(".jpg", "t.jpg")
        shutil.copy(folder / "train2017" / image["file_name"], folder / "test2017" / name)
        image["file_name"] = name
    known = {image["id"] for image in document["images"]}
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] in known]
    (folder / "annotations" / "instances_test2017.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_with_split_accepts_the_test_split(dino, run_folder, three_splits, command):
    result = dino(command, "--weights", run_folder, "--data", three_splits, "--split", "test", "--json")
    assert result.code == 0 and COMMANDS[command](json.loads(result.out)) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_split_is_refused_with_the_available_ones(dino, run_folder, image_folder, command):
    unknown = dino(command, "--weights", run_folder, "--data", image_folder, "--split", "tset")
    assert unknown.code == 2 and "no split `tset`; choose train, val or test" in unknown.err.replace("\n", " ")
    missing = dino(command, "--weights", run_folder, "--data", image_folder, "--split", "test")
    assert missing.code == 3 and "has no test split" in missing.err.replace("\n", " ") and "--split val" in missing.err


def test_a_test_split_used_for_validation_is_still_the_test_split(dino, run_folder, three_splits):
    (three_splits / "annotations" / "instances_val2017.json").unlink()
    outputs = [
        json.loads(dino("eval", "--weights", run_folder, "--data", three_splits, "--split", name, "--json").out)
        for name in ("val", "test")
    ]
    assert [output["images"] for output in outputs] == [3, 3]


def test_eval_reports_the_numbers_of_evaluated_and_unreadable_images(dino, run_folder, three_splits):
    sorted((three_splits / "test2017").iterdir())[0].write_bytes(b"broken")
    arguments = ("eval", "--weights", run_folder, "--data", three_splits, "--split", "test")
    text, output = dino(*arguments, "--report", "report.html"), dino(*arguments, "--json")
    message = "3 images evaluated, 1 of them unreadable, so their objects count as missed"
    assert text.code == 7 and message in " ".join(text.out.split())
    assert "unreadable" in Path("report.html").read_text()
    metrics = json.loads(output.out)
    assert (metrics["images"], metrics["unreadable"], len(metrics["failed"])) == (3, 1, 1)


def test_training_logs_the_number_of_evaluated_images(run_folder):
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["images"], row["unreadable"]) for row in rows if "AP" in row] == [(2, 0)]
    assert "(2 images evaluated)" in (run_folder / "log.txt").read_text()


@pytest.mark.parametrize("command", ["eval", "train"])
def test_a_missing_validation_image_is_refused(dino, run_folder, three_splits, settings, command):
    sorted((three_splits / "val2017").iterdir())[0].unlink()
    options = ("--weights", run_folder) if command == "eval" else ("--output-dir", "new", *settings)
    result = dino(command, "--data", three_splits, *options)
    assert result.code == 3 and "DATA-IMAGE-MISSING" in result.err and "1 of 2 images" in result.err
