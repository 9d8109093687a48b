"""Which device and which precision to compute with, and how to keep memory from going back and forth."""

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ConfigError, EnvironmentFault

try:
    import resource
except ImportError:  # Windows
    resource = None

PRECISIONS = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        EnvironmentFault: this machine has no such device.
    """
    name, available = str(name), ["cpu"]
    available += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    if (f"{name}:0" if name == "cuda" else name) not in available:
        raise EnvironmentFault(f"there is no device `{name}` here; available: {', '.join(available)}")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """`auto`, `off`, `bf16` or `fp16` to the dtype of autocast, None for float32 throughout.

    Raises:
        ConfigError: it is none of these.
    """
    if name == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    if name not in PRECISIONS:
        raise ConfigError(f"there is no precision `{name}`; choose auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def float32_throughout(wanted: bool) -> Iterator[None]:
    """Within the block, no TF32 on CUDA, which cuDNN's convolutions use by default; if `wanted`."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if wanted:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if wanted:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def keep_memory() -> None:
    """Tell glibc to keep freed memory; it returns large tensors otherwise, and page faults take 40 % of the time."""
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
    except (OSError, AttributeError):  # another C library
        return


@functools.cache
def compute_alone_after_fork() -> None:
    """Let processes that are forked from this one compute with one thread each; what is called again is nothing new.

    The threads of OpenMP are not there in a child, which would wait for them for ever in its first large operation.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def release_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of a device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if device.type == "mps":
        torch.mps.empty_cache()


def peak_memory_mb() -> float:
    """The most memory that this process has held, on the device if it is CUDA's, otherwise on the host."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return _peak_on_windows_mb()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _peak_on_windows_mb() -> float:
    """PeakWorkingSetSize of this process; 0.0 where the system does not say."""

    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS
        _fields_ = [
            ("cb", ctypes.c_ulong), ("PageFaultCount", ctypes.c_ulong), ("PeakWorkingSetSize", ctypes.c_size_t),
            *((name, ctypes.c_size_t) for name in "abcdefg"),
        ]  # fmt: skip

    kernel = getattr(ctypes, "windll", None)
    if kernel is None:
        return 0.0
    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel.kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.kernel32.GetCurrentProcess())
    ok = kernel.psapi.GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb)
    return counters.PeakWorkingSetSize / 2**20 if ok else 0.0
