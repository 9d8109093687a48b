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
SAME_PRESS = 0.3  # seconds within which two SIGINTs are one key that a terminal and a launcher both pass on


def to_hear() -> list[signal.Signals]:
    """The signals to handle: all, but SIGHUP only if `nohup` did not set it to be ignored."""
    hangup = getattr(signal, "SIGHUP", None)
    return [number for number in EXIT_CODES if number != hangup or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give the signals that ask for an end to a handler within the block."""
    before = {number: signal.signal(number, handler) for number in to_hear()}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


@contextmanager
def ending_early() -> Iterator[Callable[[], int]]:
    """Let a piece of work end after a signal of `EXIT_CODES`: gives the code of the one that came, 0 before.

    A second Ctrl-C is as usual.
    """
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        if heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        heard.append(EXIT_CODES[signal.Signals(number)])

    with handling(hear):
        yield lambda: heard[0] if heard else 0


class StopRequest:
    """Remembers that a signal asked for an end. A second Ctrl-C ends the process at once.

    Python handles a signal when the main thread is back in Python, which a backward pass may take half a minute to
    be. So the signal's number is also written to a socket, from which a thread reads.
    """

    def __init__(self, quiet: bool = False):
        """
        Args:
            quiet: another process says what happens.
        """
        self.exit_code = 0
        self.running = False  # a state is there that must be saved
        self.quiet = quiet
        self.requested_at = 0.0

    def __call__(self) -> int:
        return self.exit_code

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM, SIGUSR1 and SIGHUP within the block.

        Raises:
            Interrupted: in the block, where a signal comes before `running` is set.
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
                writer.shutdown(socket.SHUT_WR)  # closing would not do: forked loader workers hold it, too
                writer.close()
                thread.join()
                reader.close()

    def _listen(self, reader: socket.socket) -> None:
        while heard := reader.recv(1):
            if heard[0] in EXIT_CODES:
                self._ask(signal.Signals(heard[0]))

    def _ask(self, number: signal.Signals) -> None:
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
    """A warning, if there still is a terminal to print it on."""
    with suppress(OSError, ValueError):
        warn(message)
