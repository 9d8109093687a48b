"""`dino train`: from arguments to a new or resumed run."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
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
from ...options import DATA_FORMATS, MACHINE, VAL_FRACTION, Amp, ConfigFile, Device, Overrides, check_data, check_preset
from ...progress import watching
from ...signals import StopRequest
from ...start import collect_as_usual
from .view import TrainingView, show_expectation

if TYPE_CHECKING:
    import torch

    from dinocore.system.processes import SingleProcess
    from dinocore.train.context import RunContext
    from dinocore.train.state import TrainState

START, RECIPE, RUN = "Start from", "Recipe", "Run folder"  # panels of --help

TrainingData = Annotated[
    Path | None, typer.Option("--data", callback=check_data, help=DATA_FORMATS, rich_help_panel=START)
]


def train(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            callback=check_preset,
            help="See `dino presets`; default: the weights' own, or else tiny.",
            rich_help_panel=START,
            autocompletion=preset_names,
        ),
    ] = None,
    data: TrainingData = None,
    val_fraction: Annotated[float | None, typer.Option(metavar="0…1", help=VAL_FRACTION, rich_help_panel=START)] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Run folder; default: runs/DATE-TIME.", rich_help_panel=RUN)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training images; learning rate drops move in proportion.", rich_help_panel=RECIPE
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Images per step, over all ranks; auto: the preset's batch, in the largest micro-batches that fit.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of everything but the backbone.", rich_help_panel=RECIPE)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: a file, a run, a name; classes are carried over by name.",
            rich_help_panel=START,
        ),
    ] = None,
    freeze: Annotated[
        list[str],
        typer.Option(
            help="Part of the model to freeze: backbone, neck, encoder, …; repeatable.", rich_help_panel=START
        ),
    ] = [],
    resume: Annotated[
        str | None, typer.Option(metavar="auto|PATH", help="Continue a run from a checkpoint.", rich_help_panel=RUN)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Start a new run in a folder that is not empty.", rich_help_panel=RUN)
    ] = False,
    allow_data_change: Annotated[
        bool, typer.Option(help="Continue even if the annotations have changed.", rich_help_panel=RUN)
    ] = False,
    save_every: Annotated[
        str | None,
        typer.Option(
            metavar="N|Nm",
            help="Also save every N steps or N minutes, not only after each epoch; default: 10m.",
            rich_help_panel=RUN,
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many evaluations without a better AP.", rich_help_panel=RECIPE)
    ] = None,
    device: Device = "auto",
    gpus: Annotated[
        int, typer.Option(min=1, help="Ranks, one per GPU; with --device cpu, on the CPU.", rich_help_panel=MACHINE)
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            help="Check the data, and try the largest step, an evaluation and a save, without starting a run.",
            rich_help_panel=RUN,
        ),
    ] = False,
    deterministic: Annotated[
        bool, typer.Option(help="Refuse nondeterministic operations.", rich_help_panel=RECIPE)
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Random seed.", rich_help_panel=RECIPE)] = None,
    workers: Annotated[int | None, typer.Option(help="Data loading workers.", rich_help_panel=MACHINE)] = None,
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
    changes = [*overrides, *(f"{key}={_toml(value)}" for key, value in flags.items())]
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


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # a TOML string is written as a JSON string is


RUNS = Path("runs")


class TrainRequest(NamedTuple):
    """What the command line says."""

    preset: str | None
    file: Path | None  # of settings over the preset's
    changes: list[str]
    run: Path | None
    resume: str | None  # auto, a checkpoint, or the folder of a run
    overwrite: bool
    allow_data_change: bool
    device: str
    stop: StopRequest


def run_training(request: TrainRequest) -> None:
    """Train and show it."""
    from dinocore.system.processes import join_ranks
    from dinocore.train.failures.memory import with_probed_size
    from dinocore.train.loop import train

    with join_ranks(request.device) as (device, group):
        locks: list[RunLock] = []
        try:
            context, state = (new_run if request.resume is None else resumed_run)(request, device, group, locks)
            request.stop.running = True
            context = with_probed_size(context, state)
            collect_as_usual()
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
    """Check everything that can be checked before the first step, then make the folder."""
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
    """The settings and the folder of a new run, before anything is read or written."""
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
    """The config with the recipe's drops of the learning rate in proportion to the epochs, unless they are given.

    A file that has both epochs and drops, as of `dino presets NAME`, is a recipe itself.
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
    """Continue a run with its own config and the changes that are given now."""
    from dinocore.data.shared import open_shared_dataset
    from dinocore.train.context import RunContext
    from dinocore.train.run.checkpoint_folder import manifest_of
    from dinocore.train.setup import check_same_run, fresh_state, resumed_state

    run, config, checkpoint = group.on_main(lambda: _found(request, locks))
    choose_backend(config.eval.backend)
    data = open_shared_dataset(config.data, group)
    if checkpoint is None:
        state = fresh_state(config, data.train.categories, device, group)
    else:
        check_same_run(manifest_of(checkpoint), config, data, request.allow_data_change)
        state = resumed_state(checkpoint, config, device, group)
    group.on_main(lambda: _go_on(run, config, checkpoint))
    return RunContext(config, data, run, device, request.stop, group), state


def _found(request: TrainRequest, locks: list[RunLock]) -> tuple[Path, Config, Path | None]:
    """The run, what is asked of it now, and where it goes on."""
    from dinocore.train.run.folder import NEWEST, find_checkpoint, find_run, run_config
    from dinocore.train.setup import changed_settings

    run, wanted = request.run, request.resume or NEWEST
    if wanted != NEWEST:
        run, wanted = _named_run(Path(wanted), run)
    run = run or find_run(RUNS, "config.toml")
    if run is None:
        raise CheckpointError(f"no run in {RUNS}/ to continue; give one with --output-dir")
    if request.preset is not None:
        warn(f"--preset {request.preset} is ignored: a resumed run keeps the settings in {run}/config.toml")
    before = run_config(run)
    config = load_config(run / "config.toml", request.changes, request.file)
    config = with_moved_drops(config, before, request)
    for change in changed_settings(before, config):
        warn(f"changed since the run started: {change}")
    check_trackers(config.train)
    _lock(run, locks)
    checkpoint, damaged = find_checkpoint(run, wanted)
    for text in damaged:
        warn(text)
    return run, config, checkpoint


def _go_on(run: Path, config: Config, checkpoint: Path | None) -> None:
    from dinocore.train.run.folder import branch_off, write_config

    for text in branch_off(run, checkpoint):
        warn(text)
    write_config(run, config)


def _named_run(named: Path, run: Path | None) -> tuple[Path, str]:
    """The run, and the checkpoint or `auto`, of `--resume PATH`, which may be the folder of a run too."""
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
    """Do everything that a new run does once, and say what to expect of it."""
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
