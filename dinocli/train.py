import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from .options import Amp, ConfigFile, Data, Device, Overrides


def train(
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", help="See `dino presets`; default: the weights' own, or else tiny.")
    ] = None,
    data: Data = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Run folder; default: runs/DATE-TIME.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often each picture is seen.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per optimizer step, in all.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of everything but the backbone.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights to start from: a file, a run, a name; classes are carried over by name.")
    ] = None,
    freeze: Annotated[
        list[str], typer.Option(help="Part that stays as it is: backbone, neck, encoder, …; repeatable.")
    ] = [],  # noqa: B006
    resume: Annotated[str | None, typer.Option(metavar="auto|PATH", help="Continue a run from a checkpoint.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Start anew in a folder that is not empty.")] = False,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Of all random choices.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read pictures.")] = None,
    amp: Amp = "",
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Train on your data, or, without --data, on pictures that dino draws itself."""
    flags = {
        "data.path": None if data is None else str(data.expanduser().absolute()),
        "data.workers": workers,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.weights": weights,
        "train.freeze": freeze or None,
        "train.seed": seed,
        "train.amp": amp or None,
    }
    changes = [*overrides, *(f"{key}={_toml(value)}" for key, value in flags.items() if value is not None)]
    run = output_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}"
    from .training import new_run, resumed_run, run_training

    if resume is None:
        job = new_run(preset, config, changes, run, device, overwrite)
    else:
        job = resumed_run(resume, output_dir, preset, changes, device)
    run_training(*job)


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # a TOML string is written as a JSON string is
