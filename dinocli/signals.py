"""Signals that stop a command: noticed at once, even during a long step, and handled between steps."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dinocore.errors import Interrupted, PeerFailed

from .console import stderr, warn

EXIT_CODES = {
    getattr(signal, name): code
    for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143), ("SIGHUP", 129))
    if hasattr(signal, name)  # Windows has the first two
}
SAME_PRESS = 0.3  # seconds within which two SIGINTs are a single key press, sent by both the terminal and a launcher


def handled_signals() -> list[signal.Signals]:
    """The signals to handle; SIGHUP only if it is not ignored, as under `nohup`."""
    hangup = getattr(signal, "SIGHUP", None)
    return [number for number in EXIT_CODES if number != hangup or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that ask for an end with `handler` within the block."""
    before = {number: signal.signal(number, handler) for number in handled_signals()}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


@contextmanager
def ending_early() -> Iterator[Callable[[], int]]:
    """Let work stop after a signal: yields a function that returns the signal's exit code, or 0 if there was none.

    A second Ctrl-C ends the process at once.
    """
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(EXIT_CODES[signal.Signals(number)])

    with handling(receive):
        yield lambda: received[0] if received else 0


class StopRequest:
    """Records that a signal asked the process to stop. A second Ctrl-C ends the process at once.

    Python runs signal handlers only when the main thread returns to Python code, which may take half a minute during a
    backward pass. So the signal's number is also written to a socket, which another thread reads.
    """

    def __init__(self, quiet: bool = False):
        """
        Args:
            quiet: print nothing, because another process does.
        """
        self.exit_code = 0
        self.running = False  # there is a state to save
        self.quiet = quiet
        self.requested_at = 0.0

    def __call__(self) -> int:
        return self.exit_code

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM, SIGUSR1 and SIGHUP within the block.

        Raises:
            Interrupted: within the block, if a signal arrives before `running` is set.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        thread = threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals")
        with handling(self._in_main_thread):
            waked = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            thread.start()
            try:
                yield
            finally:
                signal.set_wakeup_fd(waked)
                writer.shutdown(socket.SHUT_WR)  # closing is not enough: forked loader workers have it open, too
                writer.close()
                thread.join()
                reader.close()

    def _listen(self, reader: socket.socket) -> None:
        while received := reader.recv(1):
            if received[0] in EXIT_CODES:
                self._request_stop(signal.Signals(received[0]))

    def _request_stop(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self.exit_code:
            self.exit_code, self.requested_at = EXIT_CODES[number], now
            if self.running and not self.quiet:
                again = " again" if number == signal.SIGINT else ""
                _warn(f"finishing this step, then saving; press Ctrl-C{again} to exit immediately")
        elif number == signal.SIGINT and now - self.requested_at > SAME_PRESS:
            for child in multiprocessing.active_children():
                child.kill()
            with suppress(OSError):
                stderr.show_cursor()
            os._exit(130)

    def _in_main_thread(self, number: int, frame: object) -> None:
        code = EXIT_CODES[signal.Signals(number)]
        if not self.running:
            raise (
                PeerFailed(code)
                if self.quiet
                else Interrupted("interrupted before training started; no steps were lost", code)
            )


def _warn(message: str) -> None:
    """Print a warning, if there still is a terminal."""
    with suppress(OSError, ValueError):
        warn(message)
