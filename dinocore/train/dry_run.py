"""Everything that a run does, once: so that a night is not lost to what a minute can tell."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ..data.loaders import steps_per_epoch
from ..evaluate.coco import coco_metrics, detect_all
from ..predict import Detector
from ..system.device import keep_memory, peak_memory_mb
from .batches import count_boxes, feed
from .failures.memory import worst_batch
from .job import Job, images_per_forward
from .schedule import Plan
from .state import TrainState, collected, random_streams, save_checkpoint
from .step import train_step


class Expectation(NamedTuple):
    """What a run will take, by what one of everything took; `run_s` is a guess from few measurements."""

    largest_pass_s: float  # forward, backward and step of the largest batch that goes through the model at once
    step_s: float  # as long as a pass of pictures of the data takes, times the passes of a step
    evaluation_s: float  # of all validation pictures
    save_s: float
    checkpoint_mb: float
    peak_memory_mb: float
    steps: int
    evaluations: int
    run_s: float


def dry_run(job: Job, state: TrainState) -> Expectation:
    """Do everything once with a state that is thrown away. `job.run` need not exist; nothing is left behind.

    Raises:
        EnvironmentFault: memory or disk space does not suffice.
        DataError, DivergedError: as in training.
    """
    keep_memory()
    plan = Plan(steps_per_epoch(len(job.data.train.image_ids), job.config.train.batch_size), job.config.train)
    chunk = images_per_forward(job)
    largest = [worst_batch(job, chunk)]
    largest_pass = _timed(lambda: train_step(state, largest, job, count_boxes(largest) * job.group.size))
    fed = next(feed(job, plan, 0))
    if fed.fault is not None:
        raise job.group.together(fed.fault)
    one_pass = _timed(lambda: train_step(state, fed.batches[:1], job, max(1, fed.num_boxes)))
    passes = -(-job.share // chunk)
    evaluation = _evaluation_seconds(job, state)
    save, size = _save_seconds(job, state)
    evaluations = sum(plan.evaluates_after(epoch * plan.per_epoch) for epoch in range(1, job.config.train.epochs + 1))
    saves = job.config.train.epochs + evaluations
    run = plan.total * one_pass * passes + evaluations * evaluation + saves * save
    return Expectation(
        largest_pass_s=largest_pass,
        step_s=one_pass * passes,
        evaluation_s=evaluation,
        save_s=save,
        checkpoint_mb=size / 1e6,
        peak_memory_mb=peak_memory_mb(),
        steps=plan.total,
        evaluations=evaluations,
        run_s=run,
    )


def _evaluation_seconds(job: Job, state: TrainState) -> float:
    """Of all validation pictures, by the second one; the first pays for what is done once."""
    detector = Detector(
        state.parallel.whole(state.ema.model), job.config, job.data.train.categories, job.device, job.config.train.amp
    )
    pictures = detect_all(detector, job.data.val)
    results, _ = next(pictures)
    began = time.monotonic()
    more, _ = next(pictures, ([], []))
    seconds = time.monotonic() - began
    coco_metrics(job.data.val, [*results, *more], job.config.eval.backend)
    state.model.train()
    return seconds * len(job.data.val.image_ids) / job.group.size


def _save_seconds(job: Job, state: TrainState) -> tuple[float, int]:
    """How long a checkpoint takes on the disk where the run will be, and its bytes."""
    place = next(path for path in (job.run.absolute(), *job.run.absolute().parents) if path.is_dir())
    folder = job.group.on_main(lambda: Path(tempfile.mkdtemp(prefix=".dino-dry-run-", dir=place)))
    try:
        began = time.monotonic()
        streams, large = job.group.gather(random_streams()), collected(folder, state)
        classes = job.data.train.categories
        path = job.group.on_main(lambda: save_checkpoint(folder, state, job.config, classes, streams, large))
        return time.monotonic() - began, sum(file.stat().st_size for file in path.iterdir())
    finally:
        job.group.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))


def _timed(work) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
