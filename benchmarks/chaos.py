"""Kill a training run with SIGKILL at random times, repeatedly, and check its files each time.

    python benchmarks/chaos.py [--kills 200] [--seed 0] [--json FILE]

After each kill, the newest checkpoint must be intact, `best.safetensors`, if it exists, must be readable, and the log
must have each step at most once. A run that reaches its end must have exactly the same tensors and log lines as an
uninterrupted one. The model is tiny and saves after every second step, so that many kills happen during a write.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dinocli.commands.train.train import TrainRequest, run_training
from dinocli.signals import StopRequest
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.train.run.checkpoint_folder import list_checkpoints, tidy, verify_checkpoint
from dinocore.weights.file import load_weights

SETTINGS = [
    'model.backbone="timm/test_resnet"', 'model.backbone_weights="none"', "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2",
    "model.denoising.num_pairs=20", "data.train_scales=[48, 64]", "data.crop_chance=0.0", "data.max_size=96",
    "data.eval_scale=64", "data.workers=0", "train.batch_size=2", "train.epochs=4", "train.ema_decay=0.9",
    "model.dropout=0.1", 'train.amp="off"', "train.save_every_steps=2", 'train.trackers="off"',
]  # fmt: skip
TIMINGS = ("seconds", "data_seconds", "memory_mb")


def main() -> None:
    """Print the results; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = chaos(Path(folder), options.kills, random.Random(options.seed))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(found["unreadable"] or found["lost_best"] or found["repeated_steps"] or found["unlike"]))


def chaos(folder: Path, kills: int, draws: random.Random) -> dict[str, Any]:
    """Kill the training this many times; return the counts."""
    write_sample_data(folder / "data", num_images=20, seed=3, size=(80, 64))
    began = time.monotonic()
    os.waitpid(start(folder / "straight", folder / "data"), 0)
    life = time.monotonic() - began
    expected = outcome(folder / "straight")
    found: dict[str, Any] = {
        "kills": 0,
        "finished": 0,
        "unreadable": [],
        "lost_best": [],
        "repeated_steps": [],
        "unlike": [],
    }
    number = 0
    while found["kills"] < kills:
        run = folder / f"run{number}"
        child = start(run, folder / "data")
        if ended_within(child, draws.uniform(0, 1.2 * life)):
            found["finished"] += 1
            found["unlike"] += [] if outcome(run) == expected else [run.name]
            number += 1
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["kills"] += 1
        look(run, found)
    return found | {"seconds_of_a_run": life, "seconds": time.monotonic() - began}


def start(run: Path, data: Path) -> int:
    """Start or continue a run in a forked process, which has torch imported already; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        torch.set_num_threads(1)
        changes = [*SETTINGS, f'data.path="{data}"']
        resume = str(run) if (run / "config.toml").is_file() else None
        stop = StopRequest(quiet=True)
        run_training(
            TrainRequest(
                "r50-4scale" if resume is None else None,
                None,
                [] if resume else changes,
                run,
                resume,
                True,
                False,
                "cpu",
                stop,
            )
        )
        code = 0
    finally:
        os._exit(code)


def ended_within(child: int, seconds: float) -> bool:
    """Wait for a process; return whether it succeeded in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.waitstatus_to_exitcode(status):
                raise SystemExit(f"a resumed run failed with status {status}")
            return True
        time.sleep(0.002)
    return False


def look(run: Path, found: dict[str, Any]) -> None:
    """Record any damage done by a kill."""
    tidy(run / "checkpoints")
    try:
        checkpoints = list_checkpoints(run / "checkpoints")
        if checkpoints:
            verify_checkpoint(checkpoints[-1])
    except Exception as error:
        found["unreadable"].append(str(error))
    try:
        if (run / "best.safetensors").exists():
            load_weights(run / "best.safetensors")
        elif checkpoints and torch.load(checkpoints[-1] / "state.pt", weights_only=True)["progress"]["best_step"]:
            raise ValueError("best.safetensors is gone")
    except Exception as error:
        found["lost_best"].append(str(error))
    steps = [row["step"] for row in rows(run) if "loss" in row]
    if len(steps) != len(set(steps)):
        found["repeated_steps"].append(run.name)


def rows(run: Path) -> list[dict[str, Any]]:
    """The complete lines of the log."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def outcome(run: Path) -> str:
    """A hash of all tensors of the last checkpoint and the best weights, and of the log without timings."""
    found = hashlib.sha256()
    newest = list_checkpoints(run / "checkpoints")[-1]
    for file in (newest / "model.safetensors", newest / "ema.safetensors", run / "best.safetensors"):
        for key, value in sorted(load_weights(file).tensors.items()):
            found.update(key.encode() + value.numpy().tobytes())
    optimizer = torch.load(newest / "optimizer.pt", weights_only=True)["state"]
    for number in sorted(optimizer):
        for key in sorted(optimizer[number]):
            found.update(optimizer[number][key].numpy().tobytes())
    log = [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows(run)]
    found.update(json.dumps(log).encode())
    return found.hexdigest()


if __name__ == "__main__":
    main()
