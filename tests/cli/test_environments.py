"""Commands with unusual devices, folders, clocks and images."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from dinocore.data.images import SUFFIXES

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "dinocli"]


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def image_file(image_folder) -> Path:
    return sorted((image_folder / "val2017").iterdir())[0]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda", "cuda:9", "gpu"])
@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="needs a CPU-only machine")
def test_an_unavailable_device_is_refused_with_the_available_ones(dino, image_folder, image_file, tmp_path, device):
    for command in (
        ["predict", image_file],
        ["eval", "--data", image_folder],
        ["train", "--data", image_folder],
        ["benchmark"],
    ):
        result = dino(*command, "--device", device)
        assert result.code == 5 and result.out == "", result
        assert f"no device `{device}` here; available: cpu" in result.err
    assert file_names(tmp_path) == []


@pytest.mark.slow
def test_an_unwritable_output_path_is_refused_before_the_weights_are_read(
    dino, image_folder, image_file, tmp_path, monkeypatch
):
    """Not even root can write to /proc. The weights are damaged: an error about them would mean they were read."""
    (tmp_path / "none.safetensors").write_text("damaged")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    train = ["train", "--data", image_folder, "--weights", "none.safetensors", "--output-dir"]
    predict = ["predict", image_file, "--weights", "none.safetensors"]
    cases = [
        (5, train, "/proc/x/run"), (2, train, "file"), (2, train, "full"), (5, train, "file/run"),
        (5, [*predict, "--out"], "/proc/x/a.json"), (2, [*predict, "--out"], "full"),
        (5, [*predict, "--save-images"], "/proc/x/drawn"), (2, [*predict, "--save-images"], "file"),
    ]  # fmt: skip
    for code, command, path in cases:
        result = dino(*command, path)
        assert result.code == code, result
        assert path.removesuffix("/a.json") in result.err and "none.safetensors" not in result.err
    for command, name in (
        (["eval", "--data", image_folder, "--out"], "a.json"),
        (["check-data", image_folder, "--html"], "a.html"),
    ):
        assert dino(*command, f"/proc/x/{name}").code == 5
    assert file_names(tmp_path) == ["file", "full", "none.safetensors"]
    assert file_names(tmp_path / "full") == ["thesis.txt"]


@pytest.mark.slow
def test_an_unknown_preset_and_an_unknown_setting_are_named(dino, image_folder, tmp_path):
    preset = dino("train", "--data", image_folder, "--preset", "yolov12")
    assert preset.code == 2 and "yolov12" in preset.err and "r50-4scale" in preset.err
    (tmp_path / "new.toml").write_text("[model]\nwings = 2\n")
    setting = dino("train", "--data", image_folder, "--config", "new.toml", "--output-dir", "run")
    assert setting.code == 2 and "model.wings" in setting.err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_and_a_killed_one_is_reported(image_folder, settings, tmp_path):
    out = str(tmp_path / "run")
    command = [*CLI, "train", "--preset", "r50-4scale", "--data", str(image_folder), "--output-dir", out,
               *settings, "--epochs"]  # fmt: skip
    first = subprocess.Popen([*command, "500"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        lock, deadline = tmp_path / "run" / ".owner", time.monotonic() + 300
        while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        second = subprocess.run([*command, "1", "--overwrite"], capture_output=True, text=True, cwd=ROOT)
        assert second.returncode == 2 and f"process {first.pid}" in second.stderr, second.stderr
        assert first.poll() is None, "the first run must continue"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    third = subprocess.run([*command, "1", "--overwrite"], capture_output=True, text=True, cwd=ROOT)
    assert third.returncode == 0 and f"process {first.pid}" in third.stderr and "was killed" in third.stderr


@pytest.mark.slow
def test_a_clock_that_is_set_back_does_not_affect_durations(dino, image_folder, settings, tmp_path, monkeypatch):
    now = [2e9]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    result = dino("train", "--preset", "r50-4scale", "--data", image_folder, "--epochs", 1, "--batch-size", 4,
                  "--output-dir", "run", *settings)  # fmt: skip
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    durations = [value for row in rows for key, value in row.items() if key.endswith("seconds")]
    assert durations and all(0 <= value < 600 for value in durations)
    assert not re.search(r"-\d+:\d\d|-\d+ ?s\b", result.err)


@pytest.mark.slow
def test_a_hundred_thousand_other_files_are_counted_and_an_empty_folder_is_reported(dino, image_file, tmp_path):
    (tmp_path / "huge" / "deep").mkdir(parents=True)
    for n in range(100_000):
        os.close(os.open(tmp_path / "huge" / "deep" / f"{n}.txt", os.O_CREAT | os.O_WRONLY))
    shutil.copy(image_file, tmp_path / "huge" / f"a{image_file.suffix}")
    started = time.process_time()
    result = dino("predict", "huge", "--json")
    assert result.code == 0 and len(json.loads(result.out)) == 1
    assert "skipped 100000 non-image files" in result.err
    assert time.process_time() - started < 60
    (tmp_path / "empty").mkdir()
    empty = dino("predict", "empty")
    assert empty.code == 3 and "no images in empty" in empty.err and all(suffix in empty.err for suffix in SUFFIXES)


THIN = [(1, 1), (1, 5000), (5000, 1), (8000, 10)]


@pytest.mark.slow
def test_thin_images_are_predicted_trained_on_and_evaluated(dino, settings, tmp_path):
    """The bundled model and one trained only on thin images; all boxes are inside their image."""
    (tmp_path / "train").mkdir()
    document = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "line"}]}
    for n, (width, height) in enumerate(THIN, start=1):
        Image.new("RGB", (width, height), "white").save(tmp_path / "train" / f"{n}.png")
        document["images"].append({"id": n, "file_name": f"{n}.png", "width": width, "height": height})
        box = [0, 0, width, (height + 1) // 2]
        document["annotations"].append({"id": n, "image_id": n, "category_id": 5, "bbox": box})
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(document))
    trained = dino("train", "--preset", "r50-4scale", "--data", ".", "--epochs", 2, "--batch-size", 2,
                   "--output-dir", "run", *settings)  # fmt: skip
    assert trained.code == 0, trained.err
    evaluated = dino("eval", "--weights", "run", "--data", ".", "--split", "train", "--json")
    assert evaluated.code == 0 and json.loads(evaluated.out)["failed"] == []
    for weights in ("run", "bundled"):
        predicted = json.loads(dino("predict", "train", "--weights", weights, "--threshold", 0, "--json").out)
        assert [(item["width"], item["height"]) for item in predicted] == THIN
        for item in predicted:
            corners = torch.tensor([d["box_xyxy"] for d in item["detections"]]).reshape(-1, 4)
            assert len(corners) and (corners >= 0).all()
            assert (corners <= torch.tensor([item["width"], item["height"]] * 2)).all()
    assert json.loads(dino("check-data", ".", "--decode", "--json").out)["errors"] == 0


def test_an_image_whose_name_is_not_utf8_is_processed_and_printed(dino, image_file, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    try:
        shutil.copy(image_file, tmp_path / "in" / os.fsdecode(b"caf\xe9.jpg"))
    except OSError:
        pytest.skip("this file system only allows UTF-8 names")
    shutil.copy(image_file, tmp_path / "in" / "z.jpg")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with monkeypatch.context() as context:
        context.setattr(sys, "stdout", stdout)
        dino("predict", "in", "--threshold", "0.9")
    stdout.flush()
    assert rb"caf\udce9.jpg" in stdout.buffer.getvalue()
    assert dino("predict", "in", "--out", "found.jsonl").code == 0
    resumed = dino("predict", "in", "--out", "found.jsonl", "--resume")
    assert resumed.code == 0 and "found.jsonl has 2 of 2 images" in resumed.err


def test_garbage_collection_is_deferred_at_startup_and_resumed_for_the_work():
    program = """
import gc
from dinocli.start import resume_collection, defer_collection
default = gc.get_threshold()
defer_collection()
assert gc.get_threshold()[0] == 1_000_000
resume_collection()
resume_collection()
assert gc.get_threshold() == default and gc.get_freeze_count() > 1000
"""
    subprocess.run([sys.executable, "-c", program], check=True)
