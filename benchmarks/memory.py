"""Resident memory during a training with images of many sizes, for several allocator settings.

    python benchmarks/memory.py [--preset tiny] [--set KEY=VALUE ...] [--steps 128] [--batch-size 4]
        [--ways now glibc] [--json FILE] [--plot FILE]
    python benchmarks/memory.py --runs runs/a runs/b --plot FILE

Each setting runs in its own process, one after another, on synthetic images that augmentation resizes to many sizes,
without evaluation. The estimate of `dino train --dry-run` is printed first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


def primitives(number: int) -> dict[str, str]:
    """Environment variables for a oneDNN primitive cache of this size."""
    return {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(number)}


class Way(NamedTuple):
    """Allocator settings of a training."""

    environment: dict[str, str]
    keeps: bool = True  # call keep_memory()
    settings: tuple[str, ...] = ()


WAYS = {
    "now": Way({}),
    "any size": Way({}, settings=("data.pad_size_divisor=1",)),
    "64 primitives": Way(primitives(64)),
    "256 primitives": Way(primitives(256)),
    "1024 primitives": Way(primitives(1024)),
    "glibc, 256 primitives": Way(primitives(256), keeps=False),
    "glibc": Way(primitives(1024), keeps=False),
    "huge pages": Way({**primitives(64), "THP_MEM_ALLOC_ENABLE": "1"}, keeps=False),
}


def main() -> None:
    """Print the memory after some steps and the median step time of each way; plot the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--ways", choices=[*WAYS], nargs="+", default=[*WAYS])
    parser.add_argument("--runs", nargs="+", type=Path, help="draw what these runs of dino train held, and train none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way = WAYS[options.ways[0]]
        preset, changes = settings(options, options.child)
        run((preset, [*changes, *way.settings]), options.steps, keep=way.keeps)
        return
    if options.runs:
        plot([{"way": run.name, "memory_mb": memory_of_run(run)} for run in options.runs], options.plot)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), options.batch_size * options.steps)
        promise(settings(options, folder))
        for way in options.ways:
            command = [sys.executable, __file__, "--child", folder, "--steps", str(options.steps)]
            command += ["--batch-size", str(options.batch_size), "--ways", way, "--preset", options.preset]
            command += ["--set", *options.set]
            output = subprocess.run(
                command, env=os.environ | WAYS[way].environment, check=True, capture_output=True, text=True
            )
            row = {"way": way, **json.loads(output.stdout.splitlines()[-1])}
            rows.append(row)
            memory = row["memory_mb"]
            first = max(memory[:50])
            numbers = f"peak of 50 steps {first:6.0f} MB   last {memory[-1]:6.0f} MB   x{memory[-1] / first:.2f}"
            print(f"{way:24} {numbers}   median step {row['median_s']:.3f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


def draw(folder: Path, num_images: int) -> None:
    """Synthetic images, which augmentation crops and resizes to many sizes, like photographs."""
    from dinocore.data.synthetic.sample import write_sample_data

    write_sample_data(folder, num_images=min(num_images, 160), seed=0, size=(640, 480))


def settings(options: argparse.Namespace, folder: str) -> tuple[str, list[str]]:
    """The config of the training."""
    train = {"batch_size": options.batch_size, "epochs": options.steps, "eval_every_epochs": options.steps + 1}
    if options.preset == "tiny":
        train["micro_batch_size"] = options.batch_size
    changes = [f"train.{name}={value}" for name, value in train.items()]
    return options.preset, [*changes, "data.workers=1", f'data.path="{folder}"', *options.set]


def promise(chosen: tuple[str, list[str]]) -> None:
    """Print the memory estimate of `dino train --dry-run`."""
    preset, changes = chosen
    command = [sys.executable, "-m", "dinocli", "train", "--preset", preset, "--dry-run"]
    command += [word for change in changes for word in ("--set", change)]
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    print(*(line for line in (output.stdout + output.stderr).splitlines() if "MB" in line), sep="\n", flush=True)


def run(chosen: tuple[str, list[str]], steps: int, keep: bool) -> None:
    """Train, and print this process's resident memory in MB after each step, as JSON."""
    import torch

    from dinocore.data.dataset import open_dataset
    from dinocore.presets import load_config
    from dinocore.train import loop
    from dinocore.train.context import RunContext
    from dinocore.train.events import Step
    from dinocore.train.run.folder import prepare_run
    from dinocore.train.setup import fresh_state

    if not keep:
        loop.keep_memory = lambda _: None
    config = load_config(*chosen)
    with tempfile.TemporaryDirectory() as output:
        prepare_run(Path(output) / "run", overwrite=False)
        context = RunContext(config, open_dataset(config.data), Path(output) / "run", torch.device("cpu"))
        state = fresh_state(config, context.data.train.categories, context.device)
        memory, seconds = [], []
        started = time.perf_counter()
        for event in loop.train(context, state):
            if isinstance(event, Step):
                memory.append(resident_mb())
                seconds.append(time.perf_counter() - started)
                started = time.perf_counter()
            if len(memory) == steps:
                break
    print(json.dumps({"memory_mb": memory, "median_s": statistics.median(seconds)}))


def resident_mb() -> float:
    """Resident memory of this process in MB; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_of_run(run: Path) -> list[float]:
    """The peak memory of a run up to each of its steps."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["memory_mb"] for line in lines if "memory_mb" in line]


def plot(rows: list[dict], path: Path) -> None:
    """Plot a curve for each way."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        axis.plot(row["memory_mb"], label=row["way"])
    axis.set_xlabel("step")
    axis.set_ylabel("resident memory, MB")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
