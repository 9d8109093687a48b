"""How much a process keeps of what oneDNN compiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dinocore.data.batch import has_few_sizes
from dinocore.presets import load_config
from dinocore.system.memory import keep_memory

ROOT = Path(__file__).parents[1]
SETTING = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
DRY_RUN = f"""
import os, sys
from dinocli.app import app
try:
    app()
finally:
    print("capacity", os.environ["{SETTING}"])
"""


@pytest.mark.parametrize(("preset", "changes", "few"), [
    ("tiny", [], True),
    ("tiny", ["data.pad_size_divisor=1"], False),
    ("tiny", ["data.max_size=1333"], False),
    ("r50-4scale", [], False),
    ("r50-4scale", ["data.policy=lsj", "data.pad_size_divisor=128"], True),
])  # fmt: skip
def test_batches_have_few_sizes_where_the_divisor_is_large_against_the_largest_side(preset, changes, few):
    assert has_few_sizes(load_config(preset, changes).data) == few


@pytest.mark.parametrize(("few", "given", "kept"), [(True, None, "2048"), (False, None, "256"), (True, "7", "7")])
def test_what_is_compiled_for_few_sizes_is_kept_and_little_of_many_unless_told_otherwise(monkeypatch, few, given, kept):
    monkeypatch.setattr(os, "environ", {SETTING: given} if given else {})
    keep_memory(few)
    assert os.environ[SETTING] == kept


def test_a_training_of_few_sizes_keeps_what_is_compiled_for_them(tmp_path):
    command = [sys.executable, "-c", DRY_RUN, "train", "--preset", "tiny", "--dry-run", "--device", "cpu"]
    settings = {
        "train.weights": '""', "model.backbone_weights": "none", "data.sample_images": 6, "data.workers": 0,
        "data.train_scales": [64], "data.max_size": 96, "data.crop_chance": 0, "data.eval_scale": 64,
    }  # fmt: skip
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    environment = {name: value for name, value in os.environ.items() if name != SETTING} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert "capacity 2048" in done.stdout, done.stderr
