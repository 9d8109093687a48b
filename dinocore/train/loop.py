"""The training loop. `train` yields what happens; whoever runs it draws or ignores that."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..config import Config, TrainConfig
from ..data.batch import Batch, normalise
from ..data.dataset import DataSet
from ..data.loaders import steps_per_epoch, training_steps
from ..device import keep_memory, peak_memory_mb, pick_precision
from ..errors import DivergedError, Interrupted
from ..evaluate.backends import choose_backend
from ..evaluate.coco import coco_metrics, detect_all
from ..files import write_text
from ..losses import criterion
from ..predict import Detector
from .events import Evaluated, Evaluating, Event, Finished, Saved, Started, Step, Warned
from .optim import lr_factor, set_lr
from .run import MetricsLog, save_best
from .state import TrainState, prune_checkpoints, save_checkpoint


class Job(NamedTuple):
    """What is to be trained, on what and where."""

    config: Config
    data: DataSet
    run: Path
    device: torch.device
    stop: Callable[[], int] = lambda: 0  # or the exit code of a signal that asked for an end


class Plan(NamedTuple):
    """What is due after which optimizer step; steps and epochs count from 1."""

    per_epoch: int  # optimizer steps
    config: TrainConfig

    @property
    def total(self) -> int:
        """All optimizer steps of the run."""
        return self.config.epochs * self.per_epoch

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to."""
        return -(-step // self.per_epoch)

    def evaluates_after(self, step: int) -> bool:
        """At the end of every few epochs, and of the last one."""
        epoch = self.epoch(step)
        due = epoch % self.config.eval_every_epochs == 0 or epoch == self.config.epochs
        return due and step % self.per_epoch == 0

    def saves_after(self, step: int) -> bool:
        """At the end of every epoch, and every few steps if the config says so."""
        every = self.config.save_every_steps
        return step % self.per_epoch == 0 or (every > 0 and step % every == 0)


def train(job: Job, state: TrainState) -> Iterator[Event]:
    """Train to the last epoch. Everything that the run leaves behind is in its folder.

    Raises:
        DivergedError: a loss or a gradient is not finite; the weights before that step are kept.
        Interrupted: a signal asked for it; the state is saved.
    """
    keep_memory()
    config, train_data, progress = job.config, job.data.train, state.progress
    plan = Plan(steps_per_epoch(len(train_data.image_ids), config.train.batch_size), config.train)
    chunk = images_per_forward(config, job.device)
    log = MetricsLog(job.run, progress["step"])
    yield Started(job.run, describe(job, state, plan.per_epoch, chunk), state.transfer)

    replaced: set[str] = set()
    yield from _evaluate_again(job, state, log)
    state.model.train()
    for batches, started in _with_start(training_steps(train_data, config, chunk, progress["step"], plan.total)):
        waited = time.monotonic() - started
        lr = set_lr(state.optimizer, lr_factor(progress["step"], plan.per_epoch, config.train))
        numbers = train_step(state, batches, job)
        step = progress["step"] = progress["step"] + 1
        seconds = time.monotonic() - started
        numbers |= {"lr": lr, "seconds": seconds, "data_seconds": waited, "memory_mb": round(peak_memory_mb())}
        log.add({"step": step, "epoch": plan.epoch(step)} | numbers)
        numbers |= {"images": sum(len(batch.indices) for batch in batches)}
        yield Step(step, plan.epoch(step), plan.total, numbers)
        yield from _bad_pictures(batches, replaced, len(train_data.image_ids))

        if plan.evaluates_after(step):
            progress["due_evaluation"] = plan.epoch(step)
            yield Saved(_save(job, state), step)  # a kill while evaluating must not cost the epoch
            yield from _evaluate(job, state, log)
        asked = job.stop()
        if asked or plan.saves_after(step):
            yield Saved(_save(job, state), step)
        if asked and (step < plan.total or progress["due_evaluation"]):
            raise Interrupted(f"interrupted after step {step} of {plan.total}; {job.run} has the state", asked)
    yield Finished(job.run, progress["best_ap"], job.run / "best.safetensors")


def _evaluate_again(job: Job, state: TrainState, log: MetricsLog) -> Iterator[Event]:
    """Do the evaluation that a signal cut short, if one did."""
    if state.progress["due_evaluation"]:
        yield from _evaluate(job, state, log)
        if job.stop():
            raise Interrupted(f"interrupted in an evaluation; {job.run} has the state", job.stop())


def _with_start(steps: Iterable[list[Batch]]) -> Iterator[tuple[list[Batch], float]]:
    """Each step's batches, and when the wait for them began."""
    started = time.monotonic()
    for batches in steps:
        yield batches, started
        started = time.monotonic()


def train_step(state: TrainState, batches: list[Batch], job: Job) -> dict[str, float]:
    """One optimizer step over all batches of it; returns what is logged.

    Raises:
        DivergedError: before the step, so that the weights stay as they were.
    """
    config = job.config
    dtype = pick_precision(config.train.amp, job.device)
    num_boxes = float(sum(len(target.labels) for batch in batches for target in batch.targets))
    logged: dict[str, torch.Tensor] = {}
    for batch in batches:
        prepared = normalise(batch, config.model.pixel_mean, config.model.pixel_std, job.device)
        with torch.autocast(job.device.type, dtype=dtype, enabled=dtype is not None):
            output = state.model(prepared.images, prepared.padding, prepared.targets)
        terms = criterion(output, prepared.targets, num_boxes, config.loss)
        state.scaler.scale(torch.stack(list(terms.values())).sum()).backward()
        for name, value in terms.items():
            key = _group(name)
            logged[key] = logged.get(key, 0) + value.detach()
    state.scaler.unscale_(state.optimizer)
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, config.train.clip_norm or float("inf"))
    values: list[float] = torch.stack([*logged.values(), norm]).tolist()  # the one wait for the device
    numbers: dict[str, float] = {"loss": sum(values[:-1])}
    numbers |= zip([*logged, "grad_norm"], values, strict=True)
    _stop_if_not_finite(numbers, batches, state, job)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model)
    return numbers


def images_per_forward(config: Config, device: torch.device) -> int:
    """How many pictures go through the model at once; the rest of a step's batch is accumulated."""
    if config.train.images_per_forward != "auto":
        return min(config.train.images_per_forward, config.train.batch_size)
    return 1 if device.type == "cpu" else config.train.batch_size


def describe(job: Job, state: TrainState, per_epoch: int, chunk: int) -> dict[str, str]:
    """What will be done, for people to read before it begins."""
    config, train = job.config, job.data.train
    dtype = pick_precision(config.train.amp, job.device)
    names = [category.name for category in train.categories]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    rounds = -(-config.train.batch_size // chunk)
    return {
        "data": job.data.source,
        "pictures": f"{len(train.image_ids)} to train on, {len(job.data.val.image_ids)} to evaluate on",
        "classes": f"{len(names)}: {shown}",
        "model": f"{sum(p.numel() for p in state.model.parameters()) / 1e6:.1f} M parameters, {config.model.backbone}",
        "batch": f"{config.train.batch_size} pictures a step ({chunk} at a time, {rounds} times)",
        "steps": f"{per_epoch} an epoch, {config.train.epochs} epochs",
        "device": f"{job.device}, {torch.get_num_threads()} threads, {str(dtype or torch.float32)[6:]}",
        "weights": state.progress["origin"],
        "evaluation": f"COCO's, by {choose_backend(config.eval.backend)}",
        "run": str(job.run),
    }


def _group(name: str) -> str:
    """`stage3/box` -> `matching/box`: the layers of a stage are logged as one number."""
    stage, term = name.split("/")
    kind = stage.rstrip("0123456789")
    return f"{'matching' if kind == 'stage' else kind}/{term}"


def _stop_if_not_finite(numbers: dict[str, float], batches: list[Batch], state: TrainState, job: Job) -> None:
    bad = [name for name, value in numbers.items() if not torch.tensor(value).isfinite()]
    scaling = state.scaler.is_enabled() and bad == ["grad_norm"]  # the scaler itself skips such a step
    if not bad or scaling:
        return
    pictures = [str(job.data.train.path(i)) for batch in batches for i in batch.indices]
    lines = [f"step {state.progress['step'] + 1}", *(f"{k} = {v}" for k, v in numbers.items()), *pictures]
    write_text(job.run / "diverged.txt", "\n".join(lines) + "\n")
    raise DivergedError(
        f"{', '.join(bad)} is not finite in step {state.progress['step'] + 1}; no step was taken with it, the last "
        f"state is in {job.run}/checkpoints, the pictures are listed in {job.run}/diverged.txt; "
        "try a lower --lr or --amp off"
    )


def _bad_pictures(batches: list[Batch], known: set[str], num_images: int) -> Iterator[Event]:
    from ..errors import DataError

    for text in (problem for batch in batches for problem in batch.problems):
        if text not in known:
            known.add(text)
            yield Warned(f"{text}; another picture takes its place")
    if len(known) > max(3, num_images // 100):
        raise DataError(f"{len(known)} of {num_images} pictures cannot be read, which is more than 3 and more than 1 %")


def _save(job: Job, state: TrainState) -> Path:
    folder = job.run / "checkpoints"
    path = save_checkpoint(folder, state, job.config, job.data.train.categories)
    prune_checkpoints(folder, job.config.train.keep_checkpoints)
    return path


def _evaluate(job: Job, state: TrainState, log: MetricsLog) -> Iterator[Event]:
    """Judge the weights that would be kept, on the validation split."""
    config, val, progress = job.config, job.data.val, state.progress
    epoch = progress["due_evaluation"]
    detector = Detector(state.ema.model, config, job.data.train.categories, job.device, config.train.amp)
    results: list[dict[str, Any]] = []
    for done, (found, problems) in enumerate(detect_all(detector, val), start=1):
        results += found
        for problem in problems:
            yield Warned(problem)
        yield Evaluating(done, len(val.image_ids))
        if job.stop():
            return  # still due, so it is done again after the resume
    progress["due_evaluation"] = 0
    state.model.train()
    metrics = coco_metrics(val, results, config.eval.backend)
    best = metrics.summary["AP"] > progress["best_ap"] or not progress["best_step"]  # of equals the oldest
    if best:
        progress |= {"best_ap": metrics.summary["AP"], "best_step": progress["step"]}
        facts = {"step": progress["step"], "epoch": epoch, "metrics": metrics.summary, "data": job.data.source}
        save_best(job.run, state.ema.model, config, job.data.train.categories, facts)
    log.add({"step": progress["step"], "epoch": epoch} | metrics.summary | {"backend": metrics.backend})
    yield Evaluated(progress["step"], epoch, config.train.epochs, metrics, best)
