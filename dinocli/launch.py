"""Start one process per GPU on this machine, as torchrun does, and end with the reason of the first that fails."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from dinocore.system.parent import end_with_parent

from .console import fail

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE = 10.0  # seconds for the others to notice that one has ended, and then to end on being asked


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `dino ARGUMENTS` in `number` processes that know of each other; the exit code of the first that failed."""
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // number))}
    processes = []
    for rank in range(number):
        env = os.environ | {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        processes.append(_start(arguments, env))
    before = {asked: signal.signal(asked, lambda got, _: _pass_on(processes, got)) for asked in PASSED_ON}
    try:
        return _wait(processes)
    finally:
        for asked, handler in before.items():
            signal.signal(asked, handler)


def _start(arguments: Sequence[str], env: dict[str, str]) -> subprocess.Popen:
    """A process that the terminal's Ctrl-C does not reach, since it is passed on; it ends if this one is killed."""
    command = [sys.executable, "-m", "dinocli", *arguments]
    return subprocess.Popen(
        command, env=env, start_new_session=True, preexec_fn=lambda: end_with_parent(signal.SIGTERM)
    )


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    while True:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return 0
        if failed := [rank for rank, code in enumerate(codes) if code]:
            return _end(processes, failed[0])
        time.sleep(0.05)


def _end(processes: Sequence[subprocess.Popen], first: int) -> int:
    """End the others: by themselves, or asked, or killed."""
    for ask in (None, signal.SIGTERM, signal.SIGKILL):
        if ask is not None:
            _pass_on(processes, ask)
        until = time.monotonic() + GRACE
        while any(process.poll() is None for process in processes) and time.monotonic() < until:
            time.sleep(0.05)
    code = processes[first].returncode
    if code < 0:
        name = signal.Signals(-code).name
        more = "; SIGKILL often means that the system ran out of memory" if name == "SIGKILL" else ""
        fail(f"process {first} was ended by {name}, and so the others were ended{more}")
        return 5
    if first and code not in (130, 143):
        fail(f"process {first} ended with exit code {code}; its message is above, and the others were ended")
    return code


def _pass_on(processes: Sequence[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
