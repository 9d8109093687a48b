"""What ends a step from outside: memory that does not suffice, processes that read pictures and died."""

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...config import Config
from ...data.batch import Batch
from ...errors import DataError, DinoError, EnvironmentFault, OutOfMemory
from ...system.device import peak_memory_mb
from ...system.processes import Alone

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Unable to allocate")
WORKER = ("DataLoader worker", "DataLoader timed out")
NOT_DETERMINISTIC = "does not have a deterministic implementation"
SHARED = "/dev/shm"


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device or of the host."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY))


@contextmanager
def explained(batches: list[Batch], group: Alone) -> Iterator[None]:
    """Word what a machine can do to the passes of a step; what they held in memory is let go.

    Raises:
        OutOfMemory: memory does not suffice.
        EnvironmentFault: an operation is not deterministic, as was asked for.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if NOT_DETERMINISTIC in str(error):
            raise EnvironmentFault(
                f"this device cannot do a step deterministically: {str(error).split(NOT_DETERMINISTIC)[0].strip()} has "
                "no such form; train without --deterministic, or on a CPU"
            ) from error
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise OutOfMemory(out_of_memory_text(batches, group)) from error


def out_of_memory_text(batches: list[Batch], group: Alone) -> str:
    """What was tried, and what would need less."""
    who = f" on process {group.rank} of {group.size}" if group.size > 1 else ""
    most = max(batches, key=lambda batch: batch.images.numel())
    number, _, height, width = most.images.shape
    sizes = ", ".join(sorted({f"{w} x {h}" for h, w in (_size(batch, i) for batch in batches for i in _each(batch))}))
    objects = ", ".join(str(len(target.labels)) for batch in batches for target in batch.targets)
    return (
        f"memory does not suffice for this step{who} (peak {peak_memory_mb():.0f} MB): up to {number} pictures at once "
        f"as {width} x {height}, each {sizes}, with {objects} objects. What needs less: --batch-size auto, --set "
        "train.images_per_forward=1 or train.on_out_of_memory=halve (fewer at a time, the same batch); --set "
        "model.checkpoint_activations=true; --amp bf16; a smaller --set data.max_size"
    )


def _each(batch: Batch) -> range:
    return range(len(batch.indices))


def _size(batch: Batch, i: int) -> tuple[int, int]:
    """Height and width of a picture without its padding."""
    inside = ~batch.padding[i]
    return int(inside.any(1).sum()), int(inside.any(0).sum())


def loader_fault(error: BaseException) -> DinoError | None:
    """An error of the processes that read pictures, in words; None if it is none."""
    text = str(error)
    if isinstance(error, DataError):  # of a process that reads, its traceback stands before it
        return DataError(text.strip().splitlines()[-1].removeprefix("dinocore.errors.DataError: "))
    lost = isinstance(error, ConnectionError | EOFError)  # in the middle of handing over a batch
    if not lost and not (isinstance(error, RuntimeError) and any(word in text for word in WORKER)):
        return None
    if text.startswith("Caught ") and not is_out_of_memory(error):  # a bug of ours in such a process
        return None
    for child in multiprocessing.active_children():  # one that hangs would keep this process from ending
        child.kill()
    slow = "timed out" in text
    why = "took too long with a picture" if slow else "was killed, as by a system that is out of memory"
    more = "check the disk, or raise data.loader_timeout" if slow else "use fewer --workers, or give /dev/shm more room"
    return EnvironmentFault(f"a process that reads pictures {why} ({(text or repr(error)).splitlines()[0]}); {more}")


def little_shared_memory(config: Config, workers: int) -> str:
    """A warning, where batches will not fit into the memory that processes share."""
    if not workers or not os.path.isdir(SHARED):
        return ""
    batch = 3 * config.data.max_size * max(config.data.train_scales) * config.train.batch_size
    needed, free = 4 * workers * batch, shutil.disk_usage(SHARED).free  # each prepares up to 4
    if free >= needed:
        return ""
    return (
        f"{SHARED} has {free / 1e6:.0f} MB free, and {workers} processes that read pictures may need "
        f"{needed / 1e6:.0f}; in Docker use --ipc=host or --shm-size, or else fewer --workers"
    )


def deterministic(wanted: bool) -> Any:
    """A context in which operations that may differ from run to run are refused, if `wanted`."""
    return _deterministic() if wanted else _as_usual()


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _as_usual() -> Iterator[None]:
    yield
