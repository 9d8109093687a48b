"""One optimizer step: the gradients of a batch, over all forward passes and processes, and what is done with them."""

import math

import torch
from torch import Tensor

from ..data.batch import Batch
from .diverged import diverged
from .forward import loss_terms
from .job import Job
from .state import TrainState

MOST_OVERFLOWS = 20  # in a row, before fp16 is given up


def train_step(state: TrainState, batches: list[Batch], job: Job, num_boxes: float) -> dict[str, float]:
    """One optimizer step over all batches of it; returns what is logged.

    Args:
        batches: this process's part of the step.
        num_boxes: objects of the whole step, over all processes.

    Raises:
        DivergedError: on all processes together, before the step, so that the weights stay as they were.
    """
    numbers = gradients(state, batches, job, num_boxes)
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    overflow = state.scaler.is_enabled() and bad == ["grad_norm"]  # the scaler leaves such a step out by itself
    state.progress["overflows"] = state.progress["overflows"] + 1 if overflow else 0
    if (bad and not overflow) or state.progress["overflows"] >= MOST_OVERFLOWS:
        raise diverged(state, batches, job, num_boxes, bad, numbers)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model)
    return numbers


def gradients(state: TrainState, batches: list[Batch], job: Job, num_boxes: float) -> dict[str, float]:
    """Leave the clipped gradients of the whole step in the parameters; returns its loss and terms and their norm.

    Each loss is divided by the objects of the whole step, so that every split into forward passes and processes
    gives the same sum.

    Raises:
        DivergedError: on all processes, if predictions on one of them cannot be matched.
    """
    logged: dict[str, Tensor] = {}
    failed = False
    for left, batch in zip(reversed(range(len(batches))), batches, strict=True):
        with job.group.held(state.parallel, hold=left > 0):
            terms = None if failed else loss_terms(state.parallel, batch, job, num_boxes)
            failed = terms is None
            if left == 0 and any(flag for (flag,) in job.group.gather_numbers([failed])):
                raise diverged(state, batches, job, num_boxes, ["matching"], {})
            if terms is not None:
                loss = torch.stack(list(terms.values())).sum()
                state.scaler.scale(loss * job.group.size).backward()  # DDP takes the mean, a sum is wanted
                for name, value in terms.items():
                    key = _group(name)
                    logged[key] = logged.get(key, 0) + value.detach()
    state.scaler.unscale_(state.optimizer)
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, job.config.train.clip_norm or math.inf)
    *mine, grad_norm = torch.stack([*logged.values(), norm]).tolist()  # the one wait for the device
    values: list[float] = [sum(column) for column in zip(*job.group.gather_numbers(mine), strict=True)]
    return {"loss": math.fsum(values)} | dict(zip(logged, values, strict=True)) | {"grad_norm": grad_norm}


def _group(name: str) -> str:
    """`stage3/box` -> `matching/box`: the layers of a stage are logged as one number."""
    stage, term = name.split("/")
    kind = stage.rstrip("0123456789")
    return f"{'matching' if kind == 'stage' else kind}/{term}"
