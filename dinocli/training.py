"""What `dino train` does between reading its arguments and showing what happens."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinocore.config import Config
from dinocore.data.dataset import open_dataset
from dinocore.device import pick_device
from dinocore.errors import CheckpointError, ConfigError
from dinocore.evaluate.backends import choose_backend
from dinocore.presets import load_config
from dinocore.train.loop import Job, train
from dinocore.train.run import NEWEST, check_run, find_checkpoint, find_run, prepare_run, run_config, write_config
from dinocore.train.start import check_start, fresh_state, resumed_state, settings_of
from dinocore.train.state import TrainState

from .console import say, warn
from .fetching import watching
from .training_view import TrainingView

RUNS = Path("runs")


class StopRequest:
    """Remembers that a signal asked for an end; a second Ctrl-C ends at once."""

    def __init__(self):
        self.exit_code = 0

    def __call__(self) -> int:
        return self.exit_code

    def ask(self, number: int, frame: object) -> None:
        """The handler of signals."""
        if self.exit_code and number == signal.SIGINT:
            sys.exit(130)
        self.exit_code = 130 if number == signal.SIGINT else 143
        warn("finishing this step, then saving; press Ctrl-C again to leave at once")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGUSR1 within the block."""
        signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        before = {number: signal.signal(number, self.ask) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def new_run(
    preset: str | None, file: Path | None, changes: list[str], run: Path, device: str, overwrite: bool
) -> tuple[Job, TrainState]:
    """Check everything that can be checked before the first step, then make the folder."""
    config = load_config(preset or "tiny", changes, file)
    check_run(run, overwrite)
    as_weights = preset is None and config.train.weights not in ("", "bundled")
    with watching() as watch:
        if as_weights:
            config = load_config(settings_of(config.train.weights, watch), changes, file)
        check_start(config, watch)
    place = pick_device(device)
    choose_backend(config.eval.backend)
    data = open_dataset(config.data)
    config = with_classes(config, len(data.train.categories))
    state = fresh_state(config, data.train.categories, place)
    if as_weights:
        say(f"model and recipe: those of {config.train.weights}; --preset NAME for another recipe")
    prepare_run(run, overwrite)
    write_config(run, config)
    return Job(config, data, run, place), state


def resumed_run(
    wanted: str, run: Path | None, preset: str | None, changes: list[str], device: str
) -> tuple[Job, TrainState]:
    """Continue a run; its own config counts, with the changes that are given now."""
    if wanted != NEWEST:
        run, wanted = _named_run(Path(wanted), run)
    run = run or find_run(RUNS, "config.toml")
    if run is None:
        raise CheckpointError(f"there is no run in {RUNS}/ to continue; name one with --output-dir")
    if preset is not None:
        warn(f"--preset {preset} is ignored: a resumed run keeps the settings in {run}/config.toml")
    config = run_config(run)
    config = load_config(run / "config.toml", changes) if changes else config
    place = pick_device(device)
    choose_backend(config.eval.backend)
    checkpoint, damaged = find_checkpoint(run, wanted)
    for text in damaged:
        warn(text)
    data = open_dataset(config.data)
    if len(data.train.categories) != config.model.num_classes:
        raise ConfigError(f"the data has {len(data.train.categories)} classes, the run {config.model.num_classes}")
    if checkpoint is None:
        state = fresh_state(config, data.train.categories, place)
    else:
        state = resumed_state(checkpoint, config, place)
    return Job(config, data, run, place), state


def run_training(job: Job, state: TrainState) -> None:
    """Train and show it."""
    stop = StopRequest()
    job = job._replace(stop=stop)
    view = TrainingView(job)
    with stop.listening(), view:
        for event in train(job, state):
            view.show(event)


def with_classes(config: Config, num_classes: int) -> Config:
    """The config for data with so many classes."""
    return config.model_copy(update={"model": config.model.model_copy(update={"num_classes": num_classes})})


def _named_run(named: Path, run: Path | None) -> tuple[Path, str]:
    """The run, and the checkpoint or `auto`, of `--resume PATH`, which may be the folder of a run too."""
    if (named / "config.toml").is_file():
        return named, NEWEST
    if not named.is_dir():
        raise CheckpointError(f"there is no checkpoint {named}; give --resume RUN or RUN/checkpoints/step-N, or auto")
    return run or named.absolute().parent.parent, str(named)
