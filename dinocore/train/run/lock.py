"""One run per folder."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from ...errors import ConfigError, EnvironmentFault

NAME = ".lock"


class RunLock:
    """Held from `take` to `release`; a killed process holds it no longer, whatever the file says.

    It is a POSIX lock: processes that read pictures don't inherit it, and network file systems pass it on. The
    file's content, process id and machine, is for people.
    """

    def __init__(self, run: Path):
        self.path = run / NAME
        self.handle = -1

    def take(self) -> str:
        """Lock the folder, which exists; returns what an earlier, killed run left in it, or nothing.

        Raises:
            ConfigError: another process has it.
            EnvironmentFault: the file cannot be written.
        """
        try:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise ConfigError(
                        f"another run is going on in {self.path.parent}: {self._content()}; "
                        "wait for it, end it, or give another --output-dir"
                    ) from None
                # a file system without locks: the file still tells people who writes here
            left = self._content()
            os.ftruncate(self.handle, 0)
            os.pwrite(self.handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except (OSError, ConfigError) as error:
            self._close()
            if isinstance(error, ConfigError):
                raise
            raise EnvironmentFault(
                f"{self.path} cannot be written: {error.strerror or error}; a run needs a folder that can be written"
            ) from error
        return left

    def release(self) -> None:
        """Let others in. The file stays, empty: removing it could take it from under somebody who just opened it."""
        if self.handle >= 0:
            os.ftruncate(self.handle, 0)
            self._close()

    def _content(self) -> str:
        return os.pread(self.handle, 200, 0).decode(errors="replace").strip()

    def _close(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
