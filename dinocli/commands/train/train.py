"""`dino train`: start or resume a run."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from dinocore.config import Config
from dinocore.errors import CheckpointError, ConfigError
from dinocore.evaluate.backends import choose_backend
from dinocore.presets import load_config, read_settings
from dinocore.system.files import check_writable
from dinocore.train.run.lock import RunLock
from dinocore.train.run.sinks import check_trackers

from ...completion import preset_names
from ...console import say, warn
from ...options import (
    DATA_FORMATS,
    VAL_FRACTION,
    Amp,
    ConfigFile,
    Device,
    Overrides,
    check_data,
    check_preset,
    on_machine,
)
from ...progress import watching
from ...signals import StopRequest
from ...start import resume_collection
from .view import TrainingView, show_expectation

if TYPE_CHECKING:
    import torch

    from dinocore.system.processes import SingleProcess
    from dinocore.train.context import RunContext
    from dinocore.train.state import TrainState

START, RECIPE, RUN = "Start from", "Recipe", "Run folder"  # panels of --help
start, recipe, in_run = (partial(typer.Option, rich_help_panel=panel) for panel in (START, RECIPE, RUN))


def train(
    preset: Annotated[
        str | None,
        start(
            "--preset",
            "-p",
            callback=check_preset,
            help="See `dino presets`; default: the weights' own, or else tiny.",
            autocompletion=preset_names,
        ),
    ] = None,
    data: Annotated[Path | None, start("--data", callback=check_data, help=DATA_FORMATS)] = None,
    val_fraction: Annotated[float | None, start(metavar="0…1", help=VAL_FRACTION)] = None,
    output_dir: Annotated[Path | None, in_run("--output-dir", help="Run folder; default: runs/DATE-TIME.")] = None,
    epochs: Annotated[
        int | None, recipe(help="Passes over the training images; learning rate drops move in proportion.")
    ] = None,
    batch_size: Annotated[
        str | None,
        recipe(
            metavar="N|auto",
            help="Images per step, over all ranks; auto: the preset's batch, in the largest micro-batches that fit.",
        ),
    ] = None,
    lr: Annotated[float | None, recipe(help="Learning rate of everything but the backbone.")] = None,
    weights: Annotated[
        str | None, start(help="Weights to start from: a file, a run, a name; classes are carried over by name.")
    ] = None,
    freeze: Annotated[
        list[str], start(help="Part of the model to freeze: backbone, neck, encoder, …; repeatable.")
    ] = [],
    resume: Annotated[str | None, in_run(metavar="auto|PATH", help="Continue a run from a checkpoint.")] = None,
    overwrite: Annotated[bool, in_run(help="Start a new run in a folder that is not empty.")] = False,
    allow_data_change: Annotated[bool, in_run(help="Continue even if the annotations have changed.")] = False,
    save_every: Annotated[
        str | None,
        in_run(metavar="N|Nm", help="Also save every N steps or N minutes, not only after each epoch; default: 10m."),
    ] = None,
    patience: Annotated[int | None, recipe(help="Stop after this many evaluations without a better AP.")] = None,
    device: Device = "auto",
    gpus: Annotated[int, on_machine(min=1, help="Ranks, one per GPU; with --device cpu, on the CPU.")] = 1,
    dry_run: Annotated[
        bool, in_run(help="Check the data, and try the largest step, an evaluation and a save, without starting a run.")
    ] = False,
    deterministic: Annotated[bool, recipe(help="Refuse nondeterministic operations.")] = False,
    seed: Annotated[int | None, recipe(help="Random seed.")] = None,
    workers: Annotated[int | None, on_machine(help="Data loading workers.")] = None,
    amp: Amp = "",
    config: ConfigFile = None,
    overrides: Overrides = [],
) -> None:
    """Train on your data, or, without --data, on images that dino draws itself.

    Example: dino train --preset tiny --data my-data --output-dir runs/mine
    """
    flags = {
        "data.path": None if data is None else str(data.expanduser().absolute()),
        "data.workers": workers,
        "data.val_fraction": val_fraction,
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
    flags = {key: value for key, value in flags.items() if value is not None}
    for change in overrides:
        if (key := change.partition("=")[0].strip()) in flags:
            raise ConfigError(f"`{key}` is set twice, by its option and by --set {change}; drop one")
    # TOML strings are written like JSON strings
    toml = {key: json.dumps(value, ensure_ascii=False) for key, value in flags.items()}
    changes = [*overrides, *(f"{key}={value}" for key, value in toml.items())]
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        from ...launch import launch

        raise typer.Exit(launch(gpus, sys.argv[1:]))
    stop = StopRequest(quiet=os.environ.get("RANK", "0") != "0")
    with stop.listening():  # torch takes seconds to import
        request = TrainRequest(preset, config, changes, output_dir, resume, overwrite, allow_data_change, device, stop)
        (try_run if dry_run else run_training)(request)


def _batch_size(text: str | None) -> dict[str, object]:
    if text == "auto":
        return {"train.micro_batch_size": "probe"}
    if text is not None and not text.isdigit():
        raise ConfigError(f"--batch-size {text} is not valid; it must be a number of images, or auto")
    return {} if text is None else {"train.batch_size": int(text)}


def _save_every(text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or unit not in ("", "m"):
        raise ConfigError(f"--save-every {text} is not valid; it must be steps, such as 500, or minutes, such as 10m")
    if unit:
        return {"train.save_every_minutes": float(number)}
    return {"train.save_every_steps": int(number), "train.save_every_minutes": 0.0}


RUNS = Path("runs")


class TrainRequest(NamedTuple):
    """The command-line options."""

    preset: str | None
    file: Path | None  # a settings file that overrides the preset
    changes: list[str]
    run: Path | None
    resume: str | None  # `auto`, a checkpoint, or a run folder
    overwrite: bool
    allow_data_change: bool
    device: str
    stop: StopRequest


def run_training(request: TrainRequest) -> None:
    """Train, and show the progress."""
    from dinocore.system.processes import join_ranks
    from dinocore.train.failures.memory import with_probed_size
    from dinocore.train.loop import train

    with join_ranks(request.device) as (device, group):
        locks: list[RunLock] = []
        try:
            context, state = (new_run if request.resume is None else resumed_run)(request, device, group, locks)
            request.stop.running = True
            context = with_probed_size(context, state)
            resume_collection()
            if not group.main:
                for _ in train(context, state):
                    pass
                return
            with TrainingView(context) as view:
                for event in train(context, state):
                    view.show(event)
        finally:
            for lock in locks:
                lock.release()


def new_run(
    request: TrainRequest, device: torch.device, group: SingleProcess, locks: list[RunLock]
) -> tuple[RunContext, TrainState]:
    """Check everything that can be checked before the first step, then create the run folder."""
    from dinocore.data.shared import open_shared_dataset
    from dinocore.train.context import RunContext
    from dinocore.train.run.folder import make_new_run, make_run, prepare_run, write_config
    from dinocore.train.setup import fresh_state

    config, run = group.on_main(lambda: checked(request))
    data = open_shared_dataset(config.data, group)
    config = config.replace("model.num_classes", len(data.train.categories))
    state = fresh_state(config, data.train.categories, device, group)
    if group.main and request.preset is None and config.train.weights not in ("", "bundled"):
        say(f"model and recipe from {config.train.weights}; use --preset NAME for another recipe")

    def make_folder() -> Path:
        folder = make_run(run, "--output-dir ") if request.run else make_new_run(run)
        _lock(folder, locks)
        prepare_run(folder, request.overwrite, "--output-dir ")
        write_config(folder, config)
        return folder

    run = group.on_main(make_folder)
    return RunContext(config, data, run, device, request.stop, group), state


def checked(request: TrainRequest) -> tuple[Config, Path]:
    """The settings and the folder of a new run, checked before anything is read or written."""
    from dinocore.train.run.folder import check_run
    from dinocore.train.setup import check_start, settings_of

    run = request.run or RUNS / f"{datetime.now():%Y%m%d-%H%M%S}"
    config = load_config(request.preset or "tiny", request.changes, request.file)
    check_run(run, request.overwrite, "--output-dir ") if request.run else check_writable(run.parent)
    as_weights = request.preset is None and config.train.weights not in ("", "bundled")
    with watching() as watch:
        recipe = settings_of(config.train.weights, watch) if as_weights else load_config(request.preset or "tiny")
        if as_weights:
            config = load_config(recipe, request.changes, request.file)
        config = with_moved_drops(config, recipe, request)
        check_start(config, watch)
    choose_backend(config.eval.backend)
    check_trackers(config.train)
    return config, run


def with_moved_drops(config: Config, recipe: Config, request: TrainRequest) -> Config:
    """Scale the preset's learning rate drops with the number of epochs, unless drops were given.

    A settings file with both epochs and drops, as from `dino presets NAME`, is left as it is.
    """
    from dinocore.train.optim import scaled_drops

    in_file = read_settings(request.file).get("train", {}) if request.file else {}
    if {"lr_drop_epochs", "epochs"} <= in_file.keys():
        recipe = load_config(recipe, (), request.file)
    typed_drops = any(change.startswith("train.lr_drop_epochs") for change in request.changes)
    if config.train.lr_schedule == "cosine":
        if typed_drops:
            warn("train.lr_drop_epochs has no effect: the learning rate follows a cosine, which has no drops")
        return config
    given = typed_drops or ("lr_drop_epochs" in in_file and "epochs" not in in_file)
    if given or config.train.epochs == recipe.train.epochs:
        return config
    return config.replace("train.lr_drop_epochs", scaled_drops(recipe.train, config.train.epochs))


def _lock(run: Path, locks: list[RunLock]) -> None:
    lock = RunLock(run)
    if left := lock.take():
        warn(f"an earlier run in {run}, {left}, was killed")
    locks.append(lock)


def resumed_run(
    request: TrainRequest, device: torch.device, group: SingleProcess, locks: list[RunLock]
) -> tuple[RunContext, TrainState]:
    """Continue a run with its own config and the given changes."""
    from dinocore.data.shared import open_shared_dataset
    from dinocore.train.context import RunContext
    from dinocore.train.run.checkpoint_folder import manifest_of
    from dinocore.train.setup import check_same_run, fresh_state, resumed_state

    run, config, checkpoint = group.on_main(lambda: _find_checkpoint(request, locks))
    choose_backend(config.eval.backend)
    data = open_shared_dataset(config.data, group)
    if checkpoint is None:
        state = fresh_state(config, data.train.categories, device, group)
    else:
        check_same_run(run, manifest_of(checkpoint), config, data, request.allow_data_change)
        state = resumed_state(checkpoint, config, device, group)
    group.on_main(lambda: _resume(run, config, checkpoint))
    return RunContext(config, data, run, device, request.stop, group), state


def _find_checkpoint(request: TrainRequest, locks: list[RunLock]) -> tuple[Path, Config, Path | None]:
    """The run, its settings, and the step to continue from."""
    from dinocore.train.run.folder import NEWEST, find_checkpoint, find_run, run_config
    from dinocore.train.setup import changed_settings

    run, name = request.run, request.resume or NEWEST
    if name != NEWEST:
        run, name = _named_run(Path(name), run)
    run = run or find_run(RUNS, "config.toml")
    if run is None:
        raise CheckpointError(f"no run in {RUNS}/ to continue; give one with --output-dir")
    if request.preset is not None:
        warn(f"--preset {request.preset} is ignored: a resumed run keeps the settings in {run}/config.toml")
    before = run_config(run)
    config = load_config(run / "config.toml", request.changes, request.file)
    config = with_moved_drops(config, before, request)
    for change in changed_settings(run, before, config):
        warn(f"changed since the run started: {change}")
    check_trackers(config.train)
    _lock(run, locks)
    checkpoint, damaged = find_checkpoint(run, name)
    for text in damaged:
        warn(text)
    return run, config, checkpoint


def _resume(run: Path, config: Config, checkpoint: Path | None) -> None:
    from dinocore.train.run.folder import branch_off, write_config

    for text in branch_off(run, checkpoint):
        warn(text)
    write_config(run, config)


def _named_run(named: Path, run: Path | None) -> tuple[Path, str]:
    """The run, and the checkpoint or `auto`, for `--resume PATH`, where PATH may also be a run folder."""
    from dinocore.train.run.folder import NEWEST

    if (named / "config.toml").is_file():
        if run is not None and run.absolute() != named.absolute():
            warn(f"--output-dir {run} is ignored: --resume {named} continues that run in its own folder")
        return named, NEWEST
    if (named / "checkpoints").is_dir():
        raise CheckpointError(f"the run {named} has no config.toml; restore it, or start a new run from its weights")
    if not named.is_dir():
        raise CheckpointError(f"no checkpoint {named}; give --resume RUN or RUN/checkpoints/step-N, or auto")
    return run or named.absolute().parent.parent, str(named)


def try_run(request: TrainRequest) -> None:
    """Dry run: do everything that a new run does once, and print what to expect."""
    from dinocore.data.loaders import steps_per_epoch
    from dinocore.data.shared import open_shared_dataset
    from dinocore.system.processes import join_ranks
    from dinocore.train.context import RunContext, describe, exceeded_limits
    from dinocore.train.dry_run import dry_run
    from dinocore.train.failures.memory import with_probed_size
    from dinocore.train.setup import fresh_state

    if request.resume is not None:
        raise ConfigError("--dry-run only works for a new run; drop --resume")
    with join_ranks(request.device) as (device, group):
        config, run = group.on_main(lambda: checked(request))
        found = open_shared_dataset(config.data, group)
        config = config.replace("model.num_classes", len(found.train.categories))
        state = fresh_state(config, found.train.categories, device, group)
        context = RunContext(config, found, run, device, request.stop, group)
        context = with_probed_size(context, state)
        if group.main:
            facts = describe(context, state, steps_per_epoch(len(found.train.image_ids), config.train.batch_size))
            for key, value in facts.items():
                say(f"{key:<12}{value}")
            for limit in exceeded_limits(config, found):
                warn(limit)
            for note in found.notes:
                say(f"note: {note}")
        expected = dry_run(context, state)
        if group.main:
            show_expectation(expected)
