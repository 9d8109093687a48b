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
    num_denoised: int  # the same without the objects that denoising cannot use
    num_images: int  # of all ranks
    problems: list[str]  # of all ranks: unreadable images that were replaced
    wait_started: float  # by the monotonic clock
    fault: DinoError | None = None  # at least one rank cannot read any more images


def share_of_batch(batch_size: int, ranks: int) -> int:
    """The number of images of a batch on rank 0; the others have as many or one fewer."""
    return -(-batch_size // ranks)


def micro_batch_size(config: TrainConfig, device: torch.device, ranks: int = 1) -> int:
    """The micro-batch size; gradients over a rank's micro-batches are accumulated."""
    share = share_of_batch(config.batch_size, ranks)
    if isinstance(config.micro_batch_size, int):
        return min(config.micro_batch_size, share)
    return 1 if device.type == "cpu" else share


def step_batches(
    annotations: Annotations, config: Config, device: torch.device, group: SingleProcess, first: int, last: int
) -> Generator[StepBatches, None, None]:
    """The data of each optimizer step from `first` to `last`, or the failure."""
    size, part = micro_batch_size(config.train, device, group.size), Shard(group.rank, group.size)
    room = config.model.denoising.max_targets
    wait_started = time.monotonic()
    batches = start_workers(training_steps(annotations, config, size, first - 1, last, part))
    for _ in range(first, last + 1):
        yield _shared(group, *_next(batches), room, wait_started)
        wait_started = time.monotonic()


def _next(batches: Iterator[list[Batch]]) -> tuple[list[Batch], DinoError | None]:
    try:
        return next(batches), None
    except Exception as error:
        fault = loader_fault(error)
        if fault is None:
            raise
        return [], fault


def _shared(
    group: SingleProcess, batches: list[Batch], fault: DinoError | None, room: int, wait_started: float
) -> StepBatches:
    """Exchange totals with the other ranks."""
    problems = [problem for batch in batches for problem in batch.problems]
    own = [count_boxes(batches), count_boxes(batches, room)]
    own += [sum(len(batch.indices) for batch in batches), len(problems), fault is not None]
    boxes, denoised, images, bad, faults = (int(sum(column)) for column in zip(*group.gather_numbers(own), strict=True))
    if bad:
        problems = [problem for of_rank in group.gather(problems) for problem in of_rank]
    if faults:
        fault = next(filter(None, group.gather(fault)))
    return StepBatches(batches, boxes, denoised, images, problems, wait_started, fault)


def count_boxes(batches: list[Batch], at_most: int | None = None) -> int:
    """The number of objects in some batches, with a maximum per image."""
    return sum(len(target.labels[:at_most]) for batch in batches for target in batch.targets)
