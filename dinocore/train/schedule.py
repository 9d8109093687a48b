"""What is due after which optimizer step, and which settings a resumed run may change."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..config import Config, TrainConfig
from ..errors import ConfigError

FIXED = ("model", "loss", "train.batch_size", "train.seed", "train.freeze", "train.weights")  # what makes it that run


class Plan(NamedTuple):
    """What is due after which optimizer step; steps and epochs count from 1."""

    per_epoch: int  # optimizer steps
    config: TrainConfig

    @property
    def total(self) -> int:
        """All optimizer steps of the run."""
        return self.config.epochs * self.per_epoch

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to."""
        return -(-step // self.per_epoch)

    def evaluates_after(self, step: int) -> bool:
        """At the end of every few epochs, and of the last one."""
        epoch = self.epoch(step)
        due = epoch % self.config.eval_every_epochs == 0 or epoch == self.config.epochs
        return due and step % self.per_epoch == 0

    def saves_after(self, step: int) -> bool:
        """At the end of every epoch, and every few steps if the config says so."""
        every = self.config.save_every_steps
        return step % self.per_epoch == 0 or (every > 0 and step % every == 0)

    def over(self, progress: dict[str, Any]) -> str:
        """Why there is nothing left to do; empty while there is."""
        if progress["due_evaluation"]:
            return ""
        if 0 < self.config.patience <= progress["worse"]:
            better = f"step {progress['best_step']} was the best; {progress['worse']} evaluations since were not better"
            return f"ended early: {better} (train.patience = {self.config.patience})"
        if progress["step"] >= self.total:
            epochs = self.config.epochs
            return f"epoch {epochs} of {epochs} is done; go on with --resume auto --epochs {2 * epochs}"
        return ""


class SaveClock:
    """Whether a save is due by the time that has passed, whatever the clock on the wall says."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """A save was tried."""
        self.since = time.monotonic()

    def due(self) -> bool:
        """Never, if minutes are 0."""
        return 0 < self.seconds <= time.monotonic() - self.since


def changes(before: Config, now: Config) -> list[str]:
    """What a resumed run does otherwise than it began, in words.

    Raises:
        ConfigError: a setting is among them that makes it another run.
    """
    old, new = dict(_leaves(before.model_dump())), dict(_leaves(now.model_dump()))
    differing = [key for key in new if old[key] != new[key]]
    refused = [key for key in differing if any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED)]
    if refused:
        shown = ", ".join(f"{key} = {new[key]!r} (it is {old[key]!r})" for key in refused)
        raise ConfigError(
            f"a resumed run cannot change {shown}; all settings but those of {', '.join(FIXED)} can be changed. "
            "Start a new run from its weights: --weights RUN/best.safetensors"
        )
    return [f"{key}: {old[key]!r} becomes {new[key]!r}" for key in differing]


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
