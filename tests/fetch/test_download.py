"""Downloads are complete and of one version, even if connections fail."""

import pytest

from dinocore.errors import CheckpointError, ConfigError, EnvironmentFault
from dinocore.weights.fetch.download import PartialFile, Patience, download

QUICK = Patience(timeout=0.3, attempts=3, pause=0.01, longest_pause=0.02)
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def fetch(server, tmp_path, messages):
    server.content = CONTENT

    def run(address=None, patience=QUICK):
        part = PartialFile(tmp_path / "file.pth", address or server.address())
        download(part.address, part, messages[0], patience)
        return part.file.read_bytes()

    return run


def ranges(server):
    return [request.get("Range") for request in server.requests]


def test_a_file_is_downloaded_once(fetch, server):
    assert fetch() == CONTENT and ranges(server) == [None]
    assert fetch() == CONTENT and ranges(server) == [None], "a complete file is not requested again"


def test_an_interrupted_download_is_resumed(fetch, server, messages):
    server.plan = ["cut 1000", "cut 5000", "cut 7"]
    assert fetch() == CONTENT
    assert ranges(server) == [None, "bytes=1000-", "bytes=6000-", "bytes=6007-"]
    assert all(request["If-Range"] == '"1"' for request in server.requests[1:])
    assert sum("trying again" in line for line in messages[1]) == 3


def test_a_failed_download_leaves_a_partial_file_that_the_next_one_resumes(fetch, server, tmp_path):
    server.plan = ["cut 1000"] + ["503"] * 3
    with pytest.raises(EnvironmentFault, match="503"):
        fetch()
    assert (tmp_path / "file.pth.part").stat().st_size == 1000
    assert fetch() == CONTENT and ranges(server)[-1] == "bytes=1000-"


@pytest.mark.parametrize("plan", [["cut 1000", "no-range"], ["cut 1000", "wrong-range"]])
def test_a_server_without_range_support_sends_the_whole_file(plan, fetch, server):
    server.plan = plan
    assert fetch() == CONTENT


def test_parts_of_different_versions_are_not_combined(fetch, server):
    server.plan = ["cut 1000", "503", "503", "503"]
    with pytest.raises(EnvironmentFault):
        fetch()
    server.content, server.etag = CONTENT[::-1], '"2"'
    assert fetch() == CONTENT[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"1"'])
def test_without_a_strong_etag_the_download_starts_again(etag, fetch, server):
    server.etag, server.plan = etag, ["cut 1000"]
    assert fetch() == CONTENT and ranges(server) == [None, None]


def test_a_file_that_became_shorter_is_downloaded_again(fetch, server):
    server.plan = ["cut 1000", "416"]
    assert fetch() == CONTENT


def test_a_stalled_download_is_retried_after_a_timeout(fetch, server):
    server.plan = ["stall 500"]
    assert fetch() == CONTENT


def test_a_download_that_makes_no_progress_is_abandoned(fetch, server):
    server.plan = ["cut 10"] * 10
    server.etag = ""  # without it, each attempt starts from the beginning
    with pytest.raises(EnvironmentFault, match=r"ended after 10 of 256000 bytes, 3 times in a row"):
        fetch()
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", ["404", "403"])
def test_a_missing_file_is_not_requested_twice(status, fetch, server, tmp_path):
    server.plan = [status] * 5
    with pytest.raises(EnvironmentFault, match=rf"{status}.*download it manually and use `dino convert"):
        fetch()
    assert len(server.requests) == 1 and list(tmp_path.iterdir()) == []


def test_a_web_page_instead_of_a_file_is_refused_and_deleted(fetch, server, tmp_path):
    server.plan = ["html"]
    with pytest.raises(CheckpointError, match="a web page, not a weights file"):
        fetch()
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_and_an_invalid_url_are_reported(fetch, server):
    with pytest.raises(EnvironmentFault, match="no connection"):
        fetch("http://127.0.0.1:9/x.pth")
    with pytest.raises(ConfigError, match="not an address"):
        fetch("http://[broken/x.pth")


def test_a_proxy_is_used(fetch, server, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.address(""))
    assert fetch("http://weights.invalid/a.pth") == CONTENT
    assert server.requests[0]["path"] == "http://weights.invalid/a.pth"


def test_a_full_disk_is_a_one_line_error(fetch, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(EnvironmentFault, match=r"needs 0\.3 MB and 0\.0 MB are free; set DINO_CACHE"):
        fetch()
