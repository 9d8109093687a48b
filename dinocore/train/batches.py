"""The micro-batches of each optimizer step, and what all ranks know about them."""

import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch

from ..config import Config, TrainConfig
from ..data.annotations import Annotations
from ..data.batch import Batch
from ..data.loaders import Shard, start_workers, training_steps
from ..errors import DinoError
from ..system.processes import SingleProcess
from .failures.classify import loader_fault


class StepBatches(NamedTuple):
    """The data of a rank for a step, and totals over all ranks."""

    micro_batches: list[Batch]  # of this rank
    num_boxes: int  # of all ranks
    num_denoised: int  # of these, the objects that take part in denoising
    num_images: int  # of all ranks
    problems: list[str]  # of all ranks: unreadable images that were replaced
    wait_started: float  # by the monotonic clock
    fault: DinoError | None = None  # set if the loader of any rank has failed


def rank_batch_size(batch_size: int, ranks: int) -> int:
    """The number of images of a batch on rank 0; the others have as many or one fewer."""
    return -(-batch_size // ranks)


def micro_batch_size(config: TrainConfig, device: torch.device, ranks: int = 1) -> int:
    """The micro-batch size; gradients over a rank's micro-batches are accumulated."""
    rank_batch = rank_batch_size(config.batch_size, ranks)
    if isinstance(config.micro_batch_size, int):
        return min(config.micro_batch_size, rank_batch)
    return 1 if device.type == "cpu" else rank_batch


def step_batches(
    annotations: Annotations, config: Config, device: torch.device, group: SingleProcess, first: int, last: int
) -> Generator[StepBatches, None, None]:
    """Yields the data of each optimizer step from `first` to `last`, or the failure of a loader."""
    size, part = micro_batch_size(config.train, device, group.size), Shard(group.rank, group.size)
    max_targets = config.model.denoising.max_targets
    wait_started = time.monotonic()
    batches = start_workers(training_steps(annotations, config, size, first - 1, last, part))
    for _ in range(first, last + 1):
        yield _with_totals(group, *_next(batches), max_targets, wait_started)
        wait_started = time.monotonic()


def _next(batches: Iterator[list[Batch]]) -> tuple[list[Batch], DinoError | None]:
    try:
        return next(batches), None
    except Exception as error:
        fault = loader_fault(error)
        if fault is None:
            raise
        return [], fault


def _with_totals(
    group: SingleProcess, batches: list[Batch], fault: DinoError | None, max_targets: int, wait_started: float
) -> StepBatches:
    """Exchange totals with the other ranks."""
    problems = [problem for batch in batches for problem in batch.problems]
    own = [count_boxes(batches), count_boxes(batches, max_targets)]
    own += [sum(len(batch.indices) for batch in batches), len(problems), fault is not None]
    boxes, denoised, images, bad, faults = (int(sum(column)) for column in zip(*group.gather_numbers(own), strict=True))
    if bad:
        problems = [problem for of_rank in group.gather(problems) for problem in of_rank]
    if faults:
        fault = next(filter(None, group.gather(fault)))
    return StepBatches(batches, boxes, denoised, images, problems, wait_started, fault)


def count_boxes(batches: list[Batch], limit: int | None = None) -> int:
    """The number of objects in some batches, counting at most `limit` per image."""
    return sum(len(target.labels[:limit]) for batch in batches for target in batch.targets)
