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
def test_a_dry_run_says_what_to_expect_and_leaves_nothing(dino, settings, image_folder, tmp_path):
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
def test_batch_size_auto_keeps_the_batch_and_takes_as_many_at_once_as_fit(
    dino, settings, image_folder, tmp_path, monkeypatch
):
    from dinocore.train.failures import memory as probe

    largest_pass = probe.largest_pass

    def with_room_for_three(model, batch, config):
        if len(batch.images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest_pass(model, batch, config)

    monkeypatch.setattr(probe, "largest_pass", with_room_for_three)
    arguments = (*SMALL, "--data", image_folder, "--batch-size", "auto", *settings, "--set", "train.batch_size=8")
    result = dino("train", *arguments)
    assert result.code == 0, result.err
    assert "8 images per step (4 micro-batches of 2)" in one_line(result.err)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1]


@pytest.mark.slow
def test_an_image_of_curves_that_cannot_be_drawn_costs_a_warning(dino, settings, image_folder, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("no fonts")

    monkeypatch.setattr("dinocli.commands.train.view.draw_curves", fails)
    result = dino("train", *SMALL, "--data", image_folder, *settings)
    assert result.code == 0 and (tmp_path / "run" / "best.safetensors").is_file()
    assert one_line(result.err).count("ValueError: no fonts); the run continues") == 1


@pytest.mark.parametrize("expected", ["auto", "step-00000002"])
def test_a_newer_checkpoint_is_exit_4_with_both_versions(expected, dino, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000002"
    shutil.copytree(newest, newest.with_name("step-00000001"))  # an older checkpoint must not be used instead
    file = newest / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 7, "dino_version": "9.8.7"}))
    named = expected if expected == "auto" else newest
    result = dino("train", "--resume", named, "--output-dir", "run")
    assert result.code == 4
    assert "was made by dino 9.8.7 (format 7), this is 0.2.0 (format 1); install the newer one" in one_line(result.err)


def test_a_run_folder_that_cannot_be_made_is_a_one_line_error(dino, settings, image_folder, tmp_path, monkeypatch):
    mkdir = os.mkdir

    def refused(path, *arguments, **named):
        if str(path).endswith("run"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return mkdir(path, *arguments, **named)

    monkeypatch.setattr(os, "mkdir", refused)
    result = dino("train", *SMALL, "--data", image_folder, *settings)
    assert result.code == 5 and "Traceback" not in result.err
    assert "--output-dir run cannot be created: Read-only file system" in one_line(result.err)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_half_precision_are_used_and_reported(dino, run_folder, image_folder, tmp_path):
    from dinocore.weights.file import load_weights, save_weights

    weights = load_weights(run_folder / "best.safetensors")
    half = {key: value.bfloat16() for key, value in weights.tensors.items()}
    save_weights(tmp_path / "half.safetensors", half, weights.config, weights.categories, {})
    image_file = next((image_folder / "val2017").iterdir())
    result = dino("predict", image_file, "--weights", "half.safetensors")
    assert result.code == 0 and "half.safetensors: its bfloat16 numbers become float32" in one_line(result.err)


def test_a_run_whose_files_are_lost_or_cut_off_says_which_and_what_to_do(dino, run_folder, tmp_path):
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


def test_a_resumed_run_says_that_another_output_folder_is_ignored(dino, run_folder):
    result = dino("train", "--resume", run_folder, "--output-dir", "other")
    assert "--output-dir other is ignored" in one_line(result.err) and not Path("other").exists()
