"""Download one file over HTTP: resume a partial download if the file is unchanged, and retry a few times."""

import http.client
import json
import shutil
import ssl
import time
import urllib.request
from collections.abc import Mapping
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError

from ... import __version__
from ...errors import CheckpointError, ConfigError, EnvironmentFault
from .cache import writing
from .watch import Watch

CHUNK = 1 << 20
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # status codes after which a retry may succeed


class Patience(NamedTuple):
    """How long to wait for a server, in seconds."""

    timeout: float = 30.0  # without receiving data
    attempts: int = 5  # failed attempts in a row
    pause: float = 1.0  # after the first failure; doubled after each further one
    longest_pause: float = 30.0


class TransientError(Exception):
    """A temporary failure."""

    def __init__(self, why: str, pause: float = 0.0):
        super().__init__(why)
        self.pause = pause  # requested by the server


class PartialFile:
    """A partial download, and the version of the file it belongs to."""

    def __init__(self, target: Path, address: str):
        self.file = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.address = address

    @property
    def size(self) -> int:
        """The size of the partial download in bytes."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def read_note(self) -> dict[str, Any]:
        """The version and full size of an existing partial download; empty without one."""
        try:
            note = json.loads(self.note.read_text())
            return note if self.size and note["address"] == self.address and note["version"] else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def begin(self, version: str, total: int | None) -> None:
        """Delete the partial download and start over with a version of the file."""
        with writing(self.file):
            self.file.write_bytes(b"")
            self.note.write_text(json.dumps({"address": self.address, "version": version, "total": total}))

    def remove(self) -> None:
        """Delete the partial download and its note."""
        with writing(self.file):
            self.file.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)


def download(address: str, part: PartialFile, watch: Watch, patience: Patience = Patience()) -> None:  # noqa: B008
    """Download a file to `part`, resuming an earlier attempt.

    `http_proxy`, `https_proxy` and `no_proxy` are respected.

    Raises:
        EnvironmentFault: the download failed; the partial file is kept for the next attempt.
        CheckpointError: it is a web page.
        ConfigError: it is not an address.
    """
    failures, furthest = 0, part.size
    while not part.size or part.read_note().get("total") != part.size:
        try:
            _attempt(address, part, watch, patience)
            break
        except TransientError as fault:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures >= patience.attempts:
                raise EnvironmentFault(
                    f"{address} could not be downloaded: {fault}, {failures} times in a row; try again later, the "
                    f"partial download is kept; {BY_HAND}"
                ) from None
            pause = min(max(patience.pause * 2 ** (failures - 1), fault.pause), patience.longest_pause)
            watch.say(f"{fault}; trying again in {pause:g} s, from byte {part.size}")
            time.sleep(pause)


BY_HAND = "or download it manually and use `dino convert FILE --out X.safetensors`"


def _attempt(address: str, part: PartialFile, watch: Watch, patience: Patience) -> None:
    # without a note, request the whole file; with one, the remainder if the server still has the same version
    note = part.read_note()
    resume = {"Range": f"bytes={part.size}-", "If-Range": note["version"]} if note else {}
    headers = {"User-Agent": f"dino/{__version__}", "Accept-Encoding": "identity", **resume}
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.build_opener(_NoDowngrade).open(request, timeout=patience.timeout) as response:
            total = _prepare(response, part, resume, watch)
            _receive(response, part, total, watch)
    except HTTPError as error:
        raise _http_error(error, address, part) from None
    except (ssl.SSLError, URLError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise EnvironmentFault(f"{address} has a certificate that is not trusted here: {reason}") from None
        raise TransientError(f"no connection ({reason})") from None
    except TimeoutError:
        raise TransientError(f"no data for {patience.timeout:g} s") from None
    except (http.client.HTTPException, OSError) as error:
        if isinstance(error, http.client.InvalidURL):
            raise ConfigError(f"{address} is not an address: {error}") from None
        raise TransientError(f"the connection broke ({str(error) or type(error).__name__})") from None
    except ValueError as error:
        raise ConfigError(f"{address} is not an address: {error}") from None


def _prepare(response: Any, part: PartialFile, resume: Mapping[str, str], watch: Watch) -> int | None:
    """Prepare the partial file for the response, and return the full size."""
    headers = response.headers
    if response.status == HTTPStatus.PARTIAL_CONTENT and resume:
        span, _, total = (headers["Content-Range"] or "").removeprefix("bytes ").partition("/")
        changed = _version(headers) not in ("", resume["If-Range"])
        if changed or not span.startswith(f"{part.size}-") or not total.isdigit():
            part.remove()  # another version, or another range than requested
            raise TransientError("the file has changed on the server; starting over")
        return _check_space(int(total), part)
    if resume:
        watch.say("the server sends the whole file again")
    length = headers["Content-Length"] or ""
    total = int(length) if length.isdigit() else None
    part.begin(_version(headers), total)
    return total if total is None else _check_space(total, part)


def _check_space(total: int, part: PartialFile) -> int:
    """The full size, if the disk has enough space for the missing part."""
    with writing(part.file):
        free, missing = shutil.disk_usage(part.file.parent).free, total - part.size
    if missing > free:
        raise EnvironmentFault(
            f"{part.file.parent} has too little space: this file needs {missing / 1e6:.1f} MB and {free / 1e6:.1f} "
            "MB are free; set DINO_CACHE to another folder"
        )
    return total


def _receive(response: Any, part: PartialFile, total: int | None, watch: Watch) -> None:
    with writing(part.file):
        file = part.file.open("ab")
    with file:
        done = file.tell()
        watch.progress(done, total)
        while block := response.read(CHUNK):
            if not done and _is_page(block, response.headers):
                file.close()
                part.remove()
                raise CheckpointError(f"{part.address} returned a web page, not a weights file; open it to see why")
            with writing(part.file):
                file.write(block)
                file.flush()
            done += len(block)
            watch.progress(done, total)
    if total is not None and done != total:
        if done > total:
            part.remove()
        raise TransientError(f"the connection ended after {done} of {total} bytes")


def _is_page(block: bytes, headers: Message) -> bool:
    return block.lstrip()[:1] == b"<" or (headers["Content-Type"] or "").startswith("text/html")


def _http_error(error: HTTPError, address: str, part: PartialFile) -> Exception:
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.remove()
        return TransientError("the server's file is smaller than the partial download; starting over")
    if error.code in TRANSIENT:
        after = error.headers.get("Retry-After") or ""
        return TransientError(
            f"the server returned {error.code} {error.reason}", float(after) if after.isdigit() else 0.0
        )
    return EnvironmentFault(f"{address} could not be downloaded: {error.code} {error.reason}; {BY_HAND}")


def _version(headers: Message) -> str:
    """The version of a file; weak ETags cannot be used for ranges."""
    tag = headers["ETag"] or ""
    return (headers["Last-Modified"] or "") if tag.startswith("W/") or not tag else tag


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Follow a redirect, unless it leads from https to http."""
        if req.type == "https" and not newurl.startswith("https:"):
            raise EnvironmentFault(f"{req.full_url} redirects to {newurl}, which is not https; not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
