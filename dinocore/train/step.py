"""One optimizer step: the gradients of a batch, over all forward passes and processes, and what is done with them."""

import math

import torch
from torch import Tensor

from ..data.batch import Batch
from ..errors import DivergedError, EnvironmentFault, OutOfMemory
from .failures.classify import explained
from .failures.non_finite import diverged
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
        OutOfMemory: the same, for want of memory on one of them.
        EnvironmentFault: memory suffices for the gradients, but not for the step: the state is lost.
    """
    numbers = gradients(state, batches, job, num_boxes)
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    overflow = state.scaler.is_enabled() and bad == ["grad_norm"]  # the scaler leaves such a step out by itself
    state.progress["overflows"] = state.progress["overflows"] + 1 if overflow else 0
    if (bad and not overflow) or state.progress["overflows"] >= MOST_OVERFLOWS:
        raise diverged(state, batches, job, num_boxes, bad, numbers)
    try:
        with explained(batches, job.group):
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.ema.update(state.model)
    except OutOfMemory as error:  # weights and averages are changed in part
        raise EnvironmentFault(f"{error}; earlier checkpoints are whole") from error
    return numbers


def gradients(state: TrainState, batches: list[Batch], job: Job, num_boxes: float) -> dict[str, float]:
    """Leave the clipped gradients of the whole step in the parameters; returns its loss and terms and their norm.

    Each loss is divided by the objects of the whole step, so that every split into forward passes and processes
    gives the same sum.

    Raises:
        DivergedError, OutOfMemory: on all processes, if predictions on one cannot be matched, or memory is too little.
    """
    passes = Passes(state, batches, job, num_boxes)
    try:
        loss = state.parallel.passes(passes.to_the_last_forward)
    except DivergedError:
        raise diverged(state, batches, job, num_boxes, ["matching"], {}) from None
    norm = state.parallel.last_pass(lambda: passes.last_backward(loss))
    *mine, grad_norm = torch.stack([*passes.logged.values(), norm]).tolist()  # the one wait for the device
    values: list[float] = [sum(column) for column in zip(*job.group.gather_numbers(mine), strict=True)]
    return {"loss": math.fsum(values)} | dict(zip(passes.logged, values, strict=True)) | {"grad_norm": grad_norm}


class Passes:
    """The forward and backward passes of a step on this process."""

    def __init__(self, state: TrainState, batches: list[Batch], job: Job, num_boxes: float):
        self.state, self.batches, self.job, self.num_boxes = state, batches, job, num_boxes
        self.logged: dict[str, Tensor] = {}  # sums of the losses' terms

    def to_the_last_forward(self) -> Tensor:
        """All passes but the last backward one; the loss that is left for it."""
        *earlier, last = self.batches
        with explained(self.batches, self.job.group):
            for batch in earlier:
                with self.state.parallel.held():
                    self._backward(self._loss(batch))
            return self._loss(last)

    def last_backward(self, loss: Tensor) -> Tensor:
        """The pass after which gradients are those of all processes; their norm before it is clipped."""
        with explained(self.batches, self.job.group):
            self._backward(loss)
            self.state.scaler.unscale_(self.state.optimizer)
            trained = [p for group in self.state.optimizer.param_groups for p in group["params"]]
            return self.state.parallel.clip(trained, self.job.config.train.clip_norm or math.inf)

    def _loss(self, batch: Batch) -> Tensor:
        parallel = self.state.parallel
        terms = parallel.forward(lambda: loss_terms(parallel.module, batch, self.job, self.num_boxes))
        for name, value in terms.items():
            key = _group(name)
            self.logged[key] = self.logged.get(key, 0) + value.detach()
        return torch.stack(list(terms.values())).sum()

    def _backward(self, loss: Tensor) -> None:
        self.state.scaler.scale(loss * self.job.group.size).backward()  # the mean is taken, a sum is wanted


def _group(name: str) -> str:
    """`stage3/box` -> `matching/box`: the layers of a stage are logged as one number."""
    stage, term = name.split("/")
    kind = stage.rstrip("0123456789")
    return f"{'matching' if kind == 'stage' else kind}/{term}"
