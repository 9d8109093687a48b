"""`dino export` on a full disk, and leftovers of killed exports."""

import errno
import os

import pytest

from dinocore.errors import EnvironmentFault
from dinocore.export import export, write
from dinocore.export.export import Request, export_weights
from dinocore.system.unfinished import MARK, folder_beside

from .conftest import small

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def export_with(tmp_path, monkeypatch):
    """A function that exports to m.pt2 with the given writer, without tracing."""
    monkeypatch.setattr(export, "trace", lambda *args: None)

    def run(writer):
        monkeypatch.setitem(write.FORMATS, "torch-export", (writer, ".pt2", (), ""))
        export_weights(small("r50-4scale"), tmp_path, Request("torch-export", tmp_path / "m.pt2"), [])

    return run


def fail_to_write(program, path, info):
    path.write_bytes(b"a beginning")
    raise RuntimeError("basic_ios::clear: iostream error")


def raise_disk_full(program, path, info):
    raise DISK_FULL


@pytest.mark.parametrize("writer", [fail_to_write, raise_disk_full])
def test_a_full_disk_is_recognised_for_any_error_of_a_library_and_no_file_is_left(
    export_with, tmp_path, monkeypatch, writer
):
    monkeypatch.setattr(export, "disk_full_error", lambda folder, size: DISK_FULL)
    with pytest.raises(
        EnvironmentFault, match=r"m\.pt2 cannot be written: No space left on device; free some disk space"
    ):
        export_with(writer)
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_library_is_raised_unchanged_if_the_disk_has_space(export_with, tmp_path):
    with pytest.raises(RuntimeError, match="iostream error"):
        export_with(fail_to_write)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_export_are_removed_by_the_next_but_not_those_of_a_running_one(tmp_path):
    killed, other = tmp_path / ".m.pt2.killed", tmp_path / ".other.pt2.killed"
    for folder in (killed, other):
        folder.mkdir()
        (folder / MARK).touch()  # not locked: its process is dead
        (folder / "m.pt2").write_bytes(b"large")
    with folder_beside(tmp_path / "m.pt2") as running:
        assert not killed.exists() and other.exists()
        with folder_beside(tmp_path / "m.pt2"):
            assert running.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
