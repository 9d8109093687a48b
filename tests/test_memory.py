"""The memory that a process keeps for oneDNN's compiled primitives."""

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
DRY_RUN_SCRIPT = f"""
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
def test_batches_have_few_sizes_if_the_divisor_is_large_relative_to_the_largest_side(preset, changes, few):
    assert has_few_sizes(load_config(preset, changes).data) == few


@pytest.mark.parametrize(
    ("few", "user_value", "expected"),
    [(True, None, "2048"), (False, None, "128"), (None, None, "256"), (True, "7", "7")],
)
def test_the_cache_is_large_for_few_sizes_and_small_for_many_unless_the_user_sets_it(
    monkeypatch, few, user_value, expected
):
    monkeypatch.setattr(os, "environ", {SETTING: user_value} if user_value else {})
    keep_memory(few)
    assert os.environ[SETTING] == expected


LINEAR_LAYER_SCRIPT = """
import ctypes, sys, torch
from dinocore.system.memory import keep_memory

class Heap(ctypes.Structure):  # glibc's struct mallinfo2
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

keep_memory(few_sizes=sys.argv[1] == "few")
heap = ctypes.CDLL("libc.so.6").mallinfo2
heap.restype = Heap
layer = torch.nn.Linear(32, 32).bfloat16()
for rows in range(300, 400):
    layer(torch.zeros(rows, 32, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    if rows == 350:
        before = heap().uordblks
print("MB", (heap().uordblks - before) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc's mallinfo2")
@pytest.mark.parametrize(("sizes", "low", "high"), [("any", -1, 1), ("few", 10, 1000)])
def test_a_linear_layer_caches_primitives_of_past_sizes_only_if_sizes_are_few(sizes, low, high):
    command = [sys.executable, "-c", LINEAR_LAYER_SCRIPT, sizes]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    result = subprocess.run(
        command, env=environment | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True
    )
    assert low < float(result.stdout.split("MB")[1]) < high  # MB for 49 more sizes


def test_training_with_few_sizes_keeps_their_compiled_primitives(tmp_path):
    command = [sys.executable, "-c", DRY_RUN_SCRIPT, "train", "--preset", "tiny", "--dry-run", "--device", "cpu"]
    settings = {
        "train.weights": '""', "model.backbone_weights": "none", "data.sample_images": 6, "data.workers": 0,
        "data.train_scales": [64], "data.max_size": 96, "data.crop_chance": 0, "data.eval_scale": 64,
    }  # fmt: skip
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    environment = {name: value for name, value in os.environ.items() if name != SETTING} | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert "capacity 2048" in result.stdout, result.stderr
