"""Check the options of `dino predict`, and open the detector."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dinocore.config import DataConfig
from dinocore.errors import ConfigError, DataError
from dinocore.system.files import check_folder_name, check_writable, is_stream
from dinocore.words import counted

from ...console import say, warn
from ...weights_option import open_any_detector, open_slicing
from .resume import RESUMABLE, answer_settings

if TYPE_CHECKING:
    from dinocore.predict import AnyDetector
    from dinocore.stream.slices import Slicing


class PredictRequest(NamedTuple):
    """The options of a `dino predict` command."""

    out: Path | None
    format: str
    save_images: Path | None
    threshold: float | None  # None: that of the weights
    max_dets: int
    resume: bool
    json: bool
    batch_size: str = "auto"
    slice: str | None = None
    overlap: float | None = None
    begun: float = 0.0  # when the command started, in seconds since the epoch
    compiled: bool = False


class Work(NamedTuple):
    """A detector, and how to use it."""

    detector: AnyDetector
    slicing: Slicing | None
    request: PredictRequest
    least: list[float]  # threshold of each class
    settings: dict[str, Any]  # settings that affect the results; see `answer_settings`
    images: Mapping[str, str]  # states of the image files; see `image_states`


def check_request(request: PredictRequest) -> PredictRequest:
    """Check the request and return it with its output format filled in."""
    from dinocore.detections_io import check_out, format_of
    from dinocore.stream.images import check_batch_size
    from dinocore.stream.slices import parse_slicing

    request = request._replace(format=format_of(request.format, request.out))
    check_batch_size(request.batch_size, "--batch-size ")
    if request.slice is not None:
        parse_slicing(request.slice, request.overlap, DataConfig(), {})
    if request.out is not None:
        check_out(request.out, request.format)
    if request.resume and (request.out is None or is_stream(request.out) or request.format not in RESUMABLE):
        raise ConfigError("--resume continues an --out file in json or jsonl format; give --out, or drop --resume")
    if request.save_images is not None:
        check_folder_name("--save-images", request.save_images)
    folders = [None if request.out is None or is_stream(request.out) else request.out.parent, request.save_images]
    for folder in (folder for folder in folders if folder is not None):
        check_writable(folder)
    return request


def check_format_has_use(chosen: str, request: PredictRequest) -> None:
    """Reject a --format that nothing is written in.

    Raises:
        ConfigError: --format without --out.
    """
    from dinocore.detections_io import FOLDERS

    unused = request.out is None and chosen != "auto" and not (chosen == "json" and request.json)
    if unused:
        place = "DIR" if chosen in FOLDERS else "FILE"
        raise ConfigError(f"--format {chosen} sets the format of --out; add --out {place}, or drop --format")


def open_work(
    request: PredictRequest, weights: str | None, device: str, amp: str, images: Mapping[str, str] | None = None
) -> Work:
    """Load the detector, and apply --max-dets and --slice.

    Args:
        images: states of the image files; see `image_states`.
    """
    detector, path = open_any_detector(weights, device, amp, request.compiled)
    limits = detector.config.eval.model_copy(update={"max_dets": request.max_dets})
    detector.config = detector.config.model_copy(update={"eval": limits})
    slicing = None
    if request.slice is not None:
        slicing = open_slicing(request.slice, request.overlap, path, detector.config.data)
        if request.slice == "auto":
            say(f"slices of {slicing.side} pixels, overlap {slicing.overlap:g}")
    least = choose_thresholds(request.threshold, detector)
    return Work(detector, slicing, request, least, answer_settings(request, path, amp), images or {})


def check_overwriting(images: Sequence[Path], stems: Mapping[str, str], request: PredictRequest) -> None:
    """Make sure that no input image is overwritten by a drawing, and no label file next to the images.

    Warns if output files don't have the names of their images.

    Args:
        stems: for each image, the name of its output files without suffix.

    Raises:
        ConfigError: --save-images or --out would overwrite one.
    """
    from dinocore.detections_io import CLASSES, FOLDERS

    if request.save_images is not None:
        drawings = {drawing_path(request.save_images, stem).resolve() for stem in stems.values()}
        if over := next((image for image in images if image.resolve() in drawings), None):
            raise ConfigError(f"--save-images {request.save_images} would overwrite {over}; choose another folder")
    out, suffix = request.out, FOLDERS.get(request.format)
    if out is not None and suffix and out.resolve() in {image.resolve().parent for image in images}:
        labels = [out / f"{stem}{suffix}" for stem in stems.values()] + [out / CLASSES] * (request.format == "yolo")
        if over := next((label for label in labels if label.exists()), None):
            raise ConfigError(f"--out {out} would overwrite {over}; choose another folder")
    other = [f"{file} as {stem}" for file, stem in stems.items() if file != "-" and Path(file).stem != stem]
    if other and (suffix or request.save_images is not None):
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        warn(f"using a different name for {counted(len(other), 'image')}: {shown}")


def drawing_path(folder: Path, stem: str) -> Path:
    """The path of an image with its boxes drawn."""
    return folder / f"{stem}.jpg"


def parse_threshold(text: str) -> float | None:
    """Parse --threshold: a score in [0, 1], or None for `auto`.

    Raises:
        ConfigError: it is neither.
    """
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"--threshold {text} is neither auto nor a number from 0 to 1; try --threshold 0.3")
    return value


def parts_folder(out: Path) -> Path:
    """The folder for the finished parts of several ranks, until they are merged into --out."""
    out = Path(os.path.abspath(out))  # so that even `.` has a name
    return out.with_name(f"{out.name}.parts")


def choose_thresholds(threshold: float | None, detector: AnyDetector) -> list[float]:
    """The threshold of each class: the requested one, else the best of the weights' evaluation, else 0.3."""
    from dinocore.weights.file import least_scores

    if threshold is not None:
        return [threshold] * len(detector.categories)
    least = least_scores(detector.categories, detector.threshold, detector.class_thresholds)
    if detector.threshold is not None or detector.class_thresholds:
        origin = getattr(detector, "threshold_note", "the best F1 when these weights were evaluated")
        one = min(least) == max(least)
        shown = f"{least[0]:.3f}" if one else f"{min(least):.3f} to {max(least):.3f} by class"
        say(f"threshold: {shown}, {origin}")
    return least


def none_left(count: int, first: DataError) -> DataError:
    return (
        first if count == 1 else DataError(f"none of {count} images could be read", fix="see the error of each above")
    )


def so_far(done: int, count: int, request: PredictRequest) -> str:
    """The message after a signal has stopped the command."""
    kept = f", which {request.out} has" if request.out else ""
    advice = _resume_advice(request) if kept and done < count else ""
    return f"interrupted after {done} of {counted(count, 'image')}{kept}{advice}"


def kept_so_far(done: int, count: int, request: PredictRequest) -> str:
    """The message after an error has stopped the command."""
    return f"{request.out} has {done} of {counted(count, 'image')}, those before this error{_resume_advice(request)}"


def _resume_advice(request: PredictRequest) -> str:
    return "; run the same command with --resume to process the rest" if request.format in RESUMABLE else ""
