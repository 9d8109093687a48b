"""Judging the weights while a run goes on: pictures are shared by the processes, one of them judges."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data.loaders import Part
from ..errors import DivergedError, EnvironmentFault
from ..evaluate.coco import Metrics, coco_metrics, detect_all
from ..evaluate.thresholds import best_thresholds
from ..model.dino import DINO
from ..predict import Detector
from .events import Evaluated, Evaluating, Event, Warned
from .job import Job
from .run.folder import save_best
from .run.metrics_log import Journal, NoJournal
from .run.report import save_examples
from .state import TrainState

Shares = list[tuple[list[dict[str, Any]], list[str]]]  # results and problems of each picture


def evaluate(job: Job, state: TrainState, journal: Journal | NoJournal) -> Iterator[Event]:
    """Judge the weights that would be kept, on the validation split; a signal cuts it short and leaves it due.

    Raises:
        DivergedError: a prediction is not finite.
    """
    progress, epoch = state.progress, state.progress["due_evaluation"]
    model = state.parallel.whole(state.ema.model)
    shares: Shares = []
    failure = ""
    for (done, stopped, problem), share in _detected(job, state, model):
        failure = problem  # only ever of the last one
        shares.append(share)
        yield Evaluating(done, len(job.data.val.image_ids))
        if stopped:
            return
    results: list[dict[str, Any]] = []
    for picture in zip(*job.group.gather(shares), strict=True):  # back in the order of the pictures
        for found, problems in picture:
            results += found
            yield from map(Warned, problems)
    progress["due_evaluation"] = 0
    state.model.train()
    metrics, failure = job.group.on_main(lambda: (None, failure) if failure else _judged(job, results))
    if metrics is None:
        progress["failed_evaluations"] += 1
        so_far = f"{progress['failed_evaluations']} of this run so far"
        yield Warned(f"the evaluation after epoch {epoch} failed ({failure}), {so_far}; training goes on")
        return
    best, problem = job.group.on_main(lambda: _kept_if_best(job, state, model, metrics, epoch, results))
    if problem:
        yield Warned(f"{problem}; training goes on")
    progress["worse"] = 0 if best else progress["worse"] + 1
    if best:
        progress |= {"best_ap": metrics.summary["AP"], "best_step": progress["step"]}
    row = {"step": progress["step"], "epoch": epoch} | metrics.summary | {"backend": metrics.backend}
    yield from map(Warned, journal.add(row))
    yield Evaluated(progress["step"], epoch, job.config.train.epochs, metrics, best)


def _detected(
    job: Job, state: TrainState, model: DINO
) -> Iterator[tuple[tuple[int, bool, str], tuple[list, list[str]]]]:
    """This process's pictures; after each, how many are done by all, and whether any of them is to stop or failed."""
    group, val = job.group, job.data.val
    pictures = _pictures(job, model)
    total = len(val.image_ids)
    for done in range(group.size, total + group.size, group.size):
        share, diverged, failure = ([], []), False, ""
        try:
            share = next(pictures, share)
        except DivergedError:
            diverged = True
        except Exception as error:  # whatever it is, hours of training are worth more
            failure = _in_words(error)
        stops, divergences, failures = zip(*group.gather_numbers([job.stop(), diverged, bool(failure)]), strict=True)
        if any(divergences):
            raise DivergedError(
                f"the model's predictions are not finite in the evaluation after step {state.progress['step']}; "
                "try a lower --lr, or --amp off, from an earlier checkpoint"
            )
        if any(failures):
            failure = next(filter(None, group.gather(failure)))
        yield (min(done, total), any(stops), failure), share
        if failure:
            return


def _pictures(job: Job, model: DINO) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Results and problems of this process's pictures; what is made first may fail like a picture."""
    detector = Detector(model, job.config, job.data.train.categories, job.device, job.config.train.amp)
    yield from detect_all(detector, job.data.val, Part(job.group.rank, job.group.size))


def _judged(job: Job, results: list[dict[str, Any]]) -> tuple[Metrics | None, str]:
    try:
        return coco_metrics(job.data.val, results, job.config.eval.backend), ""
    except Exception as error:  # as above
        return None, _in_words(error)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def _kept_if_best(
    job: Job, state: TrainState, model: DINO, metrics: Metrics, epoch: int, results: list[dict[str, Any]]
) -> tuple[bool, str]:
    """Whether these are the best weights, now kept as such; of equals the oldest, and never what is not a number.

    While AP is 0 or cannot be measured, the newest weights are the best, so that patience does not run out either.
    """
    progress, ap = state.progress, metrics.summary["AP"]
    if not math.isfinite(ap) or (ap <= progress["best_ap"] and progress["best_ap"] > 0):
        return False, ""
    facts = {"step": progress["step"], "epoch": epoch, "metrics": metrics.summary, "data": job.data.source}
    facts["median_short_side"] = int(np.median(job.data.train.sizes.min(1)))  # pixels; `predict --slice auto` cuts so
    try:
        facts["thresholds"] = best_thresholds(job.data.val, results)  # `predict` uses it
        save_best(job.run, model, job.config, job.data.train.categories, facts)
    except EnvironmentFault as error:
        return False, str(error)
    except Exception as error:  # as above
        return False, f"the best weights cannot be kept ({_in_words(error)})"
    try:
        return True, save_examples(job, epoch, results)
    except Exception as error:  # as above
        return True, f"examples for the report cannot be kept ({_in_words(error)})"
