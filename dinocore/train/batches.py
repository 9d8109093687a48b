"""The pictures of each optimizer step, as all processes know of them."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from ..data.batch import Batch
from ..data.loaders import Part, begun, training_steps
from ..errors import DinoError
from .failures.classify import loader_fault
from .job import Job, images_per_forward
from .schedule import Plan


class Fed(NamedTuple):
    """What a process gets for a step, and what all of them have."""

    batches: list[Batch]  # of this process
    num_boxes: int  # of all processes
    num_images: int  # of all processes
    problems: list[str]  # of all processes: pictures that others had to replace
    began: float  # to wait for it, by the monotonic clock
    fault: DinoError | None = None  # nothing more can be read, on one process at least


def feed(job: Job, plan: Plan, step: int) -> Iterator[Fed]:
    """What each step after `step` is done with, to the end of the run or to a fault."""
    part = Part(job.group.rank, job.group.size)
    began = time.monotonic()
    loader = training_steps(job.data.train, job.config, images_per_forward(job), step, plan.total, part)
    batches = begun(loader)
    for _ in range(step, plan.total):
        yield _told(job, *_next(batches), began)
        began = time.monotonic()


def _next(batches: Iterator[list[Batch]]) -> tuple[list[Batch], DinoError | None]:
    try:
        return next(batches), None
    except Exception as error:
        fault = loader_fault(error)
        if fault is None:
            raise
        return [], fault


def _told(job: Job, batches: list[Batch], fault: DinoError | None, began: float) -> Fed:
    """Tell the other processes, and hear from them."""
    problems = [text for batch in batches for text in batch.problems]
    mine = [count_boxes(batches), sum(len(batch.indices) for batch in batches), len(problems), fault is not None]
    boxes, images, bad, faults = (int(sum(column)) for column in zip(*job.group.gather_numbers(mine), strict=True))
    if bad:
        problems = [text for part in job.group.gather(problems) for text in part]
    if faults:
        fault = next(filter(None, job.group.gather(fault)))
    return Fed(batches, boxes, images, problems, began, fault)


def count_boxes(batches: list[Batch]) -> int:
    """Objects of some batches."""
    return sum(len(target.labels) for batch in batches for target in batch.targets)
