"""Kernels that run in several threads."""

import threading

import pytest
import torch

from dinocore.model.ops.numba import cpu


@pytest.fixture(params=["OpenMP", "own"])
def four_threads(request, monkeypatch):
    """Four threads: PyTorch's OpenMP threads, or our own."""
    if request.param == "own":
        monkeypatch.setattr(cpu, "_forked", True)
    elif cpu._openmp() is None:
        pytest.skip("the OpenMP library of PyTorch cannot be found here")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("total", [1, 3, 4, 1001])
def test_every_index_is_processed_once(four_threads, total):
    processed = []
    cpu.in_parallel(lambda begin, end: processed.extend(range(begin, end)), (), total)
    assert sorted(processed) == list(range(total))


def test_chunks_run_in_parallel(four_threads):
    barrier = threading.Barrier(2)  # fails unless two threads reach it in time
    cpu.in_parallel(lambda begin, end: barrier.wait(timeout=20), (), 4)


def test_an_error_on_any_thread_reaches_the_caller(four_threads):
    def fail_at_the_end(begin, end):
        if end == 8:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        cpu.in_parallel(fail_at_the_end, (), 8)
    test_every_index_is_processed_once(None, 5)  # the threads still work
