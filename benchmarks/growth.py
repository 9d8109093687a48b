"""How the cost grows with the image area, the number of queries, the number of objects and the batch size.

    python benchmarks/growth.py [--preset r50-4scale] [--json FILE]

Area, queries and batch size are measured in inference, objects in a training step. The slope of each series in a
log-log plot is printed: 1 means that the cost is proportional. The points of a series take turns.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from model import ours
from turns import take_turns, write

from dinocore.benchmark import Case
from dinocore.presets import load_config

SIZES = [(400, 666), (566, 943), (800, 1333), (1131, 1885)]  # each with twice the area of the previous one
MEDIUM = SIZES[0]
SERIES = {"area": SIZES, "queries": [300, 600, 900, 1800], "objects": [1, 10, 30, 100], "batch": [1, 2, 4]}


def main() -> None:
    """Print the median of every point and the slope of every series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="r50-4scale")
    parser.add_argument("--series", choices=[*SERIES], nargs="+", default=[*SERIES])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for series in options.series:
        cases = {f"{series} {value}": point(options.preset, series, value) for value in SERIES[series]}
        timings = take_turns({name: partial(ours, case) for name, case in cases.items()}, options.repeats)
        seconds = [timing.median for timing in timings.values()]
        x = [amount(series, value) for value in SERIES[series]]
        slope = float(np.polyfit(np.log(x), np.log(seconds), 1)[0])
        for name, timing, at in zip(timings, timings.values(), x, strict=True):
            print(f"{name:24}{timing.median:10.3f} s{timing.peak_memory_mb:10.0f} MB")
            rows.append({"series": series, "at": at, "median_s": timing.median, "slope": slope, **timing._asdict()})
        print(f"{series}: slope {slope:.2f}", flush=True)
    write(options.json, vars(options), rows)


def point(preset: str, series: str, value: int | tuple[int, int]) -> Case:
    """One measurement; by default with an image of 400 x 666, ten objects, and the preset's queries."""
    overrides = [f"model.num_queries={value}"] if series == "queries" else []
    return Case(
        config=load_config(preset, overrides=overrides),
        size=value if isinstance(value, tuple) else MEDIUM,
        batch=value if series == "batch" and isinstance(value, int) else 1,
        train=series == "objects",
        ops="auto",
        amp="auto",
        device=torch.device("cpu"),
        objects=value if series == "objects" and isinstance(value, int) else 10,
        repeats=1,
    )


def amount(series: str, value: int | tuple[int, int]) -> int:
    """The value on the x axis."""
    return value[0] * value[1] if isinstance(value, tuple) else value


if __name__ == "__main__":
    main()
