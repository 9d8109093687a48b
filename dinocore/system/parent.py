"""Make worker processes exit silently with their parent, and leave signals to it."""

import ctypes
import os
import signal
import sys
from types import TracebackType

LEFT_TO_THE_PARENT = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
]  # Windows has the first two


def end_with_parent(number: int) -> None:
    """On Linux, have this process receive a signal when its parent exits for any reason."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def end_with_launcher() -> None:
    """In a rank: send it SIGTERM when its launcher exits, because a killed launcher cannot do that itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)


def leave_signals_to_the_parent(*_: object) -> None:
    """Ignore signals in a worker, since those to the process group must not end it before the parent has finished.

    If the parent exits, the worker exits, too, and prints nothing.
    """
    for number in LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    sys.excepthook = _without_lost_connections
    if hasattr(signal, "SIGKILL"):
        end_with_parent(signal.SIGKILL)


def _without_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An `excepthook` that ignores lost connections, which occur in a worker's threads when the parent is killed."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
