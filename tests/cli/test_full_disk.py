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


def test_a_full_disk_is_not_blamed_on_stdout(dino, monkeypatch):
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
def test_a_full_stdout_raises_a_stdout_fault_for_short_and_long_output(monkeypatch, length):
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
def test_a_dataset_that_cannot_be_completed_is_removed_and_can_be_written_again(dino, monkeypatch, command):
    write_sample_data(Path("in"), 4, size=(64, 64))
    command = [word.replace("IN", "in") for word in command]
    with monkeypatch.context() as patched:
        patched.setattr("dinocore.data.formats.export.usual_label_file", no_space)
        patched.setattr("dinocore.data.synthetic.sample.os.replace", no_space)
        result = dino(*command)
        assert result.code == 5 and "No space left on device" in result.err
    assert not Path("new").exists()
    assert dino(*command).code == 0


@pytest.mark.parametrize("command", [["convert-data", "in", "new", "--to", "yolo"], ["sample-data", "new"]])
def test_a_read_only_disk_is_reported_before_any_work(dino, monkeypatch, command):
    def read_only(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("dinocore.system.files.tempfile.TemporaryFile", read_only)
    result = dino(*command)  # before the missing input folder is noticed
    assert (
        result.code == 5 and "new cannot be written: Read-only file system" in result.err and "space" not in result.err
    )


def test_missing_disk_space_is_reported_in_megabytes(dino, monkeypatch):
    monkeypatch.setattr("dinocore.data.synthetic.sample.shutil.disk_usage", lambda _: SimpleNamespace(free=2.4e6))
    message = dino("sample-data", "new").err
    assert "200 images need 2.5 MB or more, and" in message and "has 2.4 MB left" in message


@pytest.mark.parametrize("out", ["boxes.json", "boxes.jsonl", "boxes.csv"])
def test_results_before_a_failed_drawing_are_kept_and_counted(dino, run_folder, image_folder, monkeypatch, out):
    writes_that_succeed = iter(range(2))

    def write(path, _):
        if next(writes_that_succeed, None) is None:
            raise EnvironmentFault(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("dinocli.commands.predict.drawing.write_atomically", write)
    result = dino(
        "predict", image_folder, "--weights", run_folder, "--save-images", "drawn", "--out", out, "--threshold", 0
    )
    assert result.code == 5 and f"{out} has 2 of 10 images, those before this error" in result.err
    assert Path(out).stat().st_size > 100
    resume = ["--resume"] if "json" in out else []
    resumed = dino("predict", image_folder, "--weights", run_folder, "--out", out, "--threshold", 0, *resume)
    assert resumed.code == 0, resumed.err


def full_disk(*_):
    raise EnvironmentFault("boxes.json cannot be written: No space left on device")


def test_detections_are_printed_if_they_cannot_be_written(dino, run_folder, image_folder, monkeypatch):
    monkeypatch.setattr("dinocore.detections_io.write_detections", full_disk)
    command = ("predict", image_folder / "val2017", "--weights", run_folder, "--threshold", 0, "--out", "boxes.json")
    result = dino(*command)
    assert result.code == 5 and "boxes.json cannot be written" in result.err and "smear_000009.jpg" in result.out
    result = dino(*command, "--json")
    assert result.code == 5 and len(json.loads(result.out)) == 2


def test_an_evaluation_is_printed_if_its_files_cannot_be_written(dino, run_folder, monkeypatch):
    monkeypatch.setattr("dinocli.commands.evaluate.evaluate.write_text", full_disk)
    monkeypatch.setattr("dinocore.report.page.write_text", full_disk)
    for files in (["--out", "boxes.json"], ["--report", "report.html"]):
        command = ("eval", "--weights", run_folder, "--bootstrap", 0, *files)
        result = dino(*command)
        assert result.code == 5 and "cannot be written: No space" in result.err and "best threshold" in result.out
        output = json.loads(dino(*command, "--json").out)
        assert "AP50" in output and output["error"]["exit_code"] == 5
