"""Processes of which each has a part of every tensor: weights, gradients, moving averages and the optimizer's state.

FSDP2 (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) puts a layer together when it is needed.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..config import ModelConfig
from ..errors import DivergedError, EnvironmentFault, OutOfMemory
from ..model.build import build_model
from ..model.dino import DINO
from ..system.processes import Processes
from .ddp import Single
from .shards import move_shards, read_shards, write_shards

T = TypeVar("T")
SHARDS = ".tmp-shards"  # where processes write their parts before the checkpoint is put together


class Sharded(Single):
    """Each process has a part of every tensor. All go through every pass together."""

    def __init__(self, model: DINO, group: Processes, config: ModelConfig):
        super().__init__(model, group)
        self.words = group.words
        self.config = config
        self.device = next(model.parameters()).device
        self.mesh = init_device_mesh(self.device.type, (group.size,))
        self.spread(model)

    def spread(self, model: DINO) -> None:
        if isinstance(model, FSDPModule):
            return
        model.to(memory_format=torch.contiguous_format)  # the only one that FSDP takes
        for part in (*_blocks(model.backbone), *model.encoder.layers, *model.decoder.layers):
            fully_shard(part, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)

    def forward(self, work: Callable[[], T]) -> T:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nobody changes
                return self.group.all_or_none(work, DivergedError, lambda: None)
        except DivergedError:
            self.renew()
            raise

    def passes(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OutOfMemory as error:  # others wait for parts of this process, and nothing can be agreed upon
            raise EnvironmentFault(f"{error}; with train.sharding = fsdp2 go on with --resume auto") from error

    last_pass = passes

    def clip(self, trained: list[nn.Parameter], most: float) -> Tensor:
        norm = super().clip(trained, most)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def renew(self) -> None:
        for model in self.model.modules():
            if isinstance(model, FSDPModule):
                model.reshard()
        if isinstance(self.model, FSDPModule):
            self.model.reset_iter_state()

    def whole(self, model: DINO) -> DINO:
        with torch.random.fork_rng(devices=()):  # training draws as if nothing had been built
            copied = build_model(self.config).to(self.device)
        copied.load_state_dict({key: _full(value) for key, value in model.state_dict().items()})
        for here, there in zip(copied.parameters(), model.parameters(), strict=True):
            here.requires_grad_(there.requires_grad)
        return copied.train(model.training)

    def weights(self, model: DINO) -> dict[str, Tensor]:
        found = ((key, _full(value)) for key, value in model.state_dict().items())
        return {key: value.cpu() for key, value in found if self.group.main}

    def parts(self, model: DINO, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        state = model.state_dict()
        return {key: self._part(state.get(key), value) for key, value in tensors.items()}

    def optimizer_writer(self, optimizer: torch.optim.Optimizer, folder: Path) -> Callable[[Path], None]:
        shards = folder / SHARDS
        self.group.on_main(lambda: shutil.rmtree(shards, ignore_errors=True))
        write_shards(shards, self.model, optimizer, self.words)
        return lambda target: move_shards(shards, target)

    def read_optimizer(self, optimizer: torch.optim.Optimizer, path: Path) -> None:
        read_shards(path, self.model, optimizer)

    def _part(self, like: Tensor | None, value: Tensor) -> Tensor:
        if not isinstance(like, DTensor) or like.shape != value.shape:
            return value  # a buffer, or what will be refused
        return distribute_tensor(value.to(self.device), self.mesh, like.placements, src_data_rank=None)


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of lists of modules; such a member is called as a whole, whoever calls it."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (block for block in child if any(True for _ in block.children()))
        else:
            yield from _blocks(child)
