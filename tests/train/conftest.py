"""A small model and small images, for many short runs."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinocore import load_config
from dinocore.data.dataset import open_dataset
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.train.context import RunContext
from dinocore.train.loop import train
from dinocore.train.run.checkpoint_folder import list_checkpoints
from dinocore.train.run.folder import prepare_run, write_config
from dinocore.train.setup import fresh_state
from dinocore.weights.file import load_weights

SMALL = [
    'model.backbone="resnet18"', 'model.backbone_weights="none"', "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2",
    "model.num_classes=3", "model.denoising.num_pairs=20", "data.train_scales=[64]", "data.crop_chance=0.0",
    "data.max_size=96", "data.eval_scale=64", "data.workers=0", "train.batch_size=2", "train.epochs=2",
    "train.micro_batch_size=2", 'train.amp="off"',
]  # fmt: skip

MULTI_RANK_SETTINGS = (
    'model.backbone="timm/test_resnet"', "model.dropout=0.1", "train.batch_size=4", "train.epochs=2",
    "train.micro_batch_size=1", "train.ema_decay=0.9", 'train.trackers="off"',
)  # fmt: skip  # two steps per epoch
SCRIPT = Path(__file__).with_name("faulty_processes.py")
TIMINGS = ("seconds", "data_seconds", "memory_mb")
START_DEPENDENT = (
    "origin",
    "log_bytes",
)  # differ in a resumed run: a message, and the length of the log, which contains timings


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_sample_data(folder, num_images=10, seed=3, size=(96, 72))
    return folder


@pytest.fixture
def small_config(image_folder):
    def make(*overrides: str):
        return load_config("r50-4scale", [*SMALL, f'data.path="{image_folder}"', *overrides])

    return make


@pytest.fixture
def start(tmp_path):
    def make(config, name="run", stop=lambda: 0):
        run = tmp_path / name
        data = open_dataset(config.data)
        prepare_run(run, overwrite=False)
        write_config(run, config)
        state = fresh_state(config, data.train.categories, torch.device("cpu"))
        return RunContext(config, data, run, torch.device("cpu"), stop), state

    return make


@pytest.fixture
def run_to_end():
    return lambda context, state: list(train(context, state))


@pytest.fixture
def outcome():
    """A function that reads a run: hashes of its newest checkpoint's tensors, plain values, log without timings."""

    def read(run):
        newest, tensors = list_checkpoints(run / "checkpoints")[-1], {}
        for name in ("model.safetensors", "ema.safetensors"):
            if (newest / name).is_file():
                tensors |= {f"{name}/{key}": value for key, value in load_weights(newest / name).tensors.items()}
        optimizer = torch.load(newest / "optimizer.pt", weights_only=True)["state"]
        tensors |= {f"{n}/{key}": value for n, entry in optimizer.items() for key, value in entry.items()}
        state = torch.load(newest / "state.pt", weights_only=True)
        tensors |= {f"stream of process {n}": entry["torch"] for n, entry in enumerate(state["streams"])}
        values = {key: value for key, value in state["progress"].items() if key not in START_DEPENDENT}
        values |= {"scaler": state["scaler"], "ema_updates": state["ema_updates"]}
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]
        hashes = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in tensors.items()}
        return hashes, values, rows

    return read


@pytest.fixture
def run_ranks(small_config, tmp_path):
    """A function that trains or resumes on several ranks, and returns exit codes, warnings per rank, and the folder."""

    def make(*settings, fault="none", rank=0, at=0, name="run", num_ranks=2):
        folder = tmp_path / name
        if not folder.exists():
            prepare_run(folder, overwrite=False)
        write_config(folder, small_config(*MULTI_RANK_SETTINGS, *settings))
        shared = {"WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
        command, processes = [sys.executable, str(SCRIPT), str(folder), fault, str(rank), str(at)], []
        for process_rank in range(num_ranks):
            env = os.environ | {key: str(value) for key, value in (shared | {"RANK": process_rank}).items()}
            processes.append(subprocess.Popen(command, env=env))
        try:
            codes = [process.wait(timeout=600) for process in processes]  # fails if a rank hangs
        finally:
            for process in processes:
                process.kill()
        messages = [json.loads((folder / f"messages-{n}.json").read_text()) for n in range(num_ranks)]
        return codes, messages, folder

    return make
