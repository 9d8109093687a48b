"""Run a compiled kernel on several threads: on PyTorch's own, where they can be had.

PyTorch's OpenMP threads go on spinning for some milliseconds after each of its operations. Threads of ours would share
the cores with them; sampling took twice as long so. Kernels release the GIL, and are called by piece.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_forked = False  # OpenMP's threads are not there in a child, and it would wait for them


def in_parallel(kernel: Callable, arguments: tuple, total: int) -> None:
    """Call kernel(*arguments, begin, end) for pieces of 0 to `total`, as many as PyTorch has threads."""
    pieces = max(1, min(torch.get_num_threads(), total))
    edges = [total * piece // pieces for piece in range(pieces + 1)]

    def run(piece: int) -> None:
        kernel(*arguments, *edges[piece : piece + 2])

    if pieces == 1:
        run(0)
    elif (library := _openmp()) and not _forked:
        _in_openmp(library, run, pieces)
    else:
        others = [_pool().submit(run, piece) for piece in range(1, pieces)]
        run(0)
        for other in others:
            other.result()


def _in_openmp(library: ctypes.CDLL, run: Callable[[int], None], pieces: int) -> None:
    errors = []

    def work(_: int | None) -> None:
        try:
            for piece in range(library.omp_get_thread_num(), pieces, library.omp_get_num_threads()):
                run(piece)
        except BaseException as error:  # it must not leave a function that C calls
            errors.append(error)

    library.GOMP_parallel(_REGION(work), None, pieces, 0)
    if errors:
        raise errors[0]


_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch has loaded; only Linux tells which one that is."""
    maps = Path("/proc/self/maps")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    found = [name for name in loaded if Path(name).name.startswith(("libgomp", "libiomp5", "libomp"))]
    own = [name for name in found if Path(torch.__file__).parent.parent in Path(name).parents]
    for name in own or (found if len(found) == 1 else []):
        library = ctypes.CDLL(name)
        if hasattr(library, "GOMP_parallel"):
            library.GOMP_parallel.argtypes = (_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            library.GOMP_parallel.restype = None
            return library
    return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="deform_attn")


def _after_fork() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()  # a child does not inherit threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
