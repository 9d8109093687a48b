"""The training loop. `train` yields what happens; whoever runs it draws or ignores that."""

import time
from collections.abc import Iterator

from ..data.loaders import num_workers, steps_per_epoch
from ..errors import ConfigError, DataError, DivergedError, EnvironmentFault, Interrupted, OutOfMemory
from ..system.device import keep_memory, peak_memory_mb
from .batches import Fed, feed
from .checkpointer import Keeper
from .evaluation import evaluate
from .events import Event, Finished, Started, Step, Warned
from .failures.classify import deterministic, little_shared_memory
from .failures.recovery import Running, halved, renewed, rolled_back, saved_or_halved
from .job import Job, describe, fingerprint
from .optim import lr_factor, set_lr
from .run.metrics_log import Journal, MetricsLog, NoJournal
from .run.report import ReportFile
from .run.watchers import watchers
from .schedule import Plan
from .state import TrainState, random_streams, restore_streams
from .step import train_step

NOTHING_TO_JUDGE = (
    "{} has no objects, so that AP cannot be measured: best.safetensors will hold the newest weights, and "
    "train.patience does not end the run; annotate some validation images"
)


def train(job: Job, state: TrainState) -> Iterator[Event]:
    """Train to the end. Everything that the run leaves behind is in its folder.

    Raises:
        DivergedError: a loss, a gradient or a prediction is not finite; the weights before that step are kept.
        Interrupted: a signal asked for it; the state is saved.
        EnvironmentFault: memory, the disk, or a process that reads pictures failed; the last state is kept.
    """
    keep_memory()
    plan = Plan(steps_per_epoch(len(job.data.train.image_ids), job.config.train.batch_size), job.config.train)
    state.progress["data"] = fingerprint(job.data)
    _agree(job, state.progress["data"])
    facts, first = describe(job, state, plan.per_epoch), state.progress["step"]
    journal = _journal(job, state, facts)
    try:
        yield Started(job.run, facts, state.transfer)
        if text := little_shared_memory(job.config, num_workers(job.config.data)):
            yield Warned(text)
        if not job.data.val.trainable(0).any():
            yield Warned(NOTHING_TO_JUDGE.format(job.data.val.file))
        with deterministic(job.config.train.deterministic):
            yield from _to_the_end(Running(job, state, plan, journal, Keeper(job, state, journal)))
    finally:
        journal.close()
    yield from map(Warned, journal.problems())
    step, best = state.progress["step"], job.run / "best.safetensors"
    as_planned = first < step == plan.total
    yield Finished(job.run, state.progress["best_ap"], best, "" if as_planned else plan.over(state.progress))


def _agree(job: Job, data: str) -> None:
    """All processes must do the same; each must have a picture in every step."""
    seen = job.group.gather((job.config.model_dump_json(exclude={"data": {"path", "workers"}}), data))
    differing = [rank for rank, told in enumerate(seen) if told != seen[0]]
    if differing:
        told = f"processes {differing} have other settings or other data than process 0; start all alike"
        raise job.group.together(ConfigError(told))
    pictures = min(job.config.train.batch_size, len(job.data.train.image_ids))
    if pictures < job.group.size:
        told = f"{pictures} pictures a step are too few for {job.group.size} processes; use fewer, or more --batch-size"
        raise job.group.together(ConfigError(told))


def _journal(job: Job, state: TrainState, facts: dict[str, str]) -> Journal | NoJournal:
    if not job.group.main:
        return NoJournal()
    try:
        log = MetricsLog(job.run, state.progress)
    except OSError as error:
        raise EnvironmentFault(f"{job.run} cannot be written: {error.strerror or error}") from error
    report = ReportFile(job, facts)
    return Journal(log, [*watchers(job.run, job.config.train, state.progress["step"]), report])


def _to_the_end(run: Running) -> Iterator[Event]:
    """All steps; after one that failed again from a checkpoint or from that step, where the config wants that."""
    while True:
        try:
            yield from _due_evaluation(run)
            yield from _steps(run)
            return
        except DivergedError as error:
            yield Warned(rolled_back(run, error))
        except OutOfMemory as error:
            yield from saved_or_halved(run, error)
            run = run._replace(job=halved(run.job))
        run = renewed(run)  # out here, where the error and what it holds of the step are gone


def _due_evaluation(run: Running) -> Iterator[Event]:
    """The evaluation that a signal or a kill cut short, if there is one."""
    job, progress = run.job, run.state.progress
    if code := _asked(job):
        first = not progress["step"]
        told = (
            "before the first step" if first else f"before going on after step {progress['step']}; the state is saved"
        )
        raise job.group.together(Interrupted(f"interrupted {told}", code))
    if progress["due_evaluation"]:
        yield from evaluate(job, run.state, run.journal)
        yield from run.keeper.save()
    if code := _asked(job):
        raise _interrupted(run, "in the evaluation", code)


def _steps(run: Running) -> Iterator[Event]:
    job, state, plan, progress = run.job, run.state, run.plan, run.state.progress
    replaced: set[str] = set()
    state.model.train()
    for fed in feed(job, plan, progress["step"]):
        if plan.over(progress):
            return
        if fed.fault is not None:
            yield from run.keeper.save()
            raise job.group.together(fed.fault)
        yield from _step(run, fed)
        yield from _bad_pictures(job, fed, replaced)
        if plan.evaluates_after(progress["step"]):
            progress["due_evaluation"] = plan.epoch(progress["step"])
            yield from run.keeper.save()  # a kill while evaluating must not cost the epoch
            yield from evaluate(job, state, run.journal)
        yield from _save_if_due(run)


def _step(run: Running, fed: Fed) -> Iterator[Event]:
    """One optimizer step, and what is told of it."""
    job, state, plan, progress = run.job, run.state, run.plan, run.state.progress
    waited = time.monotonic() - fed.began
    step = progress["step"] + 1
    row: dict = {"step": step, "epoch": plan.epoch(step)}
    if step in progress["left_out"]:
        progress["step"] = step
        yield from map(Warned, run.journal.add(row | {"left_out": True}))
        return
    lr = set_lr(state.optimizer, lr_factor(step - 1, plan.per_epoch, job.config.train))
    boundary = random_streams()
    try:
        numbers = train_step(state, fed.batches, job, fed.num_boxes)
    except OutOfMemory:
        state.optimizer.zero_grad(set_to_none=True)
        restore_streams(boundary)
        raise
    progress["step"] = step
    numbers |= {"lr": lr, "seconds": time.monotonic() - fed.began, "data_seconds": waited}
    numbers |= {"memory_mb": round(peak_memory_mb())}
    yield from map(Warned, run.journal.add(row | numbers))
    yield Step(step, plan.epoch(step), plan.total, numbers | {"images": fed.num_images})


def _save_if_due(run: Running) -> Iterator[Event]:
    """Save if a signal, the plan or the clock asks for it; end if a signal does.

    Raises:
        Interrupted: the state is saved.
    """
    stops, dues = zip(*run.job.group.gather_numbers([run.job.stop(), run.keeper.due()]), strict=True)
    asked, over = int(max(stops)), run.plan.over(run.state.progress)
    if asked or over or any(dues) or run.plan.saves_after(run.state.progress["step"]):
        yield from run.keeper.save(must=bool(asked or over))
        asked = asked or _asked(run.job)  # meanwhile
    if asked and not over:
        raise _interrupted(run, "", asked)


def _asked(job: Job) -> int:
    """The exit code of a signal that any process got."""
    return int(max(code for (code,) in job.group.gather_numbers([job.stop()])))


def _interrupted(run: Running, where: str, code: int) -> Exception:
    at = f"after step {run.state.progress['step']} of {run.plan.total}"
    told = (
        f"interrupted {where}{' ' if where else ''}{at}; the state is saved, go on: dino train --resume {run.job.run}"
    )
    return run.job.group.together(Interrupted(told, code))


def _bad_pictures(job: Job, fed: Fed, known: set[str]) -> Iterator[Event]:
    for text in fed.problems:
        if text not in known:
            known.add(text)
            yield Warned(f"{text}; another picture takes its place")
    num_images = len(job.data.train.image_ids)
    if len(known) > max(3, num_images // 100):
        told = f"{len(known)} of {num_images} pictures cannot be read, which is more than 3 and more than 1 %"
        fix = "find them with `dino check-data DIR --decode`, and copy them again or take them out"
        raise job.group.together(DataError(told, code="DATA-IMAGE-DAMAGED", where=job.data.train.file, fix=fix))
