"""Run all GPU measurements in at most eight minutes, and write them to a JSON file.

    python benchmarks/gpu.py [--minutes 8] [--json docs/benchmarks/gpu.json]
    python benchmarks/gpu.py --device cpu --preset tiny --size 64x96 --batches 1 2    # a trial run without a GPU

In this order: the tests that need a GPU; deformable attention against its reference (and the official CUDA operation,
where `MultiScaleDeformableAttention` is installed), forward and backward; r50-4scale's inference and training step,
eager and compiled, at several batch sizes; two ranks, if there are two devices; TensorRT, if it is installed.
Each part runs in its own process with a time limit, so that the others still run if it hangs or runs out of memory.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from operation import DTYPES, SIZES, inputs, measure, timed
from turns import write

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run all parts that fit into the time, and write their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="r50-4scale")
    parser.add_argument("--size", default="800x1333", help="height x width")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](options)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; for a rehearsal: --device cpu --preset tiny --size 64x96 --batches 1 2")
    end, rows = time.monotonic() + 60 * options.minutes, []
    for part in PARTS:
        rows += run_part(part, sys.argv[1:], end)
    write(options.json, vars(options) | {"device": card(options.device)}, rows)


def run_part(part: str, arguments: list[str], end: float) -> list[dict]:
    """The rows printed by a part; the last one says if it failed or was interrupted."""
    left = end - time.monotonic()
    if left < 5:
        print(f"{part}: no time left")
        return [{"part": part, "status": "no time left"}]
    started, output, status = time.monotonic(), "", "ok"
    with tempfile.TemporaryFile("w+") as file:
        try:
            command = [sys.executable, __file__, *arguments, "--part", part]
            code = subprocess.run(command, stdout=file, timeout=left).returncode
            status = "ok" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            status = "cut short: no time left"
        file.seek(0)
        output = file.read()
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    print(f"{part}: {status}, {time.monotonic() - started:.0f} s", flush=True)
    for row in rows:
        print(
            "  ",
            *(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()),
        )
    return [*({"part": part, **row} for row in rows), {"part": part, "status": status}]


def emit(**row: Any) -> None:
    """Print one row, for the parent process."""
    print(json.dumps(row), flush=True)


def card(device: str) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU (a rehearsal, no GPU)"


def tests(options: argparse.Namespace) -> None:
    """Run all tests marked for a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-rs", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    emit(passed=result.returncode == 0, summary=result.stdout.strip().splitlines()[-1])
    if result.returncode:
        print(result.stdout[-3000:], file=sys.stderr)
        sys.exit(result.returncode)


def operation(options: argparse.Namespace) -> None:
    """Time our kernel, its reference, and the official one if it can be imported."""
    for size in SIZES:
        for dtype in DTYPES:
            for row in measure(size, dtype, options.device, options.repeats):
                if row["what"] == "forward" and official_operation():
                    row["official"] = official_seconds(size, dtype, options)
                emit(**row)


def official_operation() -> Any:
    """The compiled extension of Deformable DETR and official DINO, or None."""
    if importlib.util.find_spec("MultiScaleDeformableAttention") is None:
        return None
    import MultiScaleDeformableAttention  # pyright: ignore[reportMissingImports]

    return MultiScaleDeformableAttention


def official_seconds(size: str, dtype: str, options: argparse.Namespace) -> float | None:
    """The median time of its forward pass, which only supports float32."""
    if dtype != "float32":
        return None
    value, maps, locations, weights = inputs(size, DTYPES[dtype], options.device)
    shapes = torch.tensor(maps, device=options.device)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    call = official_operation().ms_deform_attn_forward
    step = min(64, len(value))
    seconds = [timed(lambda: call(value, shapes, starts, locations, weights, step), options.device)
               for _ in range(options.repeats + 1)]  # fmt: skip
    return statistics.median(seconds[1:])


def inference(options: argparse.Namespace) -> None:
    """Measure images/s at each batch size, in float32 and half precision, eager and compiled."""
    for compiled in (False, True):
        for amp in ("auto", "off"):
            for batch in options.batches:
                emit_case(options, batch, amp, compiled, train=False)


def training(options: argparse.Namespace) -> None:
    """The same for training steps."""
    for compiled in (False, True):
        for batch in options.batches:
            emit_case(options, batch, "auto", compiled, train=True)


def emit_case(options: argparse.Namespace, batch: int, amp: str, compiled: bool, train: bool) -> None:
    """Print median seconds, images/s and memory of one case, or that it ran out of memory."""
    from dinocore.benchmark import Case, measure
    from dinocore.presets import load_config

    height, width = map(int, options.size.split("x"))
    facts = {"batch": batch, "amp": amp, "compiled": compiled, "train": train}
    case = Case(load_config(options.preset), (height, width), batch, train, "auto", amp, torch.device(options.device),
                objects=10, repeats=options.repeats, compiled=compiled)  # fmt: skip
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        started = time.perf_counter()
        found = measure(case)
        emit(**facts, median_s=found.latency_p50_s, images_per_s=found.images_per_s, precision=found.precision,
             peak_memory_mb=found.peak_memory_mb, whole_s=time.perf_counter() - started)  # fmt: skip
    except torch.OutOfMemoryError:
        emit(**facts, out_of_memory=True)


def two_ranks(options: argparse.Namespace) -> None:
    """Measure the speed of `dino train` on one and on two devices."""
    if options.device == "cuda" and torch.cuda.device_count() < 2:
        emit(skipped=f"{torch.cuda.device_count()} device")
        return
    dino = [sys.executable, "-m", "dinocli"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        subprocess.run(
            [*dino, "sample-data", data, "--num-images", "64"], check=True, stdout=sys.stderr, cwd=HERE.parent
        )
        for ranks in (1, 2):
            out = Path(folder) / f"run{ranks}"
            command = [*dino, "train", "--preset", options.preset, "--data", data, "--output-dir", out, "--epochs", "1",
                       "--batch-size", "4", "--gpus", ranks, "--device", options.device,
                       "--set", "model.backbone_weights=none", "--set", "model.frozen_stages=-1"]  # fmt: skip
            subprocess.run([*map(str, command)], check=True, stdout=sys.stderr, stderr=sys.stderr, cwd=HERE.parent)
            lines = (out / "metrics.jsonl").read_text().splitlines()
            steps = [row["seconds"] for row in map(json.loads, lines) if "seconds" in row]
            emit(ranks=ranks, batch=4, images_per_s=4 / statistics.median(steps[len(steps) // 3 :]))


def tensorrt(options: argparse.Namespace) -> None:
    """Compare engines built from our ONNX files, with standard operators and with the plug-in, with ONNX Runtime."""
    if importlib.util.find_spec("tensorrt") is None:
        emit(skipped="TensorRT is not installed")
        return
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        file, with_plugin, image = (Path(folder) / name for name in ("tiny.onnx", "plugin.onnx", "image.png"))
        command = [sys.executable, "-m", "dinocli", "export", "bundled", "--format", "onnx", "--pixels", "float32"]
        for out, option in ((file, []), (with_plugin, ["--tensorrt-plugin"])):
            subprocess.run([*command, *option, "--out", out], check=True, stdout=sys.stderr, cwd=HERE.parent)
        Image.effect_noise((320, 240), 64).convert("RGB").save(image)
        for option in ([], ["--plugin", with_plugin], ["--fp16"], ["--fp16", "--plugin", with_plugin]):
            check = [sys.executable, HERE / "tensorrt_check.py", file, "--image", image, *option]
            result = subprocess.run([*map(str, check)], capture_output=True, text=True)
            how = ("fp16" if "--fp16" in option else "float32") + (", plug-in" if with_plugin in option else "")
            emit(engine=how, exit_code=result.returncode, summary=(result.stdout or result.stderr).strip()[-300:])


PARTS = {part.__name__: part for part in (tests, operation, inference, training, two_ranks, tensorrt)}

if __name__ == "__main__":
    main()
