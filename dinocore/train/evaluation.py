"""Evaluate the weights during a run: ranks split the images, rank 0 computes the metrics."""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..data.annotations import Annotations
from ..data.loaders import Shard
from ..errors import DivergedError, EnvironmentFault, PeerFailed
from ..evaluate.coco import Metrics, coco_metrics, detect_all
from ..evaluate.thresholds import best_thresholds
from ..model.dino import DINO
from ..predict import Detector
from .context import RunContext
from .events import Evaluated, Evaluating, Event, Warned
from .run.folder import save_best
from .run.metrics_log import MetricsLogger, NoLogger
from .run.report import save_examples
from .state import TrainState


class EvaluationFailed(Exception):
    """Any failure in an evaluation. It becomes a warning, so that hours of training are not lost."""


class Detected(NamedTuple):
    """The detections in an image of this rank, and the progress of all ranks."""

    done: int  # images, over all ranks
    stop: bool  # requested on any rank
    results: list[dict[str, Any]]
    problems: list[str]


def evaluate(context: RunContext, state: TrainState, logger: MetricsLogger | NoLogger) -> Iterator[Event]:
    """Evaluate the weights that would be saved, on the validation split. If a signal interrupts it, it stays due.

    Raises:
        DivergedError: a prediction is not finite.
    """
    progress, epoch, group = state.progress, state.progress.due_evaluation, context.group
    detected: list[Detected] = []
    try:
        for image in _detect(context, state):
            detected.append(image)
            yield Evaluating(image.done, len(context.data.val.image_ids))
            if image.stop:
                return
        results: list[dict[str, Any]] = []
        unreadable = 0
        for images in zip(*group.gather([(one.results, one.problems) for one in detected]), strict=True):
            for found, problems in images:  # back in the order of the annotations
                results += found
                unreadable += len(problems)
                yield from map(Warned, problems)
        metrics = group.on_main(lambda: _metrics(context, results, unreadable))
    except (EvaluationFailed, PeerFailed) as error:
        progress.failed_evaluations += 1
        so_far = f"{progress.failed_evaluations} of this run so far"
        yield Warned(f"the evaluation after epoch {epoch} failed ({error}), {so_far}; training continues")
    else:
        best = yield from _keep_if_best(context, state, metrics, epoch, results)
        progress.evals_since_best = 0 if best else progress.evals_since_best + 1
        row = {"step": progress.step, "epoch": epoch} | metrics.summary | {"backend": metrics.backend}
        row |= {"images": metrics.num_images, "unreadable": metrics.unreadable}
        yield from map(Warned, logger.add(row))
        yield Evaluated(progress.step, epoch, context.config.train.epochs, metrics, best)
    progress.due_evaluation = 0
    state.model.train()


def _detect(context: RunContext, state: TrainState) -> Iterator[Detected]:
    """This rank's images, one by one; the ranks synchronise their status after each.

    Raises:
        DivergedError: predictions on one rank are not finite.
        EvaluationFailed: on all ranks, if it failed on one.
    """
    group, total = context.group, len(context.data.val.image_ids)
    images = _own_images(context, state.ema.model)
    for done in range(group.size, total + group.size, group.size):
        results, problems, diverged, failure = [], [], False, ""
        try:
            results, problems = next(images, ([], []))
        except DivergedError:
            diverged = True
        except Exception as error:  # see EvaluationFailed
            failure = _message(error)
        stops, divergences, failures = zip(
            *group.gather_numbers([context.stop(), diverged, bool(failure)]), strict=True
        )
        if any(divergences):
            raise DivergedError(
                f"the model's predictions are not finite in the evaluation after step {state.progress.step}; "
                "try a lower --lr, or --amp off, from an earlier checkpoint"
            )
        if any(failures):
            raise EvaluationFailed(next(filter(None, group.gather(failure))))
        yield Detected(min(done, total), any(stops), results, problems)


def _own_images(context: RunContext, model: DINO) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Results and problems of this rank's images; setting up the detector may fail like an image."""
    config, group = context.config, context.group
    detector = Detector(model, config, context.data.train.categories, context.device, config.train.amp)
    yield from detect_all(detector, context.data.val, Shard(group.rank, group.size))


def _metrics(context: RunContext, results: list[dict[str, Any]], unreadable: int) -> Metrics:
    try:
        return coco_metrics(context.data.val, results, context.config.eval.backend, unreadable)
    except Exception as error:
        raise EvaluationFailed(_message(error)) from error


def _keep_if_best(
    context: RunContext, state: TrainState, metrics: Metrics, epoch: int, results: list[dict[str, Any]]
) -> Generator[Event, None, bool]:
    """Save the weights if they are the best so far: the first in case of ties, and never with NaN.

    While AP is 0 or cannot be measured, the newest weights count as the best, and patience does not run out.
    """
    progress, ap = state.progress, metrics.summary["AP"]
    if not math.isfinite(ap) or (ap <= progress.best_ap and progress.best_ap > 0):
        return False
    kept = False
    try:
        context.group.on_main(lambda: _keep_best(context, state.ema.model, metrics, progress.step, epoch, results))
        kept = True
        context.group.on_main(lambda: _keep_examples(context, epoch, results))
    except (EvaluationFailed, PeerFailed) as error:
        yield Warned(f"{error}; training continues")
    if not kept:
        return False
    progress.best_ap, progress.best_step = ap, progress.step
    return True


def _keep_best(
    context: RunContext, model: DINO, metrics: Metrics, step: int, epoch: int, results: list[dict[str, Any]]
) -> None:
    facts = {"step": step, "epoch": epoch, "metrics": metrics.summary, "data": context.data.source}
    facts |= _training_sizes(context.data.train, context.config.data.min_box_size)
    with _evaluation_errors("the best weights cannot be saved"):
        facts["thresholds"] = best_thresholds(context.data.val, results)  # `predict` uses it
        save_best(context.folder, model, context.config, context.data.train.categories, facts)


def _training_sizes(train: Annotations, min_box_size: float) -> dict[str, int]:
    """Sizes for `--slice auto` in pixels: median short side of images, and 90th percentile of object length."""
    sides = train.boxes[train.trainable(min_box_size), 2:].max(1)
    return {"median_short_side": int(np.median(train.sizes.min(1))), "object_side": int(np.quantile(sides, 0.9))}


def _keep_examples(context: RunContext, epoch: int, results: list[dict[str, Any]]) -> None:
    with _evaluation_errors("examples for the report cannot be saved"):
        save_examples(context.folder, context.data.val, epoch, results)


@contextmanager
def _evaluation_errors(what: str) -> Iterator[None]:
    """Convert any error to EvaluationFailed."""
    try:
        yield
    except EnvironmentFault as error:
        raise EvaluationFailed(str(error)) from error
    except Exception as error:
        raise EvaluationFailed(f"{what} ({_message(error)})") from error


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
