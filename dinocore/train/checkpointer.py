"""Save checkpoints during a run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DinoError, EnvironmentFault
from ..words import typed
from .context import RunContext
from .events import Saved, Warned
from .run.checkpoint_folder import list_checkpoints, prune_checkpoints
from .run.metrics_log import MetricsLogger, NoLogger
from .schedule import SaveClock
from .state import TrainState, rng_state, save_checkpoint


class Checkpointer:
    """Writes the checkpoints of a run, and reports failures."""

    def __init__(self, context: RunContext, state: TrainState, logger: MetricsLogger | NoLogger):
        self.context, self.state, self.logger = context, state, logger
        self.folder = context.folder / "checkpoints"
        self.resumed = state.progress.step
        self.clock = SaveClock(context.config.train.save_every_minutes)

    def due(self) -> bool:
        """Whether a save is due by the clock of rank 0."""
        return self.context.group.main and self.clock.due()

    def save(self, must: bool = False) -> Iterator[Saved | Warned]:
        """Save the state of all ranks.

        Args:
            must: whether a failure ends the run; otherwise it is a warning.

        Raises:
            EnvironmentFault: the checkpoint cannot be written, and `must` is set.
        """
        group, started = self.context.group, time.monotonic()
        rng_states = group.gather(rng_state())
        try:
            path = group.on_main(lambda: self._write(rng_states))
        except DinoError as error:  # on the other ranks: rank 0 failed
            if must:
                start = "" if list_checkpoints(self.folder) else ", which starts at the first step"
                what = (
                    f"{error}; free some disk space, then run dino train --resume {typed(self.context.folder)}{start}"
                )
                raise group.on_all_ranks(EnvironmentFault(what)) from None
            yield Warned(f"{error}; training continues")
        else:
            yield Saved(path, self.state.progress.step, time.monotonic() - started)
        finally:
            self.clock.restart()

    def _write(self, rng_states: list[dict[str, Any]]) -> Path:
        """Write a checkpoint and delete old ones.

        Raises:
            EnvironmentFault: it cannot be written.
        """
        config, progress = self.context.config, self.state.progress
        try:
            progress.log_bytes = self.logger.sync()
        except OSError as error:
            raise EnvironmentFault(f"metrics.jsonl cannot be written: {error.strerror}") from error
        path = save_checkpoint(self.folder, self.state, config, self.context.data.train.categories, rng_states)
        prune_checkpoints(self.folder, config.train.keep_checkpoints, {self.resumed, progress.best_step})
        return path
