"""How processes share one model: there is one process, or each has a copy and gradients are averaged."""

import gc
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ..errors import CheckpointError, DivergedError, OutOfMemory
from ..model.dino import DINO
from ..system.files import sync
from ..system.processes import Alone, Processes

T = TypeVar("T")
OPTIMIZER = "optimizer.pt"
SHARDS = ".metadata"  # of an optimizer that FSDP2 wrote in parts, before 0.2.0
TOGETHER = (OutOfMemory, DivergedError)  # what one process meets in a pass, and all raise


class Single:
    """One process, which has nobody to share with."""

    def __init__(self, model: DINO, group: Alone):
        self.model, self.group = model, group
        self.module: nn.Module = model  # as training calls it

    def held(self) -> AbstractContextManager:
        """Gradients of the passes within stay on this process for now."""
        return nullcontext()

    def forward(self, work: Callable[[], T]) -> T:
        """Do a forward pass and compute its loss."""
        return work()

    def passes(self, work: Callable[[], T]) -> T:
        """Do passes in which no process waits for another; an error of `TOGETHER` is everybody's."""
        return work()

    def last_pass(self, work: Callable[[], T]) -> T:
        """Do the backward pass that averages the gradients; an error of `TOGETHER` is everybody's."""
        return work()

    def renew(self) -> None:
        """Forget what a pass that failed has left."""

    def clip(self, trained: list[nn.Parameter], most: float) -> Tensor:
        """Scale gradients down to a norm of at most this; the norm that they had, over all processes."""
        return nn.utils.clip_grad_norm_(trained, most)

    def whole(self, model: DINO) -> DINO:
        """A model with all its weights, that a process can use alone."""
        return model

    def weights(self, model: DINO) -> Mapping[str, Tensor]:
        """All tensors of a model, on the main process."""
        return model.state_dict()

    def parts(self, model: DINO, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This process's part of tensors that are to be a model's."""
        return tensors

    def optimizer_writer(self, optimizer: torch.optim.Optimizer, folder: Path) -> Callable[[Path], None]:
        """What puts the optimizer's state into a checkpoint that the main process makes in `folder`.

        Raises:
            EnvironmentFault: on all processes, if one cannot write its part.
        """

        def write(target: Path) -> None:
            torch.save(optimizer.state_dict(), target / OPTIMIZER)
            sync(target / OPTIMIZER)

        return write

    def read_optimizer(self, optimizer: torch.optim.Optimizer, path: Path) -> None:
        """Take the optimizer's state from a checkpoint."""
        if (path / SHARDS).is_file():
            raise CheckpointError(
                f"{path} was written with train.sharding = fsdp2, which dino no longer has; start a new run from its "
                f"weights: --weights {path / 'model.safetensors'}"
            )
        optimizer.load_state_dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))


class Replicated(Single):
    """Each process has the whole model."""

    def __init__(self, model: DINO, group: Alone):
        super().__init__(model, group)
        self._wrap()

    def held(self) -> AbstractContextManager:
        return self.averaging.no_sync()

    def passes(self, work: Callable[[], T]) -> T:
        return self.group.all_or_none(work, TOGETHER, lambda: None)

    def last_pass(self, work: Callable[[], T]) -> T:
        result = self.group.all_or_none(work, TOGETHER, self._average_the_rest)
        self.averaged.clear()
        self._reducer._rebuild_buckets()  # talks, once: not in the next forward pass, which may fail before
        return result

    def renew(self) -> None:
        del self.averaging, self.module  # its hooks on the parameters go with it
        gc.collect()
        self._wrap()

    def _wrap(self) -> None:
        known = inspect.signature(DistributedDataParallel.__init__).parameters  # newer torch has another word for it
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        unchanging: dict[str, Any] = {buffers: False}
        self.averaging = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **unchanging)
        self.averaged: list[Future[Tensor]] = []  # buckets of gradients in the present backward pass
        self.averaging.register_comm_hook(self.averaged, average)
        self.module = self.averaging

    @property
    def _reducer(self) -> Any:
        return self.averaging.reducer

    def _average_the_rest(self) -> None:
        """Add nothing to the buckets that a pass that failed did not get to, so that nobody waits for them."""
        for bucket in self._reducer._get_zeros_like_grad_buckets()[len(self.averaged) :]:
            average(self.averaged, bucket)
        for future in self.averaged:
            future.wait()


def shared(model: DINO, group: Alone) -> Single:
    """How the processes of a group share a model."""
    return Replicated(model, group) if isinstance(group, Processes) else Single(model, group)


def average(averaged: list[Future[Tensor]], bucket: dist.GradBucket) -> Future[Tensor]:
    """What DDP does with a bucket of gradients; remembered."""
    averaged.append(allreduce_hook(cast(dist.ProcessGroup, dist.group.WORLD), bucket))
    return averaged[-1]
