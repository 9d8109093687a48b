"""The install command of this package or one of its extras, as it works on this machine."""

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = "dino-detector"


def install_line(extra: str = "") -> str:
    """What to type to install the package, or one of its extras: from where this copy came.

    The package is not on an index, so its name alone does not install it; pip keeps where it came from (PEP 610).
    """
    origin = _origin()
    brackets = f"[{extra}]" if extra else ""
    if "://" in origin:
        return f'pip install "{PACKAGE}{brackets} @ {origin}"'
    return f'pip install "{origin}{brackets}"'


@cache
def _origin() -> str:
    """The folder, file or address that this copy was installed from; the package's name where that is not kept."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return str(checkout)
    try:
        kept = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError, OSError):
        return PACKAGE
    return _place(kept)


def _place(kept: dict) -> str:
    address, version = str(kept.get("url", "")), kept.get("vcs_info")
    if not address.startswith("file:"):
        return f"{version['vcs']}+{address}@{version['commit_id']}" if version else address or PACKAGE
    path = Path(url2pathname(urlsplit(address).path))
    return str(path) if path.exists() else PACKAGE
