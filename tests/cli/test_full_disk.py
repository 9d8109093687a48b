"""A disk that fills up during a command: error messages, and earlier results that are kept."""

import errno
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dinocli.console import StdoutFault, check_stdout
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.errors import EnvironmentFault


def no_space(*_: object):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_that_is_not_stdouts_is_not_called_that(dino, monkeypatch):
    monkeypatch.setattr("dinocli.commands.presets.presets", lambda: no_space())
    result = dino("presets")
    assert result.code == 5 and "a file cannot be written: No space left on device; free some disk space" in result.err
    assert "stdout" not in result.err


class FullDisk(io.RawIOBase):
    full = True

    def writable(self):
        return True

    def write(self, data):
        return no_space() if self.full else len(data)


@pytest.mark.parametrize("length", [10, 100_000])  # shorter and longer than the buffer: `flush` or `write` fails
def test_an_error_of_stdout_is_known_as_its_own_however_much_is_written(monkeypatch, length):
    disk = FullDisk()
    stream = io.TextIOWrapper(io.BufferedWriter(disk), "utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    check_stdout()
    with pytest.raises(StdoutFault, match="No space left"):
        sys.stdout.write("x" * length)
        sys.stdout.flush()
    disk.full = False  # so that closing the stream can flush it


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
    done = dino(*command)  # before the missing input folder is noticed
    assert done.code == 5 and "new cannot be written: Read-only file system" in done.err and "space" not in done.err


def test_little_room_is_reported_in_megabytes(dino, monkeypatch):
    monkeypatch.setattr("dinocore.data.synthetic.sample.shutil.disk_usage", lambda _: SimpleNamespace(free=2.4e6))
    assert (
        "200 images need 2.5 MB or more, and" in (done := dino("sample-data", "new").err) and "has 2.4 MB left" in done
    )


@pytest.mark.parametrize("out", ["boxes.json", "boxes.jsonl", "boxes.csv"])
def test_what_was_found_before_a_drawing_could_not_be_written_is_kept_and_counted(
    dino, run_folder, image_folder, monkeypatch, out
):
    room = iter(range(2))

    def write(path, _):
        if next(room, None) is None:
            raise EnvironmentFault(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("dinocli.commands.predict.drawing.write_atomically", write)
    done = dino(
        "predict", image_folder, "--weights", run_folder, "--save-images", "drawn", "--out", out, "--threshold", 0
    )
    assert done.code == 5 and f"{out} has 2 of 10 images, those before this error" in done.err
    assert Path(out).stat().st_size > 100
    resume = ["--resume"] if "json" in out else []
    again = dino("predict", image_folder, "--weights", run_folder, "--out", out, "--threshold", 0, *resume)
    assert again.code == 0, again.err


def full_disk(*_):
    raise EnvironmentFault("boxes.json cannot be written: No space left on device")


def test_what_was_found_is_shown_where_it_cannot_be_written(dino, run_folder, image_folder, monkeypatch):
    monkeypatch.setattr("dinocore.detections_io.write_detections", full_disk)
    command = ("predict", image_folder / "val2017", "--weights", run_folder, "--threshold", 0, "--out", "boxes.json")
    done = dino(*command)
    assert done.code == 5 and "boxes.json cannot be written" in done.err and "smear_000009.jpg" in done.out
    done = dino(*command, "--json")
    assert done.code == 5 and len(json.loads(done.out)) == 2


def test_an_evaluation_is_shown_where_its_files_cannot_be_written(dino, run_folder, monkeypatch):
    monkeypatch.setattr("dinocli.commands.evaluate.evaluate.write_text", full_disk)
    monkeypatch.setattr("dinocore.report.page.write_text", full_disk)
    for files in (["--out", "boxes.json"], ["--report", "report.html"]):
        command = ("eval", "--weights", run_folder, "--bootstrap", 0, *files)
        done = dino(*command)
        assert done.code == 5 and "cannot be written: No space" in done.err and "best threshold" in done.out
        answer = json.loads(dino(*command, "--json").out)
        assert "AP50" in answer and answer["error"]["exit_code"] == 5
