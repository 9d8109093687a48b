from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinocore.errors import ConfigError
from dinocore.system.files import check_file
from dinocore.words import counted

from ..completion import choices
from ..console import print_json, say, stdout
from ..options import ConfigFile, Device, Json, ModelOf, Overrides, Precision, preset_option

if TYPE_CHECKING:
    from dinocore.benchmark import Measurement
    from dinocore.export.detector import Speed

PRESET, SIZE, OBJECTS = "tiny", "320x427", 10


def benchmark(
    preset: Annotated[str | None, preset_option(PRESET)] = None,
    weights: ModelOf = None,
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of the images.")] = SIZE,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 1,
    train: Annotated[bool, typer.Option(help="Measure a training step instead of inference.")] = False,
    ops: Annotated[
        str,
        typer.Option(
            help="auto, or reference: plain PyTorch, nothing tuned.", autocompletion=choices("auto", "reference")
        ),
    ] = "auto",
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the model with torch.compile, as in `dino predict --compile`.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls, after two warm-up calls.")] = 5,
    objects: Annotated[int, typer.Option(min=0, help="Objects per image, with --train.")] = OBJECTS,
    profile: Annotated[
        Path | None, typer.Option(help="Write a trace of one call to this file, and list the slowest operations.")
    ] = None,
    device: Device = "auto",
    amp: Precision = "auto",
    config: ConfigFile = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Measure speed, memory and FLOPs of a model on this machine; without --weights, a preset's with random weights.

    Example: dino benchmark --preset r50-4scale --size 800x1333
    """
    from dinocore.benchmark import Case, measure
    from dinocore.benchmark import profile as run_profile
    from dinocore.presets import load_config
    from dinocore.system.device import check_compiler, pick_device, pick_precision

    from ..weights_option import find_weights, is_exported, model_of

    _check(ops, profile)
    if amp == "int8" and (train or ops != "auto"):
        raise ConfigError(
            "int8 only works for inference, without the reference operations; drop --train and --ops reference"
        )
    if weights is not None and is_exported(path := find_weights(weights)):
        others = [preset, train, compile, profile, config, overrides]
        others += [ops != "auto", size != SIZE, amp != "auto", objects != OBJECTS]
        if any(others) or device not in ("auto", "cpu"):
            raise ConfigError(
                f"{path} is an exported file with its own canvas, on the CPU; "
                "only --batch, --repeats and --json go with it"
            )
        _benchmark_file(path, batch, repeats, json)
        return
    source, file = (preset or PRESET, None) if weights is None else model_of(weights, preset)
    settings, place = load_config(source, overrides, config), pick_device(device)
    pick_precision(amp, place)
    if compile:
        check_compiler(place, "--compile")
    case = Case(settings, _size(size), batch, train, ops, amp, place, objects, repeats, file, compile)
    found = measure(case, lambda done: say(f"{done} of {repeats}") if repeats > 1 and not json else None)
    top = [] if profile is None else run_profile(case, profile)
    name = weights or preset or PRESET
    facts = {
        "weights" if weights else "preset": name,
        "size": size,
        "batch": batch,
        "train": train,
        "ops": ops,
        "compile": compile,
    }
    if json:
        operations = [{"name": name, "self_seconds": seconds, "calls": calls} for name, seconds, calls in top]
        print_json(facts | found._asdict() | ({"operations": operations} if top else {}))
        return
    work = ("training step" if train else "inference") + (", compiled" if compile else "")
    _show(name, work, repeats, facts, found, top)


def _show(name: str, work: str, repeats: int, facts: dict[str, Any], found: "Measurement", top: list) -> None:
    shape = f"{facts['batch']} x {facts['size']}"
    where = f"{found.device}, {counted(found.threads, 'thread')}"
    stdout.print(f"{name}, {work}, {shape}, {where}, {found.precision}", markup=False)
    stdout.print(f"parameters   {found.parameters / 1e6:.1f} M")
    stdout.print(f"work         {found.flops / 1e9:.1f} GFLOP (2 per multiply-add)")
    _show_speed(found, repeats)
    stdout.print(f"peak memory  {found.peak_memory_mb:.0f} MB")
    for operation, seconds, calls in top:
        stdout.print(f"{seconds:9.4f} s  {calls:6} x  {operation}")


def _benchmark_file(path: Path, batch: int, repeats: int, json: bool) -> None:
    """Measure the speed of an exported file on its canvas."""
    from dinocore.export.detector import FileDetector, measure_file

    detector = FileDetector(path)
    found, info = measure_file(detector, batch, repeats), detector.runtime.info
    height, width = info["canvas"]
    facts = {"weights": str(path), "size": f"{height}x{width}", "batch": batch, "precision": info["precision"]}
    if json:
        print_json(facts | found._asdict())
        return
    stdout.print(f"{path}, inference, {batch} x {height}x{width}, {info['precision']}", markup=False)
    _show_speed(found, repeats)


def _show_speed(found: "Measurement | Speed", repeats: int) -> None:
    latency = f"{found.latency_p50_s:.3f} s median, {found.latency_p90_s:.3f} s p90"
    stdout.print(f"latency      {latency}, {counted(repeats, 'call')}")
    stdout.print(f"throughput   {found.images_per_s:.2f} images/s")


def _check(ops: str, profile: Path | None) -> None:
    if ops not in ("auto", "reference"):
        raise ConfigError(f"--ops {ops} is not known; choose auto or reference")
    if profile is not None:
        check_file("--profile", profile, ".json")


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ConfigError(f"--size {text} is not a size; write height x width, such as 480x640")
    return int(height), int(width)
