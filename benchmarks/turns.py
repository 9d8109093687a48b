"""Time several functions, each in its own process, taking turns so that other load on the machine affects all alike.

Compare ratios within one run, not seconds of two runs.
"""

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PAUSE = 0.2  # seconds between turns, because threads of the previous one keep spinning on a core for a while


class Timing(NamedTuple):
    """Time and memory of one contestant."""

    seconds: list[float]
    peak_memory_mb: float  # in addition to the process's memory before it was built

    @property
    def median(self) -> float:
        """The median seconds per call."""
        return statistics.median(self.seconds)


Clock = Callable[[], float]
# returns the function to time; must be importable, because it is sent to a process
Build = Callable[[], Callable[[], Any]]


def take_turns(
    contestants: dict[str, Build], repeats: int, warm_up: int = 1, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Call each contestant once per round; the first `warm_up` rounds don't count.

    Args:
        clock: `time.process_time` measures CPU time of all threads, for use with one thread on a shared machine.
    """
    processes = multiprocessing.get_context("spawn")
    results: dict[str, list[float]] = {name: [] for name in contestants}
    peaks = dict.fromkeys(contestants, 0.0)
    with _all_started(processes, contestants) as pipes:
        for turn in range(warm_up + repeats):
            for name, pipe in pipes.items():
                time.sleep(PAUSE)
                pipe.send(clock)
                seconds, peaks[name] = pipe.recv()
                results[name] += [seconds] if turn >= warm_up else []
                print(f"  {turn + 1 - warm_up:3}/{repeats} {name:24} {seconds:8.3f} s", file=sys.stderr, flush=True)
    return {name: Timing(seconds, peaks[name]) for name, seconds in results.items()}


@contextmanager
def _all_started(processes: Any, contestants: dict[str, Build]) -> Iterator[dict[str, Any]]:
    pipes, running = {}, []
    for name, build in contestants.items():
        pipes[name], other = processes.Pipe()
        running.append(processes.Process(target=_answer, args=(other, build), daemon=True))
        running[-1].start()
    try:
        yield pipes
    finally:
        for process in running:
            process.terminate()
            process.join()


def _answer(pipe: Any, build: Build) -> None:
    before = _peak_mb()
    call = build()
    while clock := pipe.recv():
        start = clock()
        call()
        pipe.send((clock() - start, _peak_mb() - before))


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def write(file: Path | None, options: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write rows with the machine, the versions and the command's options, for docs/performance.md and plots.py."""
    if file is None:
        return
    about = {
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {
            name: _version(name)
            for name in ("torch", "torchvision", "numba", "Pillow", "transformers", "hotcoco", "pycocotools")
        },
        "command": " ".join(["python", *map(_without_folders, sys.argv)]),
        "options": {key: _without_folders(value) for key, value in options.items()},
    }
    file.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


def _without_folders(value: Any) -> str:
    """Shorten absolute paths and those outside the checkout to their last part."""
    if isinstance(value, list | tuple):
        return " ".join(map(_without_folders, value))
    return Path(value).name if str(value).startswith(("/", "..")) else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
