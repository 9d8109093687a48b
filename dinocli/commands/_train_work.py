"""What `dino train` does between reading its arguments and showing what happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch

from dinocore.config import Config
from dinocore.data.dataset import open_dataset
from dinocore.errors import CheckpointError
from dinocore.evaluate.backends import choose_backend
from dinocore.presets import load_config
from dinocore.system.device import pick_device
from dinocore.system.files import check_writable
from dinocore.system.processes import SingleProcess, device_of_rank, joined
from dinocore.train.context import RunContext
from dinocore.train.failures.memory import with_probed_size
from dinocore.train.loop import train
from dinocore.train.optim import scaled_drops
from dinocore.train.run.checkpoint_folder import manifest_of
from dinocore.train.run.folder import (
    NEWEST,
    branch_off,
    check_run,
    find_checkpoint,
    find_run,
    make_new_run,
    make_run,
    prepare_run,
    run_config,
    write_config,
)
from dinocore.train.run.lock import RunLock
from dinocore.train.setup import (
    changed_settings,
    check_same_data,
    check_start,
    fresh_state,
    resumed_state,
    settings_of,
)
from dinocore.train.state import TrainState

from ..console import say, warn
from ..progress import watching
from ..signals import StopRequest
from ._train_view import TrainingView

RUNS = Path("runs")


class Asked(NamedTuple):
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


class Place(NamedTuple):
    """Where this process computes, and with whom."""

    device: torch.device
    group: SingleProcess


@contextmanager
def place(device: str) -> Iterator[Place]:
    """Meet the other processes, if there are any."""
    chosen = pick_device(device_of_rank(device))
    with joined(chosen) as group:
        yield Place(chosen, group)


def run_training(asked: Asked) -> None:
    """Train and show it."""
    with place(asked.device) as here:
        locks: list[RunLock] = []
        try:
            context, state = (new_run if asked.resume is None else resumed_run)(asked, here, locks)
            asked.stop.running = True
            context = with_probed_size(context, state)
            if not here.group.main:
                for _ in train(context, state):
                    pass
                return
            with TrainingView(context) as view:
                for event in train(context, state):
                    view.show(event)
        finally:
            for lock in locks:
                lock.release()


def new_run(asked: Asked, here: Place, locks: list[RunLock]) -> tuple[RunContext, TrainState]:
    """Check everything that can be checked before the first step, then make the folder."""
    config, run = here.group.on_main(lambda: checked(asked))
    data = here.group.main_first(lambda: open_dataset(config.data))
    config = config.replace("model.num_classes", len(data.train.categories))
    state = fresh_state(config, data.train.categories, here.device, here.group)
    if here.group.main and asked.preset is None and config.train.weights not in ("", "bundled"):
        say(f"model and recipe: those of {config.train.weights}; --preset NAME for another recipe")

    def make_folder() -> Path:
        folder = make_run(run) if asked.run else make_new_run(run)
        _lock(folder, locks)
        prepare_run(folder, asked.overwrite)
        write_config(folder, config)
        return folder

    run = here.group.on_main(make_folder)
    return RunContext(config, data, run, here.device, asked.stop, here.group), state


def checked(asked: Asked) -> tuple[Config, Path]:
    """The settings and the folder of a new run, before anything is read or written."""
    run = asked.run or RUNS / f"{datetime.now():%Y%m%d-%H%M%S}"
    config = load_config(asked.preset or "tiny", asked.changes, asked.file)
    check_run(run, asked.overwrite) if asked.run else check_writable(run.parent)
    as_weights = asked.preset is None and config.train.weights not in ("", "bundled")
    with watching() as watch:
        recipe = settings_of(config.train.weights, watch) if as_weights else load_config(asked.preset or "tiny")
        if as_weights:
            config = load_config(recipe, asked.changes, asked.file)
        config = with_moved_drops(config, recipe, asked)
        check_start(config, watch)
    choose_backend(config.eval.backend)
    return config, run


def with_moved_drops(config: Config, recipe: Config, asked: Asked) -> Config:
    """The config with the recipe's drops of the learning rate in proportion to the epochs, unless they are given."""
    given = [*asked.changes, *([asked.file.read_text(encoding="utf-8-sig")] if asked.file else [])]
    if config.train.epochs == recipe.train.epochs or any("lr_drop_epochs" in text for text in given):
        return config
    return config.replace("train.lr_drop_epochs", scaled_drops(recipe.train, config.train.epochs))


def _lock(run: Path, locks: list[RunLock]) -> None:
    lock = RunLock(run)
    if left := lock.take():
        warn(f"an earlier run in {run}, {left}, was killed")
    locks.append(lock)


def resumed_run(asked: Asked, here: Place, locks: list[RunLock]) -> tuple[RunContext, TrainState]:
    """Continue a run with its own config and the changes that are given now."""
    run, config, checkpoint = here.group.on_main(lambda: _found(asked, locks))
    choose_backend(config.eval.backend)
    data = here.group.main_first(lambda: open_dataset(config.data))
    if checkpoint is None:
        state = fresh_state(config, data.train.categories, here.device, here.group)
    else:
        check_same_data(manifest_of(checkpoint), data, asked.allow_data_change)
        state = resumed_state(checkpoint, config, here.device, here.group)
    here.group.on_main(lambda: _go_on(run, config, checkpoint))
    return RunContext(config, data, run, here.device, asked.stop, here.group), state


def _found(asked: Asked, locks: list[RunLock]) -> tuple[Path, Config, Path | None]:
    """The run, what is asked of it now, and where it goes on."""
    run, wanted = asked.run, asked.resume or NEWEST
    if wanted != NEWEST:
        run, wanted = _named_run(Path(wanted), run)
    run = run or find_run(RUNS, "config.toml")
    if run is None:
        raise CheckpointError(f"there is no run in {RUNS}/ to continue; name one with --output-dir")
    if asked.preset is not None:
        warn(f"--preset {asked.preset} is ignored: a resumed run keeps the settings in {run}/config.toml")
    before = run_config(run)
    config = load_config(run / "config.toml", asked.changes, asked.file)
    for change in changed_settings(before, config):
        warn(f"changed since the run started: {change}")
    _lock(run, locks)
    checkpoint, damaged = find_checkpoint(run, wanted)
    for text in damaged:
        warn(text)
    return run, config, checkpoint


def _go_on(run: Path, config: Config, checkpoint: Path | None) -> None:
    for text in branch_off(run, checkpoint):
        warn(text)
    write_config(run, config)


def _named_run(named: Path, run: Path | None) -> tuple[Path, str]:
    """The run, and the checkpoint or `auto`, of `--resume PATH`, which may be the folder of a run too."""
    if (named / "config.toml").is_file():
        return named, NEWEST
    if not named.is_dir():
        raise CheckpointError(f"there is no checkpoint {named}; give --resume RUN or RUN/checkpoints/step-N, or auto")
    return run or named.absolute().parent.parent, str(named)
