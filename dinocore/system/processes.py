"""Communication between the ranks of a training or evaluation.

`torchrun`, or `dino train --gpus N`, starts the ranks and sets their numbers in the environment. Gradients are reduced
with NCCL on GPUs and with Gloo on CPUs; plain numbers always with Gloo, which does not synchronize with a GPU.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import DinoError, EnvironmentFault, PeerFailed
from .device import pick_device

T = TypeVar("T")
TIMEOUT = timedelta(minutes=15)  # for a rank that hangs; one that exits is noticed at once
PATIENCE = timedelta(days=7)  # while rank 0 reads data, saves or evaluates, which may take any time
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "TCPStore")


class SingleProcess:
    """The interface between ranks, for a run with a single process."""

    rank = 0
    size = 1
    main = True  # the one that writes and prints

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order, on every rank."""
        return [value]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """The same for numbers, as many on each rank; faster."""
        return [list(numbers)]

    def all_true(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on every rank."""
        return [all(column) for column in zip(*self.gather_numbers(flags), strict=True)]

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 only and return its result on every rank.

        Raises:
            PeerFailed: on the other ranks, if it failed; rank 0 raises the original error.
        """
        return work()

    def main_first(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank, on rank 0 first."""
        return work()

    def on_all_ranks(self, error: DinoError) -> DinoError:
        """The error to raise on each rank, such that only rank 0 prints it."""
        return error


class ProcessGroup(SingleProcess):
    """One of several ranks."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.main = rank, size, rank == 0
        self.gloo: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE)  # while rank 0 works alone

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.gloo)
        return values

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        own = torch.tensor(numbers, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own, group=self.gloo)
        return [row.tolist() for row in rows]

    def on_main(self, work: Callable[[], T]) -> T:
        if not self.main:
            return self._receive()
        try:
            result = work()
        except BaseException as error:
            self._broadcast(PeerFailed(error.exit_code if isinstance(error, DinoError) else 1))
            raise
        return self._broadcast(result)

    def main_first(self, work: Callable[[], T]) -> T:
        if self.main:
            results: list[T] = []
            self.on_main(lambda: results.append(work()))  # returns None: the other ranks run it themselves
            return results[0]
        self._receive()
        return work()

    def on_all_ranks(self, error: DinoError) -> DinoError:
        return error if self.main else PeerFailed(error.exit_code)

    def _broadcast(self, value: T) -> T:
        dist.broadcast_object_list([value], src=0, group=self.patient)
        return value

    def _receive(self) -> Any:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        if isinstance(box[0], PeerFailed):
            raise box[0]
        return box[0]


def world_size() -> int:
    """The number of ranks started together, even before they are connected."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank_number() -> int:
    """The number of this rank, even before the ranks are connected."""
    return int(os.environ.get("RANK", 0))


def device_of_rank(name: str) -> str:
    """The device of this rank: its own GPU if a GPU without a number is requested."""
    if world_size() == 1 or name not in ("auto", "cuda"):
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


@contextmanager
def process_group(device: torch.device) -> Iterator[SingleProcess]:
    """Connect to the other ranks, if there are any; on CUDA, also make `device` the current device.

    Raises:
        EnvironmentFault: they cannot be reached, or one of them has exited.
    """
    if device.type == "cuda":  # RNG states and memory statistics refer to the current device
        torch.cuda.set_device(device)
    if world_size() == 1:
        yield SingleProcess()
        return
    if device.type not in ("cpu", "cuda"):
        raise EnvironmentFault(f"cannot train with several ranks on {device.type}; use one, or --device cpu")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    except (RuntimeError, ValueError) as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in LOST):
            raise
        raise EnvironmentFault(
            "lost the connection to the other ranks, because one of them exited or cannot be reached; "
            "see its own message for the reason"
        ) from error
    dist.destroy_process_group()


@contextmanager
def join_ranks(name: str) -> Iterator[tuple[torch.device, SingleProcess]]:
    """Connect to the other ranks; yields this rank's device, for a name as in `--device`, and the group.

    Raises:
        EnvironmentFault: this machine has no such device, or as for `process_group`.
    """
    device = pick_device(device_of_rank(name))
    with process_group(device) as group:
        yield device, group
