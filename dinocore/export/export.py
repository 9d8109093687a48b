"""Export weights to a file, which is run and compared with the model before it gets its final name."""

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
from ..system.files import disk_full_error, is_full
from ..system.unfinished import folder_beside
from ..weights.convert.info import preset_of_weights
from ..weights.file import DEFAULT_THRESHOLD, Weights, least_scores, restore_model
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
    """What to export, and how."""

    format: str
    out: Path
    precision: str = "float32"
    sizes: Sequence[
        tuple[int, int]
    ] = ()  # (height, width) of the canvas, or the smallest and largest; empty: automatic
    pixels: str = "uint8"
    max_dets: int | None = None  # None: as in the config
    threshold: float | None = None  # default score threshold, stored in the file; None: that of the weights
    plugin: bool = False  # use TensorRT's plug-in for deformable attention


class Exported(NamedTuple):
    """The written files, their metadata, and the comparison with the model."""

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
        where: path of the weights file, for messages.
        images: at least three images for the comparison.
        say: called with messages about the progress.

    Raises:
        ConfigError: the request is not possible.
        NotVerified: the file could not be run or its results differ; it is left as FILE.unverified.
    """
    check_format(request.format, request.precision, request.out, len(request.sizes) > 1, request.plugin)
    model = restore_model(weights, where).eval()
    config = comparison_config(weights.config, request.max_dets)
    canvases = pick_canvases(config, request.sizes, canvas_multiple(model, config.model.feature_strides))
    if not canvases.fixed:
        check_smallest_canvas(canvases, config, model.neck.downsampling)
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
    with translate_disk_full(request.out), folder_beside(request.out) as folder:
        say(f"writing {request.format}")
        with translate_disk_full(request.out, folder, 2 * size):
            files = FORMATS[request.format][0](program, folder / request.out.name, info)
        try:
            difference = _compare(request, detector, files[0], images, canvases, say)
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
def translate_disk_full(out: Path, folder: Path | None = None, size: int = 0) -> Iterator[None]:
    """Turn errors caused by a full disk into a readable one.

    Args:
        folder, size: if given, test after any error whether `size` bytes still fit into `folder`, because the writer
            may report a full disk as something else.

    Raises:
        EnvironmentFault: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = error if isinstance(error, OSError) and is_full(error) else folder and disk_full_error(folder, size)
        if not full:
            raise
        raise EnvironmentFault(
            f"{out} cannot be written: {full.strerror}", fix="free some disk space, or choose a file on another disk"
        ) from error


def _compare(
    request: Request,
    detector: Detector,
    file: Path,
    images: Sequence[Image.Image | Path],
    canvases: Canvases,
    say: Callable[[str], None],
) -> Difference:
    tolerance, worst = TOLERANCES[request.precision], Difference()
    fix = f"the file is kept as {request.out}.unverified"
    try:
        run = open_exported(file).run
        for canvas in canvases.samples():
            data = detector.config.data.on_canvas(canvas)  # resized once, as the file's users do
            detector.config = detector.config.model_copy(update={"data": data})
            inputs = [detector.batch(image).images[0] for image in images]
            for batch, difference in verify(run, detector, inputs, canvas, tolerance):
                say(f"compared {batch}: {difference}")
                worst = worst.combined(difference)
    except DinoError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotVerified(f"the exported file failed to run: {first}", fix=fix) from error
    if not worst.compared:
        raise NotVerified(
            f"nothing to compare: no detection has a score of {tolerance.least_score:g} or more; "
            "give --images with objects that the model was trained on",
            fix=fix,
        )
    if not worst.within(tolerance):
        raise NotVerified(
            f"the results of the exported file differ from the model's: scores differ by up to {worst.score:.2g} "
            f"(allowed: {tolerance.score:g}), boxes by {worst.box:.2g} pixels (allowed: {tolerance.box:g}), "
            f"{worst.off} of {worst.compared} detections are off by more or of another class",
            fix=fix,
        )
    return worst


def _move(files: Sequence[Path], folder: Path, suffix: str = "") -> list[Path]:
    return [Path(shutil.move(file, folder / (file.name + suffix))) for file in files if file.exists()]


def comparison_config(config: Config, max_dets: int | None) -> Config:
    """The config of a detector whose output is that of the graph: all detections, without NMS."""
    available = config.model.num_queries * config.model.num_classes
    limits = {"nms_iou": 1.0, "max_dets": min(available, config.eval.max_dets if max_dets is None else max_dets)}
    return config.model_copy(update={"eval": config.eval.model_copy(update=limits)})


def pick_canvases(config: Config, sizes: Sequence[tuple[int, int]], multiple: int) -> Canvases:
    """The canvases of a file; by default the smallest square that fits every evaluation image.

    Args:
        sizes: empty, one (height, width), or the smallest and the largest.
        multiple: of every height and width.

    Raises:
        ConfigError: a size is not a multiple, the range is reversed, or the model is a Swin, whose windows depend on
            the canvas, so that a graph traced for a range gives different results.
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


def check_smallest_canvas(canvases: Canvases, config: Config, downsampling: int) -> None:
    """Check before any work that the smallest canvas of a range has at least as many tokens as queries.

    Raises:
        ConfigError: it has fewer, which would need a different graph.
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
    """The metadata to store in the file, for `runtime.py` and `dino info`."""
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
        "data": config.data.model_dump(mode="json", exclude={"path"}),  # a path is of no use elsewhere
    }


def pick_threshold(requested: float | None, evaluated: float | None) -> float:
    """The requested threshold, else the best from the weights' evaluation, else `DEFAULT_THRESHOLD`."""
    return next((value for value in (requested, evaluated) if value is not None), DEFAULT_THRESHOLD)


def threshold_origin(requested: float | None, evaluated: float | None) -> str:
    """Where `pick_threshold` takes the threshold from: `asked` (requested), `weights` or `default`."""
    return "asked" if requested is not None else "default" if evaluated is None else "weights"


def _class_thresholds(requested: float | None, weights: Weights) -> list[float] | None:
    """The threshold of each class; None if one threshold applies to all classes."""
    if requested is not None or not weights.class_thresholds:
        return None
    return least_scores(weights.categories, weights.threshold, weights.class_thresholds)
