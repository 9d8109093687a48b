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

BUCKET_MB = 25  # of gradients that travel together; PyTorch's own default


class DDP(DistributedDataParallel):
    """PyTorch's DDP, which also knows what this rank still owes to the others when its backward pass fails."""

    def __init__(self, model: nn.Module):
        known = inspect.signature(DistributedDataParallel.__init__).parameters  # newer torch has another word for it
        buffers: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        super().__init__(model, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB, **buffers)
        self.reduced: list[Future[Tensor]] = []  # the buckets of this step that were handed to the others
        self.register_comm_hook(self.reduced, reduce_bucket)

    def reduce_missing(self) -> None:
        """Add zeros to the buckets that a failed pass did not get to, so that no rank waits for them."""
        for bucket in cast(Any, self.reducer)._get_zeros_like_grad_buckets()[len(self.reduced) :]:
            reduce_bucket(self.reduced, bucket)
        for future in self.reduced:
            future.wait()

    def rebuild_buckets(self) -> None:
        """Order the buckets as gradients came, once: not in the next forward pass, which may fail before it talks."""
        cast(Any, self.reducer)._rebuild_buckets()


def reduce_bucket(reduced: list[Future[Tensor]], bucket: dist.GradBucket) -> Future[Tensor]:
    """What DDP does with a bucket of gradients; remembered."""
    reduced.append(allreduce_hook(cast(dist.ProcessGroup, dist.group.WORLD), bucket))
    return reduced[-1]


def wrap(model: nn.Module, group: SingleProcess) -> nn.Module:
    """The model as training calls it: itself, or with several ranks wrapped so that gradients are averaged."""
    return DDP(model) if isinstance(group, ProcessGroup) else model


def no_sync(model: nn.Module) -> AbstractContextManager:
    """Within it, gradients stay on this rank and add up."""
    return model.no_sync() if isinstance(model, DDP) else nullcontext()
