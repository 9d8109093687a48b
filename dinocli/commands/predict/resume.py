"""`dino predict --resume`: reuse earlier results if the weights and options are the same.

    .OUT.resume    weights, options, and size and time of each image; it exists while images are missing from --out

The output formats themselves have no place for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinocore.errors import ConfigError
from dinocore.system.files import is_stream, write_text
from dinocore.words import counted

from ...console import say
from ...inputs import Input

if TYPE_CHECKING:
    from dinocore.detections_io import ImageResult

    from .request import PredictRequest, Work

RESUMABLE = ("json", "jsonl")
IMAGES = "images"  # the entry of `.OUT.resume` with the states of their files


def answer_settings(request: PredictRequest, weights: Path, amp: str) -> dict[str, Any]:
    """All settings that affect the detections, except the images, by option name; None: not given."""
    state = weights.stat()
    return {
        "weights": str(weights.absolute()),
        "size": state.st_size,
        "changed": state.st_mtime_ns,
        "threshold": request.threshold,
        "max-dets": request.max_dets,
        "slice": request.slice,
        "overlap": request.overlap,
        "amp": amp,
    }


def image_states(request: PredictRequest, inputs: Sequence[Input]) -> dict[str, str]:
    """The state of each image file before it is read, by name; empty if --out cannot be resumed."""
    return {item.name: file_state(item.path) for item in inputs} if _is_resumable(request) else {}


def file_state(path: Path) -> str:
    """Size and modification time of a file, which change if it is replaced; empty if it is missing."""
    try:
        state = path.stat()
    except OSError:  # reported when it is read
        return ""
    return f"{state.st_size} {state.st_mtime_ns}"


def _is_resumable(request: PredictRequest) -> bool:
    return request.out is not None and request.format in RESUMABLE and not is_stream(request.out)


def earlier_results(
    request: PredictRequest, inputs: Sequence[Input], settings: Mapping[str, Any], states: Mapping[str, str]
) -> list[ImageResult]:
    """With --resume, the results of an earlier command for these images.

    Images that have changed since then are processed again.

    Args:
        states: the current states of the image files; see `image_states`.

    Raises:
        ConfigError: it had other weights, options or images.
        DataError: --out has other content.
    """
    from dinocore.detections_io import read_detections
    from dinocore.system.processes import rank_number

    out = request.out
    if not request.resume or out is None or not out.exists():
        return []
    paths = {item.name: item.path for item in inputs}
    rows = read_detections(out)
    _check_images(out, [row.file for row in rows if row.file not in paths])
    earlier = _remembered(out)
    known = (earlier or {}).get(IMAGES, {})

    def is_same(name: str) -> bool:
        if name in known:
            return states[name] in ("", known[name])
        return not _is_newer(paths[name], out)

    before = [row for row in rows if row.file in paths and is_same(row.file)]
    changed = sum(row.file in paths for row in rows) - len(before)
    if earlier is not None:
        _check_same(out, earlier, settings)
    if rank_number() == 0:
        unknown = earlier is None and 0 < len(before) < len(inputs)
        note = "; the weights and options it was made with are unknown" if unknown else ""
        say(f"{out} has {len(before)} of {counted(len(inputs), 'image')}; processing the others{note}")
        if changed:
            say(f"{counted(changed, 'image')} changed since {out} was written; processing them again")
    return before


def _is_newer(path: Path, other: Path) -> bool:
    """Whether a file was written or replaced, even by an older one, after the other was written."""
    if not path.exists():
        return False
    state = path.stat()
    return max(state.st_mtime_ns, state.st_ctime_ns) > other.stat().st_mtime_ns


def _check_images(out: Path, unnamed: Sequence[str]) -> None:
    """Make sure that no results are lost for images that still exist but were not given this time."""
    if there := [name for name in unnamed if Path(name).exists()]:
        raise ConfigError(
            f"{out} has {counted(len(there), 'image')} that this command does not name, such as {there[0]}; name all "
            "that it has and those to add, or give another --out"
        )


def remember(work: Work, missing: bool = True) -> None:
    """Save weights, options and image states for --resume if images are missing from --out; otherwise remove them."""
    out = work.request.out
    if out is None or not _is_resumable(work.request):
        return
    if missing:
        write_text(_beside(out), json.dumps({**work.settings, IMAGES: work.images}) + "\n")
    else:
        _beside(out).unlink(missing_ok=True)


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.resume")


def _remembered(out: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(_beside(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _check_same(out: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    differing = [key for key in settings if earlier.get(key) != settings[key]]
    if not differing:
        return
    options = [key for key in differing if key not in ("size", "changed")]
    if not options:
        raise ConfigError(f"{settings['weights']} has changed since {out} was started; give another --out")
    began = " ".join(_typed(key, earlier.get(key)) for key in options)
    now = " ".join(_typed(key, settings[key]) for key in options)
    raise ConfigError(f"{out} was started with {began}, not {now}; give the same options again, or another --out")


def _typed(option: str, value: Any) -> str:
    """An option as it would be typed."""
    if value is None:
        return "--threshold auto" if option == "threshold" else f"no --{option}"
    return f"--{option} {value}"
