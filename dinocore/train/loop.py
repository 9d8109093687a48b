"""The training loop. `train` yields events, which its caller may display."""

import time
from collections.abc import Iterator
from contextlib import closing

from ..data.batch import has_few_sizes
from ..data.loaders import num_workers, steps_per_epoch
from ..errors import ConfigError, DataError, DivergedError, EnvironmentFault, Interrupted, OutOfMemory
from ..system.device import float32_throughout
from ..system.memory import keep_memory, peak_memory_mb
from ..words import typed
from .batches import StepBatches, step_batches
from .checkpointer import Checkpointer
from .context import RunContext, describe, fingerprint
from .evaluation import evaluate
from .events import Event, Finished, Started, Step, Warned
from .failures.classify import check_shared_memory, deterministic
from .failures.guard import guarded_step
from .failures.recovery import halve_micro_batch, handle_out_of_memory, reset_after_failure, roll_back
from .optim import lr_factor, set_lr
from .run.checkpoint_folder import disk_space_warning
from .run.metrics_log import MetricsLog, MetricsLogger, NoLogger
from .run.report import ReportFile
from .run.sinks import sinks
from .schedule import Schedule
from .state import TrainState, expected_size, restore_rng_state, rng_state

NO_OBJECTS_TO_EVALUATE = (
    "{} has no objects to evaluate on, so AP cannot be measured: best.safetensors will hold the newest weights, and "
    "train.patience will not stop the run; annotate some validation images"
)


def train(context: RunContext, state: TrainState) -> Iterator[Event]:
    """Train to the end of the run. All output is in the run folder.

    Raises:
        DivergedError: a loss, gradient or prediction is not finite; the weights before that step are kept.
        Interrupted: stopped by a signal; the state is saved.
        EnvironmentFault: out of memory, full disk, or a failed worker; the last state is kept.
    """
    config = context.config
    keep_memory(has_few_sizes(config.data))
    plan = Schedule(steps_per_epoch(len(context.data.train.image_ids), config.train.batch_size), config.train)
    state.progress.data = fingerprint(context.data)
    check_ranks_agree(context, state.progress.data)
    facts, first = describe(context, state, plan.per_epoch), state.progress.step
    logger, completed = _logger(context, state, facts), False
    try:
        yield Started(context.folder, facts, state.transfer)
        yield from map(Warned, logger.problems())
        if warning := check_shared_memory(config, num_workers(config.data)):
            yield Warned(warning)
        if context.group.main and (warning := disk_space_warning(context.folder, expected_size(state))):
            yield Warned(warning)
        if not context.data.val.trainable(0).any():
            yield Warned(NO_OBJECTS_TO_EVALUATE.format(context.data.val.file))
        with deterministic(config.train.deterministic, context.device), float32_throughout(config.train.amp == "off"):
            yield from _Run(context, state, plan, logger).to_the_end()
        completed = True
    finally:
        logger.close(completed)
    yield from map(Warned, logger.problems())
    progress, best = state.progress, context.folder / "best.safetensors"
    as_planned = first < progress.step == plan.total
    yield Finished(context.folder, progress.best_ap, best, "" if as_planned else plan.over(progress))


def check_ranks_agree(context: RunContext, data: str) -> None:
    """Check that all ranks have the same settings and data, and at least one image per step.

    Raises:
        ConfigError: ranks have different settings or data, or there are too many ranks.
    """
    group, batch_size = context.group, context.config.train.batch_size
    gathered = group.gather((context.config.model_dump_json(exclude={"data": {"path", "workers"}}), data))
    if differing := [rank for rank, of_rank in enumerate(gathered) if of_rank != gathered[0]]:
        message = f"ranks {differing} have different settings or data from rank 0; start all ranks with the same ones"
        raise group.on_all_ranks(ConfigError(message))
    images = min(batch_size, len(context.data.train.image_ids))
    if images < group.size:
        message = f"a batch of {images} is too small for {group.size} ranks; use fewer ranks, or a larger --batch-size"
        raise group.on_all_ranks(ConfigError(message))


def _logger(context: RunContext, state: TrainState, facts: dict[str, str]) -> MetricsLogger | NoLogger:
    """The run's log; if there are trackers, `facts` gets a line about them."""
    if not context.group.main:
        return NoLogger()
    try:
        log = MetricsLog(context.folder, state.progress)
    except OSError as error:
        raise EnvironmentFault(f"{context.folder} cannot be written: {error.strerror or error}") from error
    trackers = sinks(context.folder, context.config, state.progress.step)
    if trackers:
        facts["trackers"] = ", ".join(map(str, trackers))
    return MetricsLogger(log, [*trackers, ReportFile(context, facts)])


class _Run:
    """A running training; after a failure, its context or state may be replaced."""

    def __init__(self, context: RunContext, state: TrainState, plan: Schedule, logger: MetricsLogger | NoLogger):
        self.context, self.state, self.plan, self.logger = context, state, plan, logger
        self.group, self.progress = context.group, state.progress
        self.checkpointer = Checkpointer(context, state, logger)
        self.bad_images: set[str] = set()

    def to_the_end(self) -> Iterator[Event]:
        """Run all steps. After a failed one, continue from a checkpoint or from that step if the config allows it."""
        while True:
            try:
                yield from self._due_evaluation()
                yield from self._steps()
                return
            except DivergedError as error:
                yield roll_back(self.context, self.state, self.logger, error)
            except OutOfMemory as error:
                yield from handle_out_of_memory(self.context, self.checkpointer, error)
                self.context = halve_micro_batch(self.context)
            # outside the handler, so that the error no longer holds the step's tensors
            reset_after_failure(self.context, self.state)

    def _due_evaluation(self) -> Iterator[Event]:
        """Repeat an evaluation that a signal or a kill interrupted, if any."""
        step = self.progress.step
        if code := self._stop_requested():
            where = f"before continuing after step {step}; the state is saved" if step else "before the first step"
            raise self.group.on_all_ranks(Interrupted(f"interrupted {where}", code))
        if self.progress.due_evaluation:
            yield from evaluate(self.context, self.state, self.logger)
            yield from self.checkpointer.save()
        if code := self._stop_requested():
            raise self._interrupted("in the evaluation ", code)

    def _steps(self) -> Iterator[Event]:
        context, progress, plan = self.context, self.progress, self.plan
        self.state.model.train()
        steps = step_batches(
            context.data.train, context.config, context.device, self.group, progress.step + 1, plan.total
        )
        with closing(steps):  # so that its workers end, even if an error keeps this frame alive
            for batches in steps:
                if plan.over(progress):
                    return
                if batches.fault is not None:
                    yield from self.checkpointer.save()
                    raise self.group.on_all_ranks(batches.fault)
                yield from self._step(batches)
                yield from self._report_bad_images(batches)
                if plan.evaluates_after(progress.step):
                    progress.due_evaluation = plan.epoch(progress.step)
                    yield from self.checkpointer.save()  # in case the process is killed while evaluating
                    yield from evaluate(context, self.state, self.logger)
                yield from self._save_if_due()

    def _step(self, batches: StepBatches) -> Iterator[Event]:
        """Run one optimizer step and return its log entry."""
        context, state, plan, progress = self.context, self.state, self.plan, self.progress
        waited = time.monotonic() - batches.wait_started
        step = progress.step + 1
        row: dict = {"step": step, "epoch": plan.epoch(step)}
        if step in progress.skipped_steps:
            progress.step = step
            yield from map(Warned, self.logger.add(row | {"skipped": True}))
            return
        lr = set_lr(state.optimizer, lr_factor(step - 1, plan.per_epoch, context.config.train))
        before = rng_state()
        try:
            numbers = guarded_step(state, batches, context)
        except OutOfMemory:
            state.optimizer.zero_grad(set_to_none=True)
            restore_rng_state(before)
            raise
        progress.step = step
        numbers |= {"lr": lr, "seconds": time.monotonic() - batches.wait_started, "data_seconds": waited}
        numbers |= {"memory_mb": round(peak_memory_mb(context.device))}
        yield from map(Warned, self.logger.add(row | numbers))
        yield Step(step, plan.epoch(step), plan.total, numbers | {"images": batches.num_images})

    def _save_if_due(self) -> Iterator[Event]:
        """Save if a signal, the schedule or the clock requires it; stop on a signal.

        Raises:
            Interrupted: the state is saved.
        """
        stops, dues = zip(*self.group.gather_numbers([self.context.stop(), self.checkpointer.due()]), strict=True)
        stop, over = int(max(stops)), self.plan.over(self.progress)
        if stop or over or any(dues) or self.plan.saves_after(self.progress.step):
            yield from self.checkpointer.save(must=bool(stop or over))
            stop = stop or self._stop_requested()  # while saving
        if stop and not over:
            raise self._interrupted("", stop)

    def _stop_requested(self) -> int:
        """The exit code of a signal that any rank received, or 0."""
        return int(max(code for (code,) in self.group.gather_numbers([self.context.stop()])))

    def _interrupted(self, where: str, code: int) -> Exception:
        at = f"{where}after step {self.progress.step} of {self.plan.total}"
        command = f"dino train --resume {typed(self.context.folder)}"
        message = f"interrupted {at}; the state is saved; continue with: {command}"
        return self.group.on_all_ranks(Interrupted(message, code))

    def _report_bad_images(self, batches: StepBatches) -> Iterator[Event]:
        for problem in batches.problems:
            if problem not in self.bad_images:
                self.bad_images.add(problem)
                yield Warned(f"{problem}; replaced by another image")
        train, bad = self.context.data.train, len(self.bad_images)
        if bad > max(3, len(train.image_ids) // 100):
            message = f"{bad} of {len(train.image_ids)} images cannot be read, which is more than 3 and more than 1 %"
            fix = "find them with `dino check-data DIR --decode`, and copy them again or remove them"
            raise self.group.on_all_ranks(DataError(message, code="DATA-IMAGE-DAMAGED", where=train.file, fix=fix))
