"""Files are written completely or not at all."""

import json
import os
import threading

import pytest

from dinocore.detections_io import check_out
from dinocore.errors import ConfigError, EnvironmentFault
from dinocore.system.files import check_file, is_stream, to_json, write_atomically, write_text


def test_missing_folders_are_created_and_text_is_utf_8(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "été\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "été\n".encode()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvironmentFault, match=r"a\.txt cannot be written: No space left on device") as caught:
        write_atomically(path, fail)
    assert caught.value.exit_code == 5 and path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_other_errors_are_propagated_and_leave_no_file(tmp_path):
    def fail(temporary):
        temporary.write_text("half")
        raise KeyError("ours")

    with pytest.raises(KeyError):
        write_atomically(tmp_path / "a.txt", fail)
    assert os.listdir(tmp_path) == []


def test_an_unwritable_path_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(EnvironmentFault) as caught:
            write_text(path, "new")
        assert str(path) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_link_is_kept_and_permissions_follow_the_umask(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "link.txt", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "real.txt").stat().st_mode & 0o777 == 0o640


def test_non_finite_values_are_null_in_json():
    value = {"a": [1.5, float("nan")], "b": ({"c": float("-inf")},), "d": True}
    assert to_json(value) == '{"a": [1.5, null], "b": [{"c": null}], "d": true}'
    assert json.loads(to_json({"a": 0.1}, indent=1)) == {"a": 0.1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):  # like /dev/null, which is too risky to test
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    check_file("--out", pipe, ".json")
    write_text(pipe, "whole")
    reader.join(30)
    with pytest.raises(ConfigError, match="writes two files; choose a file"):
        check_out(pipe, "labelstudio")
    with pytest.raises(ConfigError, match=r"is not a regular file; give one that ends in \.png"):
        check_file("--out", pipe, ".png")
    assert received == ["whole"] and is_stream(pipe) and os.listdir(tmp_path) == ["pipe.json"]
