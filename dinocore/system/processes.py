"""Several processes that train one model: what they tell each other. One process is the same with nobody to ask.

`torchrun`, or `dino train --gpus N`, starts the processes and says in the environment who each of them is. Gradients
travel by NCCL between GPUs and by Gloo between CPUs; plain numbers always by Gloo, so that no GPU is waited for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ..errors import DinoError, Ended, EnvironmentFault

T = TypeVar("T")
TIMEOUT = timedelta(minutes=15)  # for a process that hangs; one that dies is noticed at once
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "TCPStore")


class Alone:
    """The only process of a run."""

    rank = 0
    size = 1
    main = True  # the one that writes and speaks

    def gather(self, value: T) -> list[T]:
        """Everybody's value, in the order of ranks, on every process."""
        return [value]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """The same for as many numbers from everybody, and quicker."""
        return [list(numbers)]

    def on_main(self, work: Callable[[], T]) -> T:
        """Do it on the main process only; its result, or the end by its error, is everybody's."""
        return work()

    def main_first(self, work: Callable[[], T]) -> T:
        """Do it on every process, on the others when the main one has done it."""
        return work()

    def together(self, error: DinoError) -> DinoError:
        """An error that every process raises, worded so that it is said once."""
        return error

    def all_or_none(
        self, work: Callable[[], T], errors: type[DinoError] | tuple[type[DinoError], ...], missed: Callable[[], None]
    ) -> T:
        """Do it on every process. If it fails by one of these errors on one, all raise that error.

        Args:
            missed: what a process that failed still owes to others that wait for it in their work.
        """
        return work()


class Processes(Alone):
    """One of several processes."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.main = rank, size, rank == 0
        self.words: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.words)
        return found

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        mine = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self.words)
        return [row.tolist() for row in found]

    def on_main(self, work: Callable[[], T]) -> T:
        if not self.main:
            return self._heard()
        try:
            result = work()
        except BaseException as error:
            self._tell(Ended(error.exit_code if isinstance(error, DinoError) else 1))
            raise
        return self._tell(result)

    def main_first(self, work: Callable[[], T]) -> T:
        if self.main:
            return self.on_main(work)
        self._heard()
        return work()

    def together(self, error: DinoError) -> DinoError:
        return error if self.main else Ended(error.exit_code)

    def all_or_none(
        self, work: Callable[[], T], errors: type[DinoError] | tuple[type[DinoError], ...], missed: Callable[[], None]
    ) -> T:
        fault, result = None, None
        try:
            result = work()
        except errors as error:
            fault = error.with_traceback(None)
        if fault is not None:
            missed()
        if any(failed for (failed,) in self.gather_numbers([fault is not None])):
            raise next(filter(None, self.gather(fault)))
        return cast(T, result)

    def _tell(self, value: T) -> T:
        dist.broadcast_object_list([value], src=0, group=self.words)
        return value

    def _heard(self) -> Any:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=self.words)
        if isinstance(box[0], Ended):
            raise box[0]
        return box[0]


def num_processes() -> int:
    """How many processes were started together, also before they have met."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank_number() -> int:
    """Which of the processes that were started together this is, also before they have met."""
    return int(os.environ.get("RANK", 0))


def own_device(name: str) -> str:
    """The device of this process: its own GPU, where a GPU is asked for and not which."""
    if num_processes() == 1 or name not in ("auto", "cuda"):
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


@contextmanager
def joined(device: torch.device) -> Iterator[Alone]:
    """Meet the other processes, if torchrun started several.

    Raises:
        EnvironmentFault: they cannot be met, or one of them has ended.
    """
    if num_processes() == 1:
        yield Alone()
        return
    if device.type not in ("cpu", "cuda"):
        raise EnvironmentFault(f"several processes cannot train on {device.type}; use one, or --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        yield Processes(dist.get_rank(), dist.get_world_size())
    except (RuntimeError, ValueError) as error:
        if not _by_others(error):
            raise
        raise EnvironmentFault(
            "the connection to the other processes is lost, because one of them ended or cannot be reached; "
            "the reason is in its own message"
        ) from error
    dist.destroy_process_group()


def _by_others(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in LOST)
