"""A lock on the run folder, so that only one run uses it at a time."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ...errors import ConfigError, EnvironmentFault

LOCK, OWNER = ".lock", ".owner"


class RunLock:
    """Held from `take` to `release`; the system releases it if the process is killed.

    A file beside the lock names the owner's process id and machine, for messages.
    """

    def __init__(self, run: Path):
        self.owner = run / OWNER
        self.lock = FileLock(run / LOCK)

    def take(self) -> str:
        """Lock the folder, which must exist; return the owner of an earlier run that was killed, or an empty string.

        Raises:
            ConfigError: another process holds the lock.
            EnvironmentFault: the files cannot be written.
        """
        try:
            with suppress(NotImplementedError):  # a file system without locks: `.owner` still says who writes here
                self.lock.acquire(blocking=False)
            previous = self._content()
            self.owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        except Timeout:
            raise ConfigError(
                f"another run is active in {self.owner.parent}: {self._content()}; "
                "wait for it, stop it, or give another --output-dir"
            ) from None
        except OSError as error:
            self.lock.release()
            raise EnvironmentFault(
                f"{self.owner} cannot be written: {error.strerror or error}; a run needs a writable folder"
            ) from error
        return previous

    def release(self) -> None:
        """Unlock the folder. `.lock` is not removed, since another process may just have opened it."""
        with suppress(OSError):
            self.owner.unlink(missing_ok=True)
        self.lock.release()

    def _content(self) -> str:
        try:
            return self.owner.read_text(encoding="utf-8", errors="replace").strip()[:200]
        except OSError:
            return ""
