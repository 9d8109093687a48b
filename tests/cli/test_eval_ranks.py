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
def opened(run_folder, image_folder):
    """A run's detector, and the annotations it was trained on."""
    torch.set_num_threads(1)
    detector = load_detector(run_folder, amp="off")
    return detector, open_split(DataConfig(path=str(image_folder)), "train", detector.categories)


@pytest.mark.parametrize("slicing", [None, Slicing(48, 0.2)])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_images_of_one_process_in_its_order(on_ranks, opened, monkeypatch, size, slicing):
    detector, annotations = opened
    monkeypatch.setattr("dinocore.evaluate.coco.GATHER_EVERY", 2)  # two rounds; with 3 ranks, one is not full
    alone = list(detect_all(detector, annotations, slicing=slicing))
    assert len(alone) == 8 and any(found for found, _ in alone)
    shared = on_ranks(size, lambda group: list(detect_on_ranks(detector, annotations, group, slicing)))
    assert shared == [alone] * size


def test_an_image_that_one_rank_cannot_read_is_named_on_all(on_ranks, opened, tmp_path):
    detector, annotations = opened
    (tmp_path / annotations.path(1).name).write_bytes(b"bad")
    for k in (0, 2):
        os.link(annotations.path(k), tmp_path / annotations.path(k).name)
    few = choose_images(annotations, np.arange(3))._replace(image_root=tmp_path)
    answers = on_ranks(2, lambda group: [problems for _, problems in detect_on_ranks(detector, few, group)])
    assert answers[0] == answers[1] and [len(problems) for problems in answers[0]] == [0, 1, 0]


def test_a_rank_that_fails_ends_all_and_rank_0_says_why(on_ranks, opened, monkeypatch):
    detector, annotations = opened
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


def test_ranks_are_refused_where_nothing_is_processed(dino, image_folder):
    Path("r.json").write_text("[]")
    result = dino("eval", "--results", "r.json", "--data", image_folder, "--gpus", 2)
    assert result.code == 2 and "drop --gpus" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("sliced", [[], ["--slice", "48"]])
def test_two_ranks_of_the_command_and_of_torchrun_give_what_one_process_gives(
    run_folder, image_folder, tmp_path, sliced
):
    given = [
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
    given = [*map(str, given), "--bootstrap", "50", *sliced]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(start, name, *more):
        command = [*start, "-m", "dinocli", *given, "--json", "--out", name, *more]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    python = [sys.executable]
    torchrun = [*python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", "localhost:0"]  # fmt: skip
    done = [run(python, "one.json"), run(python, "two.json", "--gpus", "2"), run(torchrun, "three.json")]
    assert [process.returncode for process in done] == [0, 0, 0], [process.stderr[-2000:] for process in done]
    one, *others = ((tmp_path / name).read_bytes() for name in ("one.json", "two.json", "three.json"))
    assert others == [one, one] and len(json.loads(one)) > 50
    assert done[0].stdout == done[1].stdout == done[2].stdout
    assert all(process.stderr.count("in COCO's result format") == 1 for process in done), done[1].stderr
