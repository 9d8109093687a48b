"""From weights to a file that was run and compared with its model before it got its name."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .. import __version__
from ..config import Config
from ..errors import ConfigError, DinoError
from ..predict import Detector
from ..presets import list_presets, load_config
from ..weights.file import UNJUDGED, Weights, least_scores, restore_model
from .detector import fit
from .graph import DetectorGraph, Signature, canvas_multiple, trace
from .verify import TOLERANCES, Difference, open_file, verify
from .write import FORMATS, check_format

SCHEMA = 1
PIXELS = {"uint8": torch.uint8, "float32": torch.float32}


class NotVerified(DinoError):
    """A file was written, and it could not be run or does not give the numbers of its model."""

    exit_code = 1
    code = "EXPORT"


class Request(NamedTuple):
    """What is to be written."""

    format: str
    out: Path
    precision: str = "float32"
    canvas: tuple[int, int] | None = None  # height and width; None: any image of evaluation fits
    pixels: str = "uint8"
    max_dets: int | None = None  # None: the config's
    threshold: float | None = None  # kept in the file: least score that its users see; None: the weights' own


class Exported(NamedTuple):
    """What was written, and how it compares."""

    files: list[Path]
    info: dict[str, Any]
    difference: Difference


def export_weights(
    weights: Weights,
    where: Path,
    request: Request,
    images: Sequence[Image.Image | Path],
    say: Callable[[str], None] = lambda message: None,
) -> Exported:
    """Write a file, run it on real images in several shapes and batch sizes, and compare it with the model.

    Args:
        where: the file of the weights.
        images: to compare on; three or more.

    Raises:
        ConfigError: it cannot be written so.
        NotVerified: it was written as FILE.unverified, for it could not be run or gives other numbers.
    """
    check_format(request.format, request.precision, request.out)
    model = restore_model(weights, where).eval()
    config = for_comparison(weights.config, request.max_dets)
    canvas = pick_canvas(config, request.canvas, canvas_multiple(model, config.model.feature_strides))
    detector = Detector(model, config, weights.categories, torch.device("cpu"), "off")
    shown = [fit(detector.batch(image).images[0], canvas) for image in images]
    info = describe(weights, request, canvas, config.eval.max_dets)

    say(f"tracing the model on a canvas of {canvas[0]} x {canvas[1]} pixels")
    signature = Signature(canvas, config.eval.max_dets, PIXELS[request.pixels])
    program = trace(DetectorGraph(model, config.model, signature.max_dets), signature)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{request.out.name}.", dir=request.out.parent) as folder:
        say(f"writing {request.format}")
        files = FORMATS[request.format][0](program, Path(folder) / request.out.name, info)
        try:
            difference = _compared(request, detector, files[0], shown, canvas, say)
        except Exception:
            _move(files, request.out.parent, ".unverified")
            raise
        return Exported(_move(files, request.out.parent), info, difference)


def _compared(
    request: Request,
    detector: Detector,
    file: Path,
    images: Sequence[Tensor],
    canvas: tuple[int, int],
    say: Callable[[str], None],
) -> Difference:
    tolerance, worst = TOLERANCES[request.precision], Difference()
    kept = f"the file is kept as {request.out}.unverified"
    try:
        for batch, difference in verify(open_file(request.format, file), detector, images, canvas, tolerance):
            say(f"compared {batch}: scores differ by {difference.score:.1g}, boxes by {difference.box:.2g} pixels")
            worst = worst.joined(difference)
    except DinoError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotVerified(f"the exported file could not be run: {first}", fix=kept) from error
    if not worst.within(tolerance):
        raise NotVerified(
            f"the exported file does not give the model's numbers: scores differ by up to {worst.score:.2g} "
            f"(allowed: {tolerance.score:g}), boxes by {worst.box:.2g} pixels (allowed: {tolerance.box:g}), "
            f"{worst.off} of {worst.compared} detections are off by more or of another class",
            fix=kept,
        )
    return worst


def _move(files: Sequence[Path], folder: Path, suffix: str = "") -> list[Path]:
    return [Path(shutil.move(file, folder / (file.name + suffix))) for file in files if file.exists()]


def for_comparison(config: Config, max_dets: int | None) -> Config:
    """The config of a detector that gives what the graph gives: all detections, also what was found twice."""
    limits = {"nms_iou": 1.0} | ({} if max_dets is None else {"max_dets": max_dets})
    return config.model_copy(update={"eval": config.eval.model_copy(update=limits)})


def pick_canvas(config: Config, wanted: tuple[int, int] | None, multiple: int) -> tuple[int, int]:
    """Height and width of the canvas; by default the least square into which every image of evaluation fits.

    Raises:
        ConfigError: the backbone's strides do not divide them.
    """
    side = -(-config.data.max_size // multiple) * multiple
    if wanted is None:
        return side, side
    nearest = [max(1, round(side / multiple)) * multiple for side in wanted]
    if tuple(nearest) != tuple(wanted):
        raise ConfigError(
            f"--size {wanted[0]}x{wanted[1]} must be multiples of {multiple}, the model's coarsest stride; "
            f"try {nearest[0]}x{nearest[1]}"
        )
    return wanted


def describe(weights: Weights, request: Request, canvas: tuple[int, int], max_dets: int) -> dict[str, Any]:
    """What a file says about itself, for `runtime.py` and for people."""
    config = weights.config
    return {
        "schema": SCHEMA,
        "dino_version": __version__,
        "torch_version": str(torch.__version__),
        "preset": preset_of(config),
        "names": [category.name for category in weights.categories],
        "ids": [category.id for category in weights.categories],
        "canvas": list(canvas),
        "pixels": request.pixels,
        "precision": request.precision,
        "eval_scale": config.data.eval_scale,
        "max_size": config.data.max_size,
        "nms_iou": config.eval.nms_iou,
        "max_dets": max_dets,
        "threshold": pick_threshold(request.threshold, weights.threshold),
        "thresholds": _thresholds_of_classes(request.threshold, weights),
        "data": config.data.model_dump(mode="json", exclude={"path"}),  # of no use elsewhere
    }


def pick_threshold(asked: float | None, own: float | None) -> float:
    """What was asked for, else the best of the weights' evaluation, else `UNJUDGED`."""
    return next((value for value in (asked, own) if value is not None), UNJUDGED)


def _thresholds_of_classes(asked: float | None, weights: Weights) -> list[float] | None:
    """The threshold of each class, where no other one was asked for and some class has its own."""
    if asked is not None or not weights.class_thresholds:
        return None
    return least_scores(weights.categories, weights.threshold, weights.class_thresholds)


def preset_of(config: Config) -> str | None:
    """The preset with the same model but for its classes; None if there is none."""
    for name in list_presets():
        if load_config(name).model.model_copy(update={"num_classes": config.model.num_classes}) == config.model:
            return name
    return None
