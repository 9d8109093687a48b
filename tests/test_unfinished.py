"""Folders that are written completely or not at all, and leftovers of killed processes."""

import pytest
from filelock import FileLock

from dinocore.errors import ConfigError
from dinocore.system.unfinished import MARK, check_fillable, filling, is_abandoned

PARTS = ("images", "data.yaml")


def write_parts(folder):
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").touch()
    (folder / "data.yaml").touch()


def make_leftovers(folder):
    """A folder as SIGKILL leaves it: the mark exists and is not locked."""
    folder.mkdir()
    write_parts(folder)
    (folder / MARK).touch()
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt(143), OSError("the disk is full")])
@pytest.mark.parametrize("existed", [False, True])
def test_a_signal_or_an_error_removes_partial_output_and_restores_the_folder(tmp_path, error, existed):
    if existed:
        (tmp_path / "new").mkdir()
    with pytest.raises(type(error)), filling(tmp_path / "new", PARTS):
        write_parts(tmp_path / "new")
        raise error
    assert (tmp_path / "new").exists() is existed and not list(tmp_path.glob("new/*"))


def test_a_completed_folder_has_no_mark(tmp_path):
    with filling(tmp_path / "new", PARTS):
        write_parts(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["data.yaml", "images"]


def test_leftovers_of_a_killed_process_are_replaced_unless_there_are_other_files(tmp_path):
    folder = make_leftovers(tmp_path / "new")
    (folder / "mine").touch()
    with pytest.raises(ConfigError, match="has leftovers of an interrupted command, and also mine"):
        check_fillable("OUT", folder, PARTS)
    (folder / "mine").unlink()
    check_fillable("OUT", folder, PARTS)
    with filling(folder, PARTS):
        assert [path.name for path in folder.iterdir()] == [MARK]


def test_a_folder_still_being_written_is_not_taken_over(tmp_path):
    folder = make_leftovers(tmp_path / "new")
    with FileLock(folder / MARK):
        assert not is_abandoned(folder)
        with pytest.raises(ConfigError, match="is not empty; give a new or empty folder"):
            check_fillable("OUT", folder, PARTS)
    (folder / MARK).touch()
    assert is_abandoned(folder) and is_abandoned(folder)
