"""Export weights to a file that is run and compared with its model before it gets its final name."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from .. import __version__
from ..config import Config
from ..errors import ConfigError, DinoError, EnvironmentFault
from ..predict import Detector
from ..system.files import is_full, no_room
from ..system.unfinished import folder_beside
from ..weights.convert.info import preset_of_weights
from ..weights.file import UNJUDGED, Weights, least_scores, restore_model
from . import plugin
from .checksum import add_checksum
from .graph import Canvases, DetectorGraph, Signature, canvas_multiple, trace
from .programs import open_exported
from .verify import TOLERANCES, Difference, verify
from .write import FORMATS, check_format

SCHEMA = 1
PIXELS = {"uint8": torch.uint8, "float32": torch.float32}


class NotVerified(DinoError):
    """A written file failed to run, or its results differ from the model's."""

    exit_code = 1
    code = "EXPORT"


class Request(NamedTuple):
    """The export request."""

    format: str
    out: Path
    precision: str = "float32"
    sizes: Sequence[tuple[int, int]] = ()  # height and width of the canvas, or the least and the largest; else it fits
    pixels: str = "uint8"
    max_dets: int | None = None  # None: the config's
    threshold: float | None = None  # kept in the file: least score that its users see; None: the weights' own
    plugin: bool = False  # deformable attention is TensorRT's plug-in


class Exported(NamedTuple):
    """The written file, and its comparison."""

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
    check_format(request.format, request.precision, request.out, len(request.sizes) > 1, request.plugin)
    model = restore_model(weights, where).eval()
    config = for_comparison(weights.config, request.max_dets)
    canvases = pick_canvases(config, request.sizes, canvas_multiple(model, config.model.feature_strides))
    if not canvases.fixed:
        check_least(canvases, config, model.neck.downsampling)
    if request.sizes and min(canvases.largest) > config.data.max_size:
        say(
            "the canvas is larger than any image on it, which costs time: these weights use images of "
            f"{config.data.max_size} pixels at most; without --size, the canvas fits them"
        )
    detector = Detector(model, config, weights.categories, torch.device("cpu"), "off")
    info = describe(weights, request, canvases, config.eval.max_dets)

    say(f"tracing the model on canvases of {canvases}")
    signature = Signature(canvases, config.eval.max_dets, PIXELS[request.pixels])
    graph = DetectorGraph(model, config.model, signature.max_dets)
    program = trace(graph, signature, "operator" if request.plugin else "reference")
    request.out.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    with full_disk_named(request.out), folder_beside(request.out) as folder:
        say(f"writing {request.format}")
        with full_disk_named(request.out, folder, 2 * size):
            files = FORMATS[request.format][0](program, folder / request.out.name, info)
        try:
            difference = _compared(request, detector, files[0], images, canvases, say)
        except Exception:
            _move(files, request.out.parent, ".unverified")
            raise
        if request.plugin:
            plugin.remove_function(files[0])
            say("the plug-in was compared as standard operators; TensorRT: benchmarks/tensorrt_check.py --plugin")
        if request.format in ("onnx", "openvino"):  # a .pt2 file is a ZIP archive, which has checksums
            add_checksum(files[0])
        return Exported(_move(files, request.out.parent), info, difference)


@contextmanager
def full_disk_named(out: Path, folder: Path | None = None, size: int = 0) -> Iterator[None]:
    """Say that there is no room, also where what writes up to `size` bytes into `folder` has another error for that.

    Raises:
        EnvironmentFault: there is none.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = error if isinstance(error, OSError) and is_full(error) else folder and no_room(folder, size)
        if not full:
            raise
        raise EnvironmentFault(
            f"{out} cannot be written: {full.strerror}", fix="free some disk space, or choose a file on another disk"
        ) from error


def _compared(
    request: Request,
    detector: Detector,
    file: Path,
    images: Sequence[Image.Image | Path],
    canvases: Canvases,
    say: Callable[[str], None],
) -> Difference:
    tolerance, worst = TOLERANCES[request.precision], Difference()
    kept = f"the file is kept as {request.out}.unverified"
    try:
        run = open_exported(file).run
        for canvas in canvases.some():
            data = detector.config.data.on_canvas(canvas)  # resized once, as the file's users do
            detector.config = detector.config.model_copy(update={"data": data})
            shown = [detector.batch(image).images[0] for image in images]
            for batch, difference in verify(run, detector, shown, canvas, tolerance):
                say(f"compared {batch}: {difference.in_words()}")
                worst = worst.joined(difference)
    except DinoError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotVerified(f"the exported file failed to run: {first}", fix=kept) from error
    if not worst.compared:
        raise NotVerified(
            f"nothing to compare: no detection has a score of {tolerance.least_score:g} or more; "
            "give --images with objects that the model was trained on",
            fix=kept,
        )
    if not worst.within(tolerance):
        raise NotVerified(
            f"the results of the exported file differ from the model's: scores differ by up to {worst.score:.2g} "
            f"(allowed: {tolerance.score:g}), boxes by {worst.box:.2g} pixels (allowed: {tolerance.box:g}), "
            f"{worst.off} of {worst.compared} detections are off by more or of another class",
            fix=kept,
        )
    return worst


def _move(files: Sequence[Path], folder: Path, suffix: str = "") -> list[Path]:
    return [Path(shutil.move(file, folder / (file.name + suffix))) for file in files if file.exists()]


def for_comparison(config: Config, max_dets: int | None) -> Config:
    """The config of a detector that gives what the graph gives: all detections, also what was found twice."""
    most = config.model.num_queries * config.model.num_classes
    limits = {"nms_iou": 1.0, "max_dets": min(most, config.eval.max_dets if max_dets is None else max_dets)}
    return config.model_copy(update={"eval": config.eval.model_copy(update=limits)})


def pick_canvases(config: Config, sizes: Sequence[tuple[int, int]], multiple: int) -> Canvases:
    """The canvases of a file; by default the smallest square that fits every evaluation image.

    Args:
        sizes: none, a height and width, or the least and the largest.

    Raises:
        ConfigError: the backbone's strides do not divide them, or the range is upside down, or of a Swin, whose windows
            fit the map of one canvas: a graph that was traced for a range gives other numbers.
    """
    side = -(-config.data.max_size // multiple) * multiple
    for size in sizes:
        nearest = [max(1, round(side / multiple)) * multiple for side in size]
        if tuple(nearest) != tuple(size):
            raise ConfigError(
                f"--size {size[0]}x{size[1]} must be a multiple of {multiple}, the model's coarsest stride; "
                f"try {nearest[0]}x{nearest[1]}"
            )
    least, largest = (sizes[0], sizes[-1]) if sizes else ((side, side), (side, side))
    if least[0] > largest[0] or least[1] > largest[1]:
        raise ConfigError(f"--size must go from the smallest to the largest; got {Canvases(largest, least, multiple)}")
    if least != largest and config.model.backbone.removeprefix("timm/").startswith("swin"):
        raise ConfigError(
            "--size: a model with a Swin backbone can only be exported for one size; "
            f"give one, such as --size {largest[0]}x{largest[1]}"
        )
    return Canvases(largest, least, multiple)


def check_least(canvases: Canvases, config: Config, downsampling: int) -> None:
    """Check before any work that the smallest canvas of a range has a token for each query.

    Raises:
        ConfigError: it has fewer, which would be another graph.
    """
    strides, (height, width), step = list(config.model.feature_strides), canvases.least, canvases.multiple
    while downsampling > 1:
        strides, downsampling = [*strides, 2 * strides[-1]], downsampling // 2
    tokens = sum(-(-height // stride) * -(-width // stride) for stride in strides)
    if config.model.queries != "static" and tokens < config.model.num_queries:
        side = step
        while sum((-(-side // stride)) ** 2 for stride in strides) < config.model.num_queries:
            side += step
        raise ConfigError(
            f"--size: a canvas of {height} x {width} has {tokens} tokens for {config.model.num_queries} queries; "
            f"start the range at {side}x{side} or more"
        )


def describe(weights: Weights, request: Request, canvases: Canvases, max_dets: int) -> dict[str, Any]:
    """The metadata of a file, for `runtime.py` and `dino info`."""
    config = weights.config
    return {
        "schema": SCHEMA,
        "dino_version": __version__,
        "torch_version": str(torch.__version__),
        "preset": preset_of_weights(weights),
        "names": [category.name for category in weights.categories],
        "ids": [category.id for category in weights.categories],
        "canvas": list(canvases.largest),
        "least": list(canvases.least),
        "multiple": canvases.multiple,
        "pixels": request.pixels,
        "precision": request.precision,
        "plugin": f"{plugin.PLUGIN} {plugin.VERSION}" if request.plugin else None,
        "eval_scale": config.data.eval_scale,
        "max_size": config.data.max_size,
        "nms_iou": config.eval.nms_iou,
        "max_dets": max_dets,
        "threshold": pick_threshold(request.threshold, weights.threshold),
        "threshold_from": threshold_origin(request.threshold, weights.threshold),
        "thresholds": _class_thresholds(request.threshold, weights),
        "data": config.data.model_dump(mode="json", exclude={"path"}),  # of no use elsewhere
    }


def pick_threshold(requested: float | None, own: float | None) -> float:
    """What was asked for, else the best of the weights' evaluation, else `UNJUDGED`."""
    return next((value for value in (requested, own) if value is not None), UNJUDGED)


def threshold_origin(requested: float | None, own: float | None) -> str:
    """Where the threshold of `pick_threshold` is from: `asked`, `weights` or `default`."""
    return "asked" if requested is not None else "default" if own is None else "weights"


def _class_thresholds(requested: float | None, weights: Weights) -> list[float] | None:
    """The threshold of each class, where no other one was asked for and some class has its own."""
    if requested is not None or not weights.class_thresholds:
        return None
    return least_scores(weights.categories, weights.threshold, weights.class_thresholds)
