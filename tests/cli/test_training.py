"""`dino train`: dry runs, memory, checkpoints of a newer version, and unwritable or damaged run folders."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

SMALL = ("--preset", "r50-4scale", "--epochs", "1", "--output-dir", "run")


def one_line(text):
    return " ".join(text.split())


@pytest.mark.slow
def test_a_dry_run_prints_estimates_and_leaves_no_files(dino, settings, image_folder, tmp_path):
    result = dino("train", *SMALL, "--data", image_folder, "--dry-run", "--batch-size", "auto", *settings)
    assert result.code == 0, result.err
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines() if not line.startswith(" "))
    assert set(rows) == {"memory", "step", "evaluation", "save", "duration"}
    assert float(rows["memory"].split()[0]) > 50 and float(rows["step"].split()[0]) > 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    result = dino("train", *SMALL, "--data", image_folder, "--dry-run", *settings)
    assert result.code == 2 and "is not empty" in result.err, "a dry run fails where the run would"


@pytest.mark.slow
def test_batch_size_auto_keeps_the_batch_size_and_chooses_a_micro_batch_that_fits(
    dino, settings, image_folder, tmp_path, monkeypatch
):
    from dinocore.train.failures import memory

    largest_pass = memory.largest_pass

    def fail_above_three_images(model, batch, config):
        if len(batch.images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest_pass(model, batch, config)

    monkeypatch.setattr(memory, "largest_pass", fail_above_three_images)
    arguments = (*SMALL, "--data", image_folder, "--batch-size", "auto", *settings, "--set", "train.batch_size=8")
    result = dino("train", *arguments)
    assert result.code == 0, result.err
    assert "8 images per step (4 micro-batches of 2)" in one_line(result.err)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1]


@pytest.mark.slow
def test_an_error_while_drawing_the_curves_only_gives_a_warning(dino, settings, image_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no fonts")

    monkeypatch.setattr("dinocli.commands.train.view.draw_curves", fail)
    result = dino("train", *SMALL, "--data", image_folder, *settings)
    assert result.code == 0 and (tmp_path / "run" / "best.safetensors").is_file()
    assert one_line(result.err).count("ValueError: no fonts); the run continues") == 1


@pytest.mark.parametrize("checkpoint", ["auto", "step-00000002"])
def test_a_checkpoint_of_a_newer_version_is_refused_with_both_versions(checkpoint, dino, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000002"
    shutil.copytree(newest, newest.with_name("step-00000001"))  # an older checkpoint must not be used instead
    file = newest / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 7, "dino_version": "9.8.7"}))
    argument = checkpoint if checkpoint == "auto" else newest
    result = dino("train", "--resume", argument, "--output-dir", "run")
    assert result.code == 4
    assert "was made by dino 9.8.7 (format 7), this is 0.2.0 (format 1); install the newer one" in one_line(result.err)


def test_a_run_folder_that_cannot_be_created_gives_an_error(dino, settings, image_folder, tmp_path, monkeypatch):
    original_mkdir = os.mkdir

    def mkdir_except_run(path, *arguments, **options):
        if str(path).endswith("run"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original_mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", mkdir_except_run)
    result = dino("train", *SMALL, "--data", image_folder, *settings)
    assert result.code == 5 and "Traceback" not in result.err
    assert "--output-dir run cannot be created: Read-only file system" in one_line(result.err)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_weights_are_converted_with_a_message(dino, run_folder, image_folder, tmp_path):
    from dinocore.weights.file import load_weights, save_weights

    weights = load_weights(run_folder / "best.safetensors")
    half = {key: value.bfloat16() for key, value in weights.tensors.items()}
    save_weights(tmp_path / "half.safetensors", half, weights.config, weights.categories, {})
    image_file = next((image_folder / "val2017").iterdir())
    result = dino("predict", image_file, "--weights", "half.safetensors")
    assert result.code == 0 and "half.safetensors: its bfloat16 numbers become float32" in one_line(result.err)


def test_missing_edited_or_truncated_run_files_are_named_with_a_solution(dino, run_folder, tmp_path):
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    file = next(run.glob("checkpoints/*/*.safetensors"))
    file.unlink()
    message = one_line(dino("train", "--resume", run).err)
    assert "no checkpoint of" in message and file.name in message and f"--set train.weights={run}/best" in message
    config = (run / "config.toml").read_text()
    for before, after in (("seed = 42", "seed = 43"), ("giou = 2.0", "giou = 3.0")):
        edited = Path(shutil.copytree(run_folder, tmp_path / after))
        assert before in config
        (edited / "config.toml").write_text(config.replace(before, after))
        result = dino("train", "--resume", edited)
        assert result.code == 4 and f"{after} (it was {before[7:]}); restore the original" in one_line(result.err)
    for text in ("", config[: config.index("[data]")]):
        (run / "config.toml").write_text(text)
        result = dino("train", "--resume", run)
        assert result.code == 4 and "config.toml is truncated or empty: it lacks" in one_line(result.err)
    (run / "config.toml").unlink()
    result = dino("train", "--resume", run)
    assert result.code == 4 and f"the run {run} has no config.toml" in one_line(result.err)


def test_output_dir_is_ignored_with_a_message_when_resuming(dino, run_folder):
    result = dino("train", "--resume", run_folder, "--output-dir", "other")
    assert "--output-dir other is ignored" in one_line(result.err) and not Path("other").exists()
