"""Recognise external failures: out of memory, dead workers, nondeterministic operations."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...config import Config
from ...data.batch import Batch
from ...errors import DataError, DinoError, EnvironmentFault
from ...model.ops.dispatch import use_backend
from ...system.memory import peak_memory_mb
from ...system.processes import SingleProcess
from ...words import counted

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Unable to allocate")
WORKER = ("DataLoader worker", "DataLoader timed out")
NOT_DETERMINISTIC = "does not have a deterministic implementation"
SHARED = "/dev/shm"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the host ran out of memory."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in NO_MEMORY))


def out_of_memory_message(batches: list[Batch], group: SingleProcess) -> str:
    """The error message: what was being computed, and which settings need less memory."""
    who = f" on rank {group.rank} of {group.size}" if group.size > 1 else ""
    largest = max(batches, key=lambda batch: batch.images.numel())
    number, _, height, width = largest.images.shape
    sizes = ", ".join(
        sorted({f"{w} x {h}" for h, w in (_size(batch, i) for batch in batches for i in range(len(batch.indices)))})
    )
    objects = ", ".join(str(len(target.labels)) for batch in batches for target in batch.targets)
    return (
        f"out of memory{who} (peak {peak_memory_mb():.0f} MB) with micro-batches of up to "
        f"{counted(number, 'image')} padded to {width} x {height}, images of {sizes} with {objects} objects; "
        "to reduce memory, use --batch-size auto, --set "
        "train.micro_batch_size=1, --set train.on_out_of_memory=halve (the same batch in smaller micro-batches), --set "
        "model.checkpoint_activations=true, --amp bf16 or a smaller --set data.max_size"
    )


def _size(batch: Batch, i: int) -> tuple[int, int]:
    """Height and width of an image without its padding."""
    inside = ~batch.padding[i]
    return int(inside.any(1).sum()), int(inside.any(0).sum())


def loader_fault(error: BaseException) -> DinoError | None:
    """The error to show to the user for a data loader's error; None if it is a bug of ours."""
    message = str(error)
    if isinstance(error, DataError):  # from a worker: the message starts with its traceback
        return DataError(message.strip().splitlines()[-1].removeprefix("dinocore.errors.DataError: "))
    lost = isinstance(error, ConnectionError | EOFError)  # while a batch was being transferred
    if not lost and not (isinstance(error, RuntimeError) and any(word in message for word in WORKER)):
        return None
    if message.startswith("Caught ") and not is_out_of_memory(error):  # a bug of ours in a worker
        return None
    for child in multiprocessing.active_children():  # one that hangs would prevent this process from exiting
        child.kill()
    slow = "timed out" in message
    why = "took too long for an image" if slow else "was killed, perhaps because the system ran out of memory"
    more = "check the disk, or raise data.loader_timeout" if slow else "use fewer --workers, or make /dev/shm larger"
    return EnvironmentFault(f"a data loading worker {why} ({(message or repr(error)).splitlines()[0]}); {more}")


def check_shared_memory(config: Config, workers: int) -> str:
    """A warning if batches will not fit into shared memory; else empty."""
    if not workers or not os.path.isdir(SHARED):
        return ""
    batch = 3 * config.data.max_size * max(config.data.train_scales) * config.train.batch_size
    needed, free = 4 * workers * batch, shutil.disk_usage(SHARED).free  # each worker prefetches up to 4
    if free >= needed:
        return ""
    return (
        f"{SHARED} has {free / 1e6:.0f} MB free, and {workers} data loading workers may need "
        f"{needed / 1e6:.0f} MB; in Docker use --ipc=host or --shm-size, elsewhere fewer --workers"
    )


def check_is_deterministic(error: Exception) -> None:
    """Raise a readable error if PyTorch rejected an operation because of `--deterministic`.

    Raises:
        EnvironmentFault: it did.
    """
    if NOT_DETERMINISTIC in str(error):
        operation = str(error).split(NOT_DETERMINISTIC)[0].strip()
        raise EnvironmentFault(
            f"this device cannot run a step deterministically: {operation} has no deterministic implementation; "
            "train without --deterministic, or on a CPU"
        ) from error


@contextmanager
def deterministic(enabled: bool, device: torch.device) -> Iterator[None]:
    """If `enabled`, raise an error on nondeterministic operations within the block.

    On a GPU, our compiled deformable attention accumulates gradients in any order, which PyTorch cannot detect; so the
    reference implementation is used, whose operations are PyTorch's own.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(True)
    try:
        with use_backend("auto" if device.type == "cpu" else "reference", all_threads=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
