"""The parts of a run that is going on, and how they go on after a step that failed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import DivergedError, OutOfMemory
from ...system.device import release_memory
from ..checkpointer import Keeper
from ..events import Saved, Warned
from ..job import Job, images_per_forward
from ..run.folder import NEWEST, branch_off, find_checkpoint
from ..run.metrics_log import Journal, NoJournal
from ..schedule import Plan
from ..state import TrainState, load_checkpoint


class Running(NamedTuple):
    """The parts of a run that is going on."""

    job: Job
    state: TrainState
    plan: Plan
    journal: Journal | NoJournal
    keeper: Keeper


def rolled_back(run: Running, error: DivergedError) -> str:
    """Take the state of the newest checkpoint, from which the step that diverged will be left out; says so.

    Raises:
        DivergedError: that is not wanted, not possible, or was done too often.
    """
    job, progress = run.job, run.state.progress
    left_out = [*progress["left_out"], progress["step"] + 1]
    if job.config.train.on_nan == "stop" or progress["due_evaluation"]:
        raise job.group.together(error)
    path, _ = job.group.on_main(lambda: _newest(job))
    if path is None or len(left_out) > job.config.train.max_rollbacks:
        why = "there is no checkpoint to roll back to" if path is None else f"rolled back {len(left_out) - 1} times"
        raise job.group.together(DivergedError(f"{why}, and now {error}"))
    load_checkpoint(path, run.state, job.group.rank, job.config.train.seed)
    progress["left_out"] = left_out
    run.journal.go_back(progress)
    return f"{error}; rolled back to {path.name}, and step {left_out[-1]} will be left out"


def _newest(job: Job) -> tuple[Path | None, list[str]]:
    path, warnings = find_checkpoint(job.run, NEWEST)
    return path, warnings + branch_off(job.run, path)


def saved_or_halved(run: Running, error: OutOfMemory) -> Iterator[Saved | Warned]:
    """Save the state before the step that needs too much memory, and end; or say that fewer pictures are next.

    Raises:
        OutOfMemory: that is not wanted, or there is one picture at a time already.
    """
    number = images_per_forward(run.job)
    if run.job.config.train.on_out_of_memory == "stop" or number == 1:
        yield from run.keeper.save()
        raise run.job.group.together(error)
    step = run.state.progress["step"] + 1
    yield Warned(f"{error.what}. Step {step} is done again, and all that follow, with {number // 2} pictures at once")


def halved(job: Job) -> Job:
    """The job with half as many pictures at once, and as many in a step."""
    train = job.config.train.model_copy(update={"images_per_forward": images_per_forward(job) // 2})
    return job._replace(config=job.config.model_copy(update={"train": train}))


def renewed(run: Running) -> Running:
    """The run without what a step that failed has left in its objects."""
    before = run.state
    scaler = torch.amp.GradScaler(run.job.device.type, enabled=before.scaler.is_enabled())
    scaler.load_state_dict(before.scaler.state_dict())
    before.optimizer.zero_grad(set_to_none=True)
    release_memory(run.job.device)
    before.parallel.renew()
    run.keeper.state = before._replace(scaler=scaler)
    return run._replace(state=run.keeper.state)
