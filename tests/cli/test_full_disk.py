"""A disk that fills up while a command works: what is said, and that nothing is lost that was found."""

import errno
import io
import os
import sys

import pytest

from dinocli.console import StdoutFault, tell_errors_of_stdout


def no_space(*_: object):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_that_is_not_stdouts_is_not_called_that(dino, monkeypatch):
    monkeypatch.setattr("dinocli.commands.presets.presets", lambda: no_space())
    result = dino("presets")
    assert result.code == 5 and "a file cannot be written: No space left on device; free some space" in result.err
    assert "stdout" not in result.err


class FullDisk(io.RawIOBase):
    full = True

    def writable(self):
        return True

    def write(self, data):
        return no_space() if self.full else len(data)


@pytest.mark.parametrize("length", [10, 100_000])  # Python drops what is longer than its buffer
def test_an_error_of_stdout_is_known_as_its_own_however_much_is_written(monkeypatch, length):
    disk = FullDisk()
    stream = io.TextIOWrapper(io.BufferedWriter(disk), "utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    tell_errors_of_stdout()
    with pytest.raises(StdoutFault, match="No space left"):
        sys.stdout.write("x" * length)
        sys.stdout.flush()
    disk.full = False  # for what is written when it is closed
