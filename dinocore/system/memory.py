"""How this process allocates and frees memory for tensors, and its peak usage."""

import ctypes
import os
import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


def keep_memory(few_sizes: bool | None = None) -> None:
    """Configure the allocator to avoid page faults, and limit caches of compiled primitives; call it once.

    By default, glibc returns large tensors to the system and allocates them again, and page faults take up to 40 % of
    the time; so it is configured to keep all memory. Huge pages are no alternative: they are no faster with one thread,
    and with two threads a single page fault takes milliseconds (Linux 6.18).

    oneDNN compiles a primitive for each shape of each operation: `tiny` needs 93 for an image and 190 for a training
    step of one size. Compiling one again takes time, but each fragments the memory that large tensors need. So the
    cache holds all primitives if a training has few sizes; enough for one or two images in inference; and enough for
    one image of an evaluation if each training batch has another size. PyTorch's ideep also caches the last 1,024
    primitives of linear layers. Unless sizes recur in training, that saves no measurable time, so it is limited to 16.

    Args:
        few_sizes: in training, whether batches have only a few different sizes; None for inference.
    """
    primitives, held_by_ideep = {True: (2048, 1024), False: (128, 16), None: (256, 16)}[few_sizes]
    # both are read at the first matrix product
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(primitives))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(held_by_ideep))
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mapping for large blocks
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
    except (OSError, AttributeError):  # another C library
        return


def release_memory(device: torch.device) -> None:
    """Release a device's memory that PyTorch caches."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if device.type == "mps":
        torch.mps.empty_cache()


def peak_memory_mb(device: torch.device | None = None) -> float:
    """The peak memory of this process on a CUDA device, or on the host for other devices.

    Args:
        device: None for the current CUDA device if it was used, otherwise the host.
    """
    used = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    if used if device is None else device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return _peak_on_windows_mb()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _peak_on_windows_mb() -> float:
    """PeakWorkingSetSize of this process; 0.0 if it is not available."""

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
