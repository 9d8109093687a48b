"""The cost of a checkpoint: seconds, megabytes, and the fraction of a run's time at the default interval.

    python benchmarks/saving.py [--presets tiny r50-4scale] [--repeats 5] [--json FILE]

The state is that after the first step: weights, AdamW's two moments, and the EMA if the preset has one.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dinocore.data.annotations import Category
from dinocore.presets import load_config
from dinocore.system.memory import keep_memory
from dinocore.train.setup import fresh_state
from dinocore.train.state import rng_state, save_checkpoint


def main() -> None:
    """Print a row per preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "r50-4scale"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_memory()
    found = {preset: measure(preset, options.repeats) for preset in options.presets}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(preset: str, repeats: int) -> dict[str, Any]:
    """Save repeatedly, each time as another step."""
    config = load_config(preset, ['model.backbone_weights="none"', "model.num_classes=80"])
    categories = [Category(k + 1, f"class {k}") for k in range(80)]
    state = fresh_state(config, categories, torch.device("cpu"))
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    seconds, size = [], 0
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for step in range(1, repeats + 1):
            state.progress.step = step
            began = time.perf_counter()
            path = save_checkpoint(Path(folder), state, config, categories, [rng_state()])
            seconds.append(time.perf_counter() - began)
            size = sum(file.stat().st_size for file in path.iterdir())
    median, interval = statistics.median(seconds), 60 * config.train.save_every_minutes
    return {"seconds": seconds, "median_seconds": median, "megabytes": round(size / 1e6),
            "every_minutes": config.train.save_every_minutes, "share": median / interval}  # fmt: skip


if __name__ == "__main__":
    main()
