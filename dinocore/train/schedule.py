"""What is due after each optimizer step."""

import time
from typing import NamedTuple

from ..config import TrainConfig
from .state import Progress


class Schedule(NamedTuple):
    """What is due after each optimizer step; steps and epochs count from 1."""

    per_epoch: int  # optimizer steps
    config: TrainConfig

    @property
    def total(self) -> int:
        """The number of optimizer steps of the run."""
        return self.config.epochs * self.per_epoch

    @property
    def evaluations(self) -> int:
        """The number of evaluations of the run."""
        return -(-self.config.epochs // self.config.eval_every_epochs)

    def epoch(self, step: int) -> int:
        """The epoch of a step."""
        return -(-step // self.per_epoch)

    def evaluates_after(self, step: int) -> bool:
        """Whether to evaluate: every few epochs, and after the last one."""
        epoch = self.epoch(step)
        due = epoch % self.config.eval_every_epochs == 0 or epoch == self.config.epochs
        return due and step % self.per_epoch == 0

    def saves_after(self, step: int) -> bool:
        """Whether to save: after every epoch, and every few steps if configured."""
        every = self.config.save_every_steps
        return step % self.per_epoch == 0 or (every > 0 and step % every == 0)

    def over(self, progress: Progress) -> str:
        """Why the run is finished; empty if it is not."""
        if progress.due_evaluation:
            return ""
        if 0 < self.config.patience <= progress.evals_since_best:
            evaluations = f"{progress.evals_since_best} evaluations since have not been better"
            best = f"step {progress.best_step} was the best; {evaluations}"
            return f"stopped early: {best} (train.patience = {self.config.patience})"
        if progress.step >= self.total:
            epochs, done = self.config.epochs, self.epoch(progress.step)
            what = (
                f"epoch {done} of {epochs} is done"
                if done == epochs
                else f"{done} epochs are done, --epochs is {epochs}"
            )
            return f"{what}; to train longer, add --epochs {2 * done}"
        return ""


class SaveClock:
    """Tells whether a save is due, by a monotonic clock."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Record that a save was attempted."""
        self.since = time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed; never if it is 0."""
        return 0 < self.seconds <= time.monotonic() - self.since
