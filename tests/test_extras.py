"""Extras named in messages are declared, and install commands use the origin of the installation."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from dinocore.system import extras
from dinocore.system.extras import install_line

ROOT = Path(__file__).parents[1]


def declared_extras():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()


def test_every_extra_mentioned_in_a_message_is_declared():
    sources = [path.read_text() for package in ("dinocore", "dinocli") for path in (ROOT / package).rglob("*.py")]
    mentioned = {name for text in sources for name in re.findall(r"install_line\([\"'](\w+)", text)}
    assert {"video", "serve", "hub", "heic", "fast"} <= mentioned <= declared_extras()


def test_no_message_or_page_installs_the_package_by_name_from_an_index():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for path in [*pages, *(p for package in ("dinocore", "dinocli") for p in (ROOT / package).rglob("*.py"))]:
        assert not re.search(r"pip install ['\"]?dino-detector", path.read_text()), path


def test_the_install_command_of_a_checkout_uses_its_path():
    assert shlex.split(install_line("video")) == ["pip", "install", f"{ROOT}[video]"]


@pytest.mark.parametrize(
    ("record", "origin"),
    [
        ({}, "dino-detector"),
        ({"url": "file:///nowhere/gone", "dir_info": {}}, "dino-detector"),
        ({"url": ROOT.as_uri(), "dir_info": {"editable": True}}, str(ROOT)),
        ({"url": "https://a.org/d.whl", "archive_info": {}}, "https://a.org/d.whl"),
        (
            {"url": "https://a.org/d.git", "vcs_info": {"vcs": "git", "commit_id": "abc1"}},
            "git+https://a.org/d.git@abc1",
        ),
    ],
)
def test_the_origin_of_an_installation_is_read_from_pips_record(record, origin, monkeypatch):
    assert extras._source(record) == origin
    monkeypatch.setattr(extras, "_origin", lambda: origin)
    expected = f"dino-detector[hub] @ {origin}" if "://" in origin else f"{origin}[hub]"
    assert shlex.split(install_line("hub")) == ["pip", "install", expected]
