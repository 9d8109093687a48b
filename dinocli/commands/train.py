import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from dinocore.errors import ConfigError
from dinocore.system.parent import end_with_parent

from ..options import Amp, ConfigFile, Data, Device, Overrides


def train(
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", help="See `dino presets`; default: the weights' own, or else tiny.")
    ] = None,
    data: Data = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Run folder; default: runs/DATE-TIME.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often each picture is seen.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto", help="Pictures per optimizer step, in all; auto: the preset's, as many at once as fit."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of everything but the backbone.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights to start from: a file, a run, a name; classes are carried over by name.")
    ] = None,
    freeze: Annotated[
        list[str], typer.Option(help="Part that stays as it is: backbone, neck, encoder, …; repeatable.")
    ] = [],  # noqa: B006
    resume: Annotated[str | None, typer.Option(metavar="auto|PATH", help="Continue a run from a checkpoint.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Start anew in a folder that is not empty.")] = False,
    allow_data_change: Annotated[bool, typer.Option(help="Continue though the annotations have changed.")] = False,
    save_every: Annotated[
        str | None,
        typer.Option(metavar="N|Nm", help="Save every N steps or N minutes, besides after each epoch; default: 10m."),
    ] = None,
    patience: Annotated[int | None, typer.Option(help="End after so many evaluations without a better AP.")] = None,
    device: Device = "auto",
    gpus: Annotated[int, typer.Option(min=1, help="Processes, one per GPU; with --device cpu, on the CPU.")] = 1,
    dry_run: Annotated[
        bool, typer.Option(help="Check data, one largest step, one evaluation, one save; no run.")
    ] = False,
    deterministic: Annotated[bool, typer.Option(help="Refuse operations that may differ from run to run.")] = False,
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
        "train.lr": lr,
        "train.weights": weights,
        "train.freeze": freeze or None,
        "train.seed": seed,
        "train.amp": amp or None,
        "train.patience": patience,
        "train.deterministic": deterministic or None,
        **_batch_size(batch_size),
        **_save_every(save_every),
    }
    changes = [*overrides, *(f"{key}={_toml(value)}" for key, value in flags.items() if value is not None)]
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        from ..launch import launch

        raise typer.Exit(launch(gpus, sys.argv[1:]))
    from ..signals import StopRequest

    if "TORCHELASTIC_RUN_ID" in os.environ:  # the launcher, if it is killed, cannot pass that on
        end_with_parent(signal.SIGTERM)
    stop = StopRequest(quiet=os.environ.get("RANK", "0") != "0")
    with stop.listening():  # torch takes seconds to import
        from ._train_dry_run import dry_run_command
        from ._train_work import Asked, run_training

        asked = Asked(preset, config, changes, output_dir, resume, overwrite, allow_data_change, device, stop)
        (dry_run_command if dry_run else run_training)(asked)


def _batch_size(text: str | None) -> dict[str, object]:
    if text == "auto":
        return {"train.micro_batch_size": "probe"}
    if text is not None and not text.isdigit():
        raise ConfigError(f"--batch-size {text} cannot be used; it must be a number of pictures, or auto")
    return {} if text is None else {"train.batch_size": int(text)}


def _save_every(text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or unit not in ("", "m"):
        raise ConfigError(f"--save-every {text} cannot be used; it must be steps, such as 500, or minutes, such as 10m")
    if unit:
        return {"train.save_every_minutes": float(number)}
    return {"train.save_every_steps": int(number), "train.save_every_minutes": 0.0}


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # a TOML string is written as a JSON string is
