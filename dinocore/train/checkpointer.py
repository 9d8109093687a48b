"""Saving while a run goes on."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault
from .events import Saved, Warned
from .job import Job
from .run.checkpoint_folder import prune_checkpoints
from .run.metrics_log import Journal, NoJournal
from .schedule import SaveClock
from .state import Large, TrainState, collected, random_streams, save_checkpoint


class Keeper:
    """Writes the checkpoints of a run, and says so when it cannot."""

    def __init__(self, job: Job, state: TrainState, journal: Journal | NoJournal):
        self.job, self.state, self.journal = job, state, journal
        self.folder = job.run / "checkpoints"
        self.resumed = state.progress["step"]
        self.clock = SaveClock(job.config.train.save_every_minutes)

    def due(self) -> bool:
        """Whether the clock asks for a save; the main process's clock counts."""
        return self.job.group.main and self.clock.due()

    def save(self, must: bool = False) -> Iterator[Saved | Warned]:
        """Save the state of all processes; one that must not fail ends the run if it does.

        Raises:
            EnvironmentFault: the last save of a run cannot be written.
        """
        group, began = self.job.group, time.monotonic()
        streams = group.gather(random_streams())
        try:
            large = collected(self.folder, self.state)
            path, problem = group.on_main(lambda: self._write(streams, large))
        except EnvironmentFault as error:
            path, problem = None, str(error)
        self.clock.restart()
        if path is not None:
            yield Saved(path, self.state.progress["step"], time.monotonic() - began)
        elif must:
            raise group.together(EnvironmentFault(f"{problem}; make room, then go on with --resume {self.job.run}"))
        else:
            yield Warned(f"{problem}; training goes on")

    def _write(self, streams: list[dict[str, Any]], large: Large | None) -> tuple[Path | None, str]:
        """The new checkpoint, or why there is none."""
        config, progress = self.job.config, self.state.progress
        try:
            progress["log_bytes"] = self.journal.sync()
            path = save_checkpoint(self.folder, self.state, config, self.job.data.train.categories, streams, large)
        except EnvironmentFault as error:
            return None, str(error)
        except OSError as error:
            return None, f"metrics.jsonl cannot be written: {error.strerror}"
        prune_checkpoints(self.folder, config.train.keep_checkpoints, {self.resumed, progress["best_step"]})
        return path, ""
