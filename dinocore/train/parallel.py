"""How processes share one model: each has a copy, and gradients are averaged."""

import gc
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ..distributed import Alone
from ..errors import DivergedError, OutOfMemory
from ..model.dino import DINO

T = TypeVar("T")
TOGETHER = (OutOfMemory, DivergedError)  # what one process meets in a pass, and all raise


class Single:
    """One process, which has nobody to share with."""

    def __init__(self, model: DINO, group: Alone):
        self.model, self.group = model, group
        self.module: nn.Module = model  # as training calls it

    def held(self) -> AbstractContextManager:
        """Gradients of the passes within stay on this process for now."""
        return nullcontext()

    def passes(self, work: Callable[[], T]) -> T:
        """Do passes in which no process waits for another; an error of `TOGETHER` is everybody's."""
        return work()

    def last_pass(self, work: Callable[[], T]) -> T:
        """Do the backward pass that averages the gradients; an error of `TOGETHER` is everybody's."""
        return work()

    def renew(self) -> None:
        """Forget what a pass that failed has left."""


class Replicated(Single):
    """Each process has the whole model."""

    def __init__(self, model: DINO, group: Alone):
        super().__init__(model, group)
        self.renew()

    def held(self) -> AbstractContextManager:
        return self.averaging.no_sync()

    def passes(self, work: Callable[[], T]) -> T:
        return self.group.all_or_none(work, TOGETHER, lambda: None)

    def last_pass(self, work: Callable[[], T]) -> T:
        result = self.group.all_or_none(work, TOGETHER, self._average_the_rest)
        self.averaged.clear()
        self.averaging.reducer._rebuild_buckets()  # talks, once: not in the next forward pass, which may fail before
        return result

    def renew(self) -> None:
        self.averaging = self.module = None  # type: ignore[assignment]  # its hooks on the parameters go with it
        gc.collect()
        known = inspect.signature(DistributedDataParallel.__init__).parameters  # newer torch has another word for it
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        unchanging: dict[str, Any] = {buffers: False}
        self.averaging = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **unchanging)
        self.averaged: list[Future[Tensor]] = []  # buckets of gradients in the present backward pass
        self.averaging.register_comm_hook(self.averaged, average)
        self.module = self.averaging

    def _average_the_rest(self) -> None:
        """Add nothing to the buckets that a pass that failed did not get to, so that nobody waits for them."""
        for bucket in self.averaging.reducer._get_zeros_like_grad_buckets()[len(self.averaged) :]:
            average(self.averaged, bucket)
        for future in self.averaged:
            future.wait()


def average(averaged: list[Future[Tensor]], bucket: dist.GradBucket) -> Future[Tensor]:
    """What DDP does with a bucket of gradients; remembered."""
    averaged.append(allreduce_hook(dist.group.WORLD, bucket))  # type: ignore[arg-type]
    return averaged[-1]


def parallel(model: DINO, group: Alone) -> Single:
    """How the processes of a group share a model."""
    return (Replicated if group.size > 1 else Single)(model, group)
