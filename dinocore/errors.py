"""Errors that the user can fix, each with its exit code. Any other exception is a bug."""

from pathlib import Path
from typing import Any

from .error_codes import CODES


class DinoError(Exception):
    """What is wrong, where, and what to type next, in the user's terms; `docs/errors.md` lists the codes.

    A message reads `what is wrong; what to type next`. Without a `fix`, it is the code's, or what follows the last
    semicolon of the message.
    """

    exit_code = 2
    code = "USAGE"

    def __init__(self, message: str, *, code: str = "", where: str | Path = "", fix: str = ""):
        super().__init__(message)
        fix = fix or (CODES[code].fix if code in CODES else "")
        what, semicolon, last = message.rpartition("; ")
        self.what, self.fix = (message, fix) if fix or not semicolon else (what, last)
        self.where = str(where)
        self.code = code or type(self).code

    def __str__(self) -> str:
        location = f"{self.where}: " if self.where and self.where not in self.what else ""
        return f"{location}{self.what}" + (f"; {self.fix}" if self.fix else "")

    def as_dict(self) -> dict[str, Any]:
        """The error as a dictionary, as printed with `--json`."""
        parts = {"code": self.code, "what": self.what, "where": self.where or None, "fix": self.fix or None}
        return parts | {"exit_code": self.exit_code}


class ConfigError(DinoError):
    """A preset, a config file, an override or an argument cannot be used."""

    code = "CONFIG"


class DataError(DinoError):
    """A dataset or an image cannot be used."""

    exit_code = 3
    code = "DATA"


class CheckpointError(DinoError):
    """A weights file cannot be used."""

    exit_code = 4
    code = "CHECKPOINT"


class EnvironmentFault(DinoError):
    """The machine lacks something: a device, memory, disk space, a package, a download."""

    exit_code = 5
    code = "ENVIRONMENT"


class OutOfMemory(EnvironmentFault):
    """A step ran out of memory. The state of all ranks is that before the step, which can be repeated."""


class DivergedError(DinoError):
    """Training or inference produced numbers that are not finite."""

    exit_code = 6
    code = "DIVERGED"


class Interrupted(DinoError):
    """A signal requested a stop, and the state is saved."""

    code = "INTERRUPTED"

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class PeerFailed(DinoError):
    """Another rank of the run failed and has reported why; this one exits without a message."""

    def __init__(self, exit_code: int):
        super().__init__("")
        self.exit_code = exit_code

    def __reduce__(self) -> tuple:
        return PeerFailed, (self.exit_code,)
