"""Time multi-scale deformable attention: the default backend and the reference, interleaved in one run.

    python benchmarks/operation.py [--device cpu] [--threads 2] [--repeats 7] [--json FILE]

Backends take turns, so that other load on the machine affects them alike: compare ratios, not times of different runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from turns import write

from dinocore.model.ops import ms_deform_attn, use_backend

LARGE = [(100, 167), (50, 84), (25, 42), (13, 21)]  # an image of 800 x 1333
SMALL = [(40, 54), (20, 27), (10, 14)]
SIZES = {  # batch size, queries (None: one per token), maps, channels per head
    "encoder": (1, None, LARGE, 32),
    "decoder": (1, 900, LARGE, 32),
    "small encoder": (4, None, SMALL, 24),
    "small decoder": (4, 300, SMALL, 24),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BACKENDS = ("reference", "auto")
HEADS, POINTS = 8, 4


def main() -> None:
    """Print a table of medians and write it to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'size':15}{'value':10}{'what':18}" + "".join(f"{form + ' ms':>14}" for form in BACKENDS) + f"{'ratio':>8}")
    for size in SIZES:
        for dtype in DTYPES:
            for row in measure(size, dtype, options.device, options.repeats):
                rows.append(row)
                times = "".join(f"{1000 * row[form]:14.2f}" for form in BACKENDS)
                print(f"{size:15}{dtype:10}{row['what']:18}{times}{row['ratio']:8.1f}", flush=True)
    write(options.json, vars(options), rows)


def measure(size: str, dtype: str, device: str, repeats: int) -> list[dict]:
    """Median seconds of each backend, forward and forward + backward."""
    value, maps, locations, weights = inputs(size, DTYPES[dtype], device)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    grad = torch.ones_like(ms_deform_attn(value, maps, locations, weights))

    def forward() -> None:
        with torch.no_grad():
            ms_deform_attn(value, maps, locations, weights)

    def forward_backward() -> None:
        torch.autograd.grad(ms_deform_attn(value, maps, locations, weights), leaves, grad)

    rows = []
    for what, run in (("forward", forward), ("forward+backward", forward_backward)):
        seconds = {form: [] for form in BACKENDS}
        for _ in range(repeats + 1):
            for form in BACKENDS:
                with use_backend(form):
                    seconds[form].append(timed(run, device))
        medians = {form: statistics.median(seconds[form][1:]) for form in BACKENDS}  # the first run warms up
        row = {"size": size, "value": dtype, "what": what, **medians}
        rows.append(row | {"ratio": medians["reference"] / medians["auto"]})
    return rows


def timed(run: Callable[[], None], device: str) -> float:
    """Seconds that `run` takes, including synchronization with the device."""
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def inputs(size: str, dtype: torch.dtype, device: str) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """Value, maps, locations within a few tokens of the query's token (or of a random point), and weights."""
    batch, num_queries, maps, head_dim = SIZES[size]
    random = torch.Generator().manual_seed(0)
    reference = torch.rand(num_queries, 2, generator=random) if num_queries else centers(maps)  # (N, 2)
    value = torch.randn(batch, sum(height * width for height, width in maps), HEADS, head_dim, generator=random)
    places = (batch, len(reference), HEADS, len(maps), POINTS)
    step = 1 / torch.tensor([(width, height) for height, width in maps])  # (L, 2)
    offsets = 2 * torch.randn(*places, 2, generator=random) * step[:, None]  # (B, N, M, L, P, 2)
    weights = torch.randn(places, generator=random).flatten(-2).softmax(-1).view(places)
    locations = reference[:, None, None, None] + offsets
    return value.to(device, dtype), maps, locations.to(device), weights.to(device)


def centers(maps: list[tuple[int, int]]) -> Tensor:
    """(x, y) of every token as fractions of the map, (S, 2)."""
    grids = []
    for height, width in maps:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grids.append(torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=-1).flatten(0, 1))
    return torch.cat(grids)


if __name__ == "__main__":
    main()
