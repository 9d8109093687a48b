"""`dino eval` on several ranks gives exactly the results of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dinocore import load_detector
from dinocore.config import DataConfig
from dinocore.data.annotations import choose_images
from dinocore.data.dataset import open_split
from dinocore.errors import DivergedError, PeerFailed
from dinocore.evaluate.coco import detect_all, detect_on_ranks
from dinocore.stream.slices import Slicing


@pytest.fixture
def detector_and_annotations(run_folder, image_folder):
    """A run's detector, and the annotations it was trained on."""
    torch.set_num_threads(1)
    detector = load_detector(run_folder, amp="off")
    return detector, open_split(DataConfig(path=str(image_folder)), "train", detector.categories)


@pytest.mark.parametrize("slicing", [None, Slicing(48, 0.2)])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_results_of_one_process_in_order(on_ranks, detector_and_annotations, monkeypatch, size, slicing):
    detector, annotations = detector_and_annotations
    monkeypatch.setattr("dinocore.evaluate.coco.GATHER_EVERY", 2)  # two rounds; with 3 ranks, one is not full
    expected = list(detect_all(detector, annotations, slicing=slicing))
    assert len(expected) == 8 and any(rows for rows, _ in expected)
    results = on_ranks(size, lambda group: list(detect_on_ranks(detector, annotations, group, slicing)))
    assert results == [expected] * size


def test_an_image_that_one_rank_cannot_read_is_reported_on_all(on_ranks, detector_and_annotations, tmp_path):
    detector, annotations = detector_and_annotations
    (tmp_path / annotations.path(1).name).write_bytes(b"bad")
    for k in (0, 2):
        os.link(annotations.path(k), tmp_path / annotations.path(k).name)
    subset = choose_images(annotations, np.arange(3))._replace(image_root=tmp_path)
    results = on_ranks(2, lambda group: [problems for _, problems in detect_on_ranks(detector, subset, group)])
    assert results[0] == results[1] and [len(problems) for problems in results[0]] == [0, 1, 0]


def test_an_error_on_one_rank_ends_all_and_rank_0_raises_it(on_ranks, detector_and_annotations, monkeypatch):
    detector, annotations = detector_and_annotations
    detect, calls = detector.detect_batch, []

    def diverging(batch):
        calls.append(batch)
        if len(calls) == 6:
            raise DivergedError("not finite")
        return detect(batch)

    monkeypatch.setattr(detector, "detect_batch", diverging)
    errors = on_ranks(2, lambda group: list(detect_on_ranks(detector, annotations, group)))
    assert isinstance(errors[0], DivergedError) and str(errors[0]) == "not finite"
    assert isinstance(errors[1], PeerFailed) and errors[1].exit_code == errors[0].exit_code


def test_gpus_with_a_results_file_is_refused(dino, image_folder):
    Path("r.json").write_text("[]")
    result = dino("eval", "--results", "r.json", "--data", image_folder, "--gpus", 2)
    assert result.code == 2 and "drop --gpus" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("slicing", [[], ["--slice", "48"]])
def test_two_ranks_of_dino_and_of_torchrun_give_the_results_of_one_process(run_folder, image_folder, tmp_path, slicing):
    arguments = [
        "eval",
        "--weights",
        run_folder,
        "--data",
        image_folder,
        "--split",
        "train",
        "--device",
        "cpu",
        "--amp",
        "off",
    ]
    arguments = [*map(str, arguments), "--bootstrap", "50", *slicing]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(launcher, name, *options):
        command = [*launcher, "-m", "dinocli", *arguments, "--json", "--out", name, *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    python = [sys.executable]
    torchrun = [*python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", "localhost:0"]  # fmt: skip
    processes = [run(python, "one.json"), run(python, "two.json", "--gpus", "2"), run(torchrun, "three.json")]
    assert [process.returncode for process in processes] == [0, 0, 0], [process.stderr[-2000:] for process in processes]
    one, *others = ((tmp_path / name).read_bytes() for name in ("one.json", "two.json", "three.json"))
    assert others == [one, one] and len(json.loads(one)) > 50
    assert processes[0].stdout == processes[1].stdout == processes[2].stdout
    assert all(process.stderr.count("in COCO's result format") == 1 for process in processes), processes[1].stderr
