"""Compare inference with other detectors: each at its default size and at ours, with random weights, taking turns.

    python benchmarks/peers.py [--repeats 5] [--amp off bf16] [--only NAME ...] [--json docs/benchmarks/peers.json]

RT-DETR-v2 R50, D-FINE-L, RF-DETR-B and two-stage Deformable DETR are those of `transformers` (extra `bench`), Faster
R-CNN R50 FPN v2 is torchvision's. Each runs in its own process. `work` is the number of FLOPs, 2 per multiply-add,
from torch's counter; `of peak` is the achieved fraction of this machine's FLOP/s for a product of two 4096 x 4096
matrices in that precision. The accuracy reported by their authors is in docs/performance.md, in a separate column; it
is not measured here.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from turns import Build, take_turns, write

from dinocore.benchmark import CORRECTED, Case, prepare
from dinocore.presets import load_config

OURS = (800, 1333)
SIDES = {"RT-DETR-v2 R50": 32, "D-FINE-L": 32, "RF-DETR-B": 56}  # the sides of an image must be multiples of this
PRECISIONS = {"off": None, "bf16": torch.bfloat16}


def main() -> None:
    """Print a table: size, median seconds, fraction of the peak FLOP/s, memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--amp", nargs="+", choices=[*PRECISIONS], default=["off"])
    parser.add_argument("--only", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--small", action="store_true", help="each at its own default size only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for amp in options.amp:
        peak = product_rate(PRECISIONS[amp])
        print(f"{amp}: a product of 4096 x 4096 runs at {peak / 1e9:.0f} GFLOP/s")
        cases: dict[str, tuple[str, tuple[int, int]]] = {}
        for name in options.only:
            _, own = MODELS[name]
            for size in dict.fromkeys([own] if options.small else [own, fitting(name)]):
                cases[f"{name} {size[0]}x{size[1]}"] = (name, size)
        builds: dict[str, Build] = {label: partial(build, *case, amp) for label, case in cases.items()}
        timings = take_turns(builds, options.repeats)
        for label, timing in timings.items():
            work = count_flops(*cases[label])
            share = work / timing.median / peak
            print(f"{label:36}{timing.median:9.3f} s{work / 1e9:9.1f} GFLOP{100 * share:7.0f} % of peak"
                  f"{timing.peak_memory_mb:8.0f} MB")  # fmt: skip
            rows.append({"name": label, "amp": amp, "median_s": timing.median, "flops": work, "of_peak": share,
                         "peak_flops": peak, **timing._asdict()})  # fmt: skip
    write(options.json, vars(options), rows)


def build(name: str, size: tuple[int, int], amp: str) -> Callable[[], Any]:
    """A function that runs a detector on one random image."""
    return MODELS[name][0](size, amp)


def fitting(name: str) -> tuple[int, int]:
    """Our size of 800 x 1333, or the nearest one that the model supports."""
    multiple = SIDES.get(name, 1)
    return OURS if multiple == 1 else (800 // multiple * multiple, 1344)


def count_flops(name: str, size: tuple[int, int]) -> int:
    """FLOPs of one call in float32; ours with the reference backend, which computes the same."""
    call = ours(name, "reference", size, "off") if name in PRESETS else build(name, size, "off")
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as counter:
        call()
    return counter.get_total_flops()


def product_rate(dtype: torch.dtype | None) -> float:
    """The highest FLOP/s reached by a large matrix product, PyTorch's or oneDNN's (twice as fast in float32 on AMD)."""
    a, b = (torch.randn(4096, 4096, dtype=dtype or torch.float32) for _ in range(2))
    packed = torch.ops.mkldnn._reorder_linear_weight(b, 4096)
    seconds = []
    for product in (lambda: a @ b, lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")):
        for _ in range(5):
            started = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - started)
    return 2 * 4096**3 / min(seconds)


def ours(preset: str, ops: str, size: tuple[int, int], amp: str) -> Callable[[], Any]:
    """One of our presets."""
    case = Case(load_config(PRESETS[preset]), size, 1, False, ops, amp, torch.device("cpu"), objects=0, repeats=1)
    call, _ = prepare(case)
    if ops == "auto":
        return call
    from dinocore.model.ops import use_backend

    def plain() -> None:
        with use_backend(ops):
            call()

    return plain


def of_transformers(names: tuple[str, str], settings: dict[str, Any], size: tuple[int, int], amp: str) -> Callable:
    """A detector of `transformers` with random weights."""
    import transformers

    torch.manual_seed(0)
    config, model_class = (getattr(transformers, name) for name in names)
    model = model_class(config(num_labels=80, **settings)).eval().requires_grad_(False)
    return detect(lambda image: model(pixel_values=image), size, amp)


def deformable_detr(size: tuple[int, int], amp: str) -> Callable:
    """Two-stage Deformable DETR with the sizes of our r50-4scale."""
    from model import build_deformable_detr

    model = build_deformable_detr(load_config("r50-4scale")).eval().requires_grad_(False)
    mask = torch.ones(1, *size, dtype=torch.long)
    return detect(lambda image: model(image, mask), size, amp)


def faster_rcnn(size: tuple[int, int], amp: str) -> Callable:
    """Torchvision's Faster R-CNN v2, configured not to resize images."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    sides = {"min_size": min(size), "max_size": max(size)}
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **sides).eval().requires_grad_(False)
    return detect(lambda image: model([image[0]]), size, amp)


def detect(model: Callable[[torch.Tensor], Any], size: tuple[int, int], amp: str) -> Callable[[], Any]:
    """A call without gradients, with autocast if half precision is requested."""
    image, dtype = torch.rand(1, 3, *size), PRECISIONS[amp]

    def call() -> Any:
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return model(image)

    return call


PRESETS = {"ours, r50-4scale": "r50-4scale", "ours, tiny": "tiny"}
RT_DETR_V2 = ("RTDetrV2Config", "RTDetrV2ForObjectDetection")
D_FINE = ("DFineConfig", "DFineForObjectDetection")
RF_DETR = ("RfDetrConfig", "RfDetrForObjectDetection")
MODELS: dict[str, tuple[Callable[[tuple[int, int], str], Callable], tuple[int, int]]] = {  # with their default sizes
    "ours, r50-4scale": (partial(ours, "ours, r50-4scale", "auto"), OURS),
    "ours, tiny": (partial(ours, "ours, tiny", "auto"), (320, 427)),
    "RT-DETR-v2 R50": (partial(of_transformers, RT_DETR_V2, {}), (640, 640)),
    "D-FINE-L": (partial(of_transformers, D_FINE, {}), (640, 640)),
    "RF-DETR-B": (partial(of_transformers, RF_DETR, {}), (560, 560)),
    "Deformable DETR, two stages": (deformable_detr, OURS),
    "Faster R-CNN R50 FPN v2": (faster_rcnn, OURS),
}

if __name__ == "__main__":
    main()
