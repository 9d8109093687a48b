"""Distributed data parallel: each rank has a copy of the model, and gradients are averaged in the backward pass."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ..system.processes import ProcessGroup, SingleProcess

BUCKET_MB = 25  # size of a bucket of gradients; PyTorch's default


class DDP(DistributedDataParallel):
    """PyTorch's DDP, which also records the reduced buckets, so that the others can follow if a backward pass fails."""

    def __init__(self, model: nn.Module):
        parameters = inspect.signature(DistributedDataParallel.__init__).parameters
        # `broadcast_buffers` has a new name in newer versions of torch
        name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        buffers: dict[str, Any] = {name: False}
        super().__init__(model, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB, **buffers)
        self.reduced: list[Future[Tensor]] = []  # the buckets of this step that this rank has reduced
        self.register_comm_hook(self.reduced, reduce_bucket)

    def reduce_missing(self) -> None:
        """Reduce zeros in the buckets that a failed backward pass did not reach, so that no rank waits for them."""
        for bucket in cast(Any, self.reducer)._get_zeros_like_grad_buckets()[len(self.reduced) :]:
            reduce_bucket(self.reduced, bucket)
        for future in self.reduced:
            future.wait()

    def rebuild_buckets(self) -> None:
        """Rebuild the buckets in the order of the gradients, once.

        DDP does it in the next forward pass, which may fail before it communicates.
        """
        cast(Any, self.reducer)._rebuild_buckets()


def reduce_bucket(reduced: list[Future[Tensor]], bucket: dist.GradBucket) -> Future[Tensor]:
    """A communication hook: average a bucket as DDP does, and record its future."""
    reduced.append(allreduce_hook(cast(dist.ProcessGroup, dist.group.WORLD), bucket))
    return reduced[-1]


def wrap(model: nn.Module, group: SingleProcess) -> nn.Module:
    """The model as training calls it: wrapped in DDP if there are several ranks, otherwise unchanged."""
    return DDP(model) if isinstance(group, ProcessGroup) else model


def no_sync(model: nn.Module) -> AbstractContextManager:
    """A context in which gradients are accumulated on each rank without averaging over ranks."""
    return model.no_sync() if isinstance(model, DDP) else nullcontext()
