"""The command that installs this package or one of its extras on this machine."""

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = "dino-detector"


def install_line(extra: str = "") -> str:
    """The pip command for the package or one of its extras, from the same source as this installation.

    The package is not on an index, so its name alone is not enough; pip records where it was installed from (PEP 610).
    """
    origin = _origin()
    brackets = f"[{extra}]" if extra else ""
    if "://" in origin:
        return f'pip install "{PACKAGE}{brackets} @ {origin}"'
    return f'pip install "{origin}{brackets}"'


@cache
def _origin() -> str:
    """The folder, file or URL that this copy was installed from; the package's name if unknown."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return str(checkout)
    try:
        record = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError, OSError):
        return PACKAGE
    return _source(record)


def _source(record: dict) -> str:
    url, version = str(record.get("url", "")), record.get("vcs_info")
    if not url.startswith("file:"):
        return f"{version['vcs']}+{url}@{version['commit_id']}" if version else url or PACKAGE
    path = Path(url2pathname(urlsplit(url).path))
    return str(path) if path.exists() else PACKAGE
