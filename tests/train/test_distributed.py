"""Several ranks give the same results as one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_ranks(num_ranks, data, out, chunk):
    port = free_port()
    shared = {"WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    command = [sys.executable, str(SCRIPT), str(data), str(out), str(chunk)]
    processes = [
        subprocess.Popen(command, env=os.environ | {k: str(v) for k, v in (shared | {"RANK": rank}).items()})
        for rank in range(num_ranks)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * num_ranks
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("empty", [False, True])
def test_two_ranks_give_the_gradients_and_the_evaluation_of_one(empty, image_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    if empty:  # all images but one, so that some rank has no objects
        file = data / "annotations" / "instances_train2017.json"
        content = json.loads(file.read_text())
        first = min(row["id"] for row in content["images"])
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] == first]
        file.write_text(json.dumps(content))
    one, two = run_ranks(1, data, tmp_path / "one.pt", 1), run_ranks(2, data, tmp_path / "two.pt", 1)
    assert one["ap"] == two["ap"] and two["missing"] == []
    assert two["numbers"] == pytest.approx(one["numbers"], rel=1e-9)
    for name, grad in one["grads"].items():
        scale = grad.abs().max().clamp(min=1e-12)
        assert (two["grads"][name] - grad).abs().max() <= 1e-6 * scale, name
