"""A disk that fills up while a command works: what is said, and that nothing is lost that was found."""

import errno
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dinocli.console import StdoutFault, tell_errors_of_stdout
from dinocore.data.synthetic.sample import write_sample_data


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


@pytest.mark.parametrize("command", [["convert-data", "IN", "new", "--to", "yolo"], ["sample-data", "new", "-n", "4"]])
def test_a_data_set_that_cannot_be_written_whole_leaves_nothing_and_can_be_written_again(dino, monkeypatch, command):
    write_sample_data(Path("in"), 4, size=(64, 64))
    command = [word.replace("IN", "in") for word in command]
    with monkeypatch.context() as patched:
        patched.setattr("dinocore.data.formats.export.usual_label_file", no_space)
        patched.setattr("dinocore.data.synthetic.sample.os.replace", no_space)
        done = dino(*command)
        assert done.code == 5 and "No space left on device" in done.err
    assert not Path("new").exists()
    assert dino(*command).code == 0


@pytest.mark.parametrize("command", [["convert-data", "in", "new", "--to", "yolo"], ["sample-data", "new"]])
def test_a_data_set_on_a_read_only_disk_is_refused_at_the_start(dino, monkeypatch, command):
    def read_only(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("dinocore.system.files.tempfile.TemporaryFile", read_only)
    done = dino(*command)  # there is not even the data to convert
    assert done.code == 5 and "new cannot be written: Read-only file system" in done.err and "space" not in done.err


def test_little_room_is_said_in_megabytes(dino, monkeypatch):
    monkeypatch.setattr("dinocore.data.synthetic.sample.shutil.disk_usage", lambda _: SimpleNamespace(free=2.4e6))
    assert (
        "200 images need 2.5 MB or more, and" in (done := dino("sample-data", "new").err) and "has 2.4 MB left" in done
    )
