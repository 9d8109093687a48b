"""Start one rank per GPU on this machine with torch's elastic agent; exit with the code of the first failure."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from .console import fail
from .signals import EXIT_CODES, handling

RUN_ID = "dino"


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `dino ARGUMENTS` in `number` connected ranks; return the exit code of the first that failed.

    A signal is forwarded to the ranks, which save and exit. torch before 2.9 forwards signals itself, and kills ranks
    that have not exited after 30 s.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its messages are replaced by ours below
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # signals are handled below instead
    agent = LocalElasticAgent(_spec(number, arguments), DefaultLogsSpecs())
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        _pass_on(agent, number)

    try:
        with handling(receive):
            result: Any = agent.run()
    except SignalException as error:
        return EXIT_CODES.get(error.sigval, 143)
    return _exit_code(result.failures, received[0] if received else 0) if result.is_failed() else 0


def _spec(number: int, arguments: Sequence[str]) -> WorkerSpec:
    rendezvous = RendezvousParameters("c10d", "localhost:0", RUN_ID, min_nodes=1, max_nodes=1, local_addr="localhost")
    return WorkerSpec(
        role="dino",
        local_world_size=number,
        entrypoint=sys.executable,
        args=("-m", "dinocli", *(argument.replace("$", "$$") for argument in arguments)),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="localhost",
    )


def _pass_on(agent: LocalElasticAgent, number: int) -> None:
    """Forward a signal to every rank; exit if none has started yet."""
    pids = [worker.id for worker in agent.get_worker_group().workers if isinstance(worker.id, int)]
    if not pids:
        raise SystemExit(EXIT_CODES[signal.Signals(number)])
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has exited
            continue


def _exit_code(failures: dict[int, Any], passed_on: int = 0) -> int:
    """The exit code of the rank that failed first. It has printed its own message, except after a signal.

    Ranks ended by SIGTERM count last, because the agent sends it to the others once one has failed. If all were ended
    by a signal that this process received and forwarded, the exit code is that signal's.

    Args:
        passed_on: number of the signal that was forwarded to the ranks; 0 for none.
    """

    def order(rank: int) -> tuple[bool, bool, int]:
        code = failures[rank].exitcode
        return code in (-signal.SIGTERM, -passed_on), code >= 0, failures[rank].timestamp

    rank = min(failures, key=order)
    code = failures[rank].exitcode
    if code < 0 and passed_on and -code in EXIT_CODES:  # before the rank installed its handler, so it printed nothing
        fail("interrupted while the ranks were starting", "INTERRUPTED")
        return EXIT_CODES[signal.Signals(passed_on)]
    if code < 0:
        name = signal.Signals(-code).name
        more = "; SIGKILL often means that the system ran out of memory" if name == "SIGKILL" else ""
        fail(f"rank {rank} was killed by {name}, so the other ranks were stopped, too{more}")
        return 5
    if rank and code not in EXIT_CODES.values():
        fail(f"rank {rank} exited with code {code}; its message is above, and the other ranks were stopped, too")
    return code
