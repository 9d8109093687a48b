"""Run every stage of a training once, to find problems within a minute instead of after hours."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..data.batch import has_few_sizes
from ..data.loaders import steps_per_epoch
from ..evaluate.coco import coco_metrics, detect_all
from ..predict import Detector
from ..system.device import float32_throughout
from ..system.memory import keep_memory, peak_memory_mb
from .batches import StepBatches, count_boxes, micro_batch_size, rank_batch_size, step_batches
from .context import RunContext
from .failures.classify import deterministic
from .failures.guard import guarded_step
from .failures.memory import largest_batch
from .schedule import Schedule
from .state import TrainState, rng_state, save_checkpoint

MAX_STEPS, MAX_SECONDS = 12, 30.0  # limits of the measurement of steps, whose batches have different sizes
# Factor by which memory on a CPU grows after the 12th step. Measured with few sizes: `tiny` 1.14 in 2,040 steps of BCCD
# and 1.21 in 507 of masks, a ResNet-50 1.15 in 1,044 steps; with batches of any size: 1.09 in 411 steps.
GROWTH_OF_FEW_SIZES, GROWTH = 1.15, 1.08


class Expectation(NamedTuple):
    """The expected time and memory of a run, from one measurement of each stage; `run_s` is a rough estimate."""

    largest_pass_s: float  # forward, backward and step of the largest micro-batch
    step_s: float  # time of a typical micro-batch, times the number of micro-batches per step
    evaluation_s: float  # of all validation images
    save_s: float
    checkpoint_mb: float
    peak_memory_mb: float  # on a CPU, includes the expected growth
    steps: int
    evaluations: int
    run_s: float


def dry_run(context: RunContext, state: TrainState) -> Expectation:
    """Run every stage once, with a state that is not used afterwards.

    `context.folder` need not exist, and no files are left behind.

    Raises:
        EnvironmentFault: there is too little memory or disk space.
        DataError, DivergedError: as in training.
    """
    few_sizes = has_few_sizes(context.config.data)
    keep_memory(few_sizes)
    config, group, train = context.config, context.group, context.data.train
    plan = Schedule(steps_per_epoch(len(train.image_ids), config.train.batch_size), config.train)
    size = micro_batch_size(config.train, context.device, group.size)
    largest = largest_batch(train, config.data, size)
    limits = (None, config.model.denoising.max_targets)
    boxes, denoised = (count_boxes([largest], limit) * group.size for limit in limits)
    batches = StepBatches([largest], boxes, denoised, size * group.size, [], time.monotonic())
    passes = -(-rank_batch_size(config.train.batch_size, group.size) // size)
    with deterministic(config.train.deterministic, context.device), float32_throughout(config.train.amp == "off"):
        largest_pass = _seconds(lambda: guarded_step(state, batches, context))
        one_pass = _seconds_of_a_pass(context, state, plan.total)
        evaluation = _evaluation_seconds(context, state)
    save, num_bytes = _save_seconds(context, state)
    growth = 1.0 if context.device.type != "cpu" else GROWTH_OF_FEW_SIZES if few_sizes else GROWTH
    saves = config.train.epochs + plan.evaluations
    return Expectation(
        largest_pass_s=largest_pass,
        step_s=one_pass * passes,
        evaluation_s=evaluation,
        save_s=save,
        checkpoint_mb=num_bytes / 1e6,
        peak_memory_mb=peak_memory_mb(context.device) * growth,
        steps=plan.total,
        evaluations=plan.evaluations,
        run_s=plan.total * one_pass * passes + plan.evaluations * evaluation + saves * save,
    )


def _seconds_of_a_pass(context: RunContext, state: TrainState, steps: int) -> float:
    """The median time of a micro-batch in the first steps, except the very first, which includes one-time costs."""
    config, group, seconds = context.config, context.group, list[float]()
    for step in step_batches(context.data.train, config, context.device, group, 1, min(steps, MAX_STEPS)):
        if step.fault is not None:
            raise group.on_all_ranks(step.fault)
        started = time.monotonic()
        one = step._replace(micro_batches=step.micro_batches[:1], num_boxes=max(1, step.num_boxes))
        guarded_step(state, one, context)
        seconds.append(time.monotonic() - started)
        if not group.all_true(sum(seconds) < MAX_SECONDS)[0]:
            break
    return statistics.median(seconds[1:] or seconds)


def _evaluation_seconds(context: RunContext, state: TrainState) -> float:
    """The expected time for all validation images, from the second one; the first includes one-time costs."""
    config, val = context.config, context.data.val
    detector = Detector(state.ema.model, config, context.data.train.categories, context.device, config.train.amp)
    images = detect_all(detector, val)
    results, _ = next(images)
    started = time.monotonic()
    more, _ = next(images, ([], []))
    seconds = time.monotonic() - started
    coco_metrics(val, [*results, *more], config.eval.backend)
    state.model.train()
    return seconds * len(val.image_ids) / context.group.size


def _save_seconds(context: RunContext, state: TrainState) -> tuple[float, int]:
    """The time to save a checkpoint on the disk of the run folder, and its size in bytes."""
    group, categories = context.group, context.data.train.categories
    existing = next(path for path in (context.folder.absolute(), *context.folder.absolute().parents) if path.is_dir())
    folder = group.on_main(lambda: Path(tempfile.mkdtemp(prefix=".dino-dry-run-", dir=existing)))
    try:
        started = time.monotonic()
        rng_states = group.gather(rng_state())
        path = group.on_main(lambda: save_checkpoint(folder, state, context.config, categories, rng_states))
        return time.monotonic() - started, sum(file.stat().st_size for file in path.iterdir())
    finally:
        group.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
