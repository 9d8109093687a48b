"""Errors that a user can put right, each with the exit code of the command. Anything else that is raised is a bug."""


class DinoError(Exception):
    """What is wrong, where, and what to type next, in words the user knows."""

    exit_code = 2


class ConfigError(DinoError):
    """A preset, a config file, an override or an argument cannot be used."""


class DataError(DinoError):
    """A data set or a picture cannot be used."""

    exit_code = 3


class CheckpointError(DinoError):
    """A file of weights cannot be used."""

    exit_code = 4


class EnvironmentFault(DinoError):
    """The machine lacks something: a device, memory, disk space, a package, a download."""

    exit_code = 5


class DivergedError(DinoError):
    """Training or inference produced numbers that are not finite."""

    exit_code = 6


class Interrupted(DinoError):
    """A signal asked for an end, and the state is saved."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Ended(DinoError):
    """Another process of the same run has said why it ends; this one only ends with it."""

    def __init__(self, exit_code: int):
        super().__init__("")
        self.exit_code = exit_code

    def __reduce__(self) -> tuple:
        return Ended, (self.exit_code,)
