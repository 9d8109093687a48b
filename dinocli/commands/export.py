from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinocore.errors import ConfigError, DataError

from ..completion import choices
from ..console import print_facts, print_json, say, warn
from ..options import Json

if TYPE_CHECKING:
    from PIL import Image

    from dinocore.config import DataConfig

NUM_IMAGES = 4


def export(
    weights: Annotated[
        str, typer.Argument(metavar="WEIGHTS", help="A file, a run, a name of `dino weights`, or bundled.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .onnx, .xml (OpenVINO) or .pt2.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="onnx, openvino, torch-export or aoti.",
            autocompletion=choices("onnx", "openvino", "torch-export", "aoti"),
        ),
    ] = "onnx",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW[-HxW]",
            help="Height and width of the canvas, or smallest and largest; default: fits evaluation images.",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="float32, or int8 for matrix products of encoder and decoder.",
            autocompletion=choices("float32", "int8"),
        ),
    ] = "float32",
    pixels: Annotated[
        str,
        typer.Option(
            help="Input type: uint8 or float32, 0 to 255 in both.", autocompletion=choices("uint8", "float32")
        ),
    ] = "uint8",
    max_dets: Annotated[int | None, typer.Option(min=1, help="Detections per image; default: the model's own.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Default score threshold of the file; default: the weights' own, or 0.3."),
    ] = None,
    tensorrt_plugin: Annotated[
        bool,
        typer.Option(
            "--tensorrt-plugin", help="Use TensorRT's attention plug-in; the ONNX file then runs in TensorRT only."
        ),
    ] = False,
    images: Annotated[
        list[str],
        typer.Option(
            help="Images or folders to compare on (the first four); default: from the weights' data, or else drawn."
        ),
    ] = [],
    json: Json = False,
) -> None:
    """Export weights to a file that runs without PyTorch, and compare it with the model.

    Example: dino export runs/mine/best.safetensors --format onnx --out dino.onnx
    """
    from dinocore.export.export import PIXELS, Request, export_weights, pick_canvases
    from dinocore.export.write import check_format
    from dinocore.weights.file import load_weights

    from ..weights_option import find_weights, is_exported

    sizes = [] if size is None else _sizes(size)
    check_format(format, precision, out, len(sizes) > 1, tensorrt_plugin)
    if pixels not in PIXELS:
        raise ConfigError(f"--pixels {pixels} is not known; choose {' or '.join(PIXELS)}")
    where = find_weights(weights)
    if is_exported(where):
        raise ConfigError(f"{where} is already an exported file; give the weights it was made from")
    content = load_weights(where)
    pick_canvases(content.config, sizes, max(content.config.model.feature_strides))  # before images are read
    shown = _images(images, content.config.data)
    request = Request(format, out, precision, sizes, pixels, max_dets, threshold, tensorrt_plugin)
    done = export_weights(content, where, request, shown, say)
    facts = {
        "files": [str(file) for file in done.files],
        "bytes": sum(file.stat().st_size for file in done.files),
        "format": format,
        "precision": precision,
        "canvas": "-".join(dict.fromkeys("{}x{}".format(*done.info[key]) for key in ("least", "canvas"))),
        "compared": done.difference.compared,
        "score_difference": done.difference.score,
        "box_difference_pixels": done.difference.box,
        "equal_proposals_swapped": done.difference.ties,
    }
    if json:
        print_json(facts)
    else:
        print_facts(facts | {"files": ", ".join(facts["files"])})


def _sizes(text: str) -> list[tuple[int, int]]:
    """Parse `--size`: one (height, width), or the smallest and the largest."""
    from .benchmark import _size

    parts = text.split("-")
    if len(parts) > 2 or not all(parts):
        raise ConfigError(f"--size {text} is neither a size nor a range of sizes; write 640x640, or 224x224-640x640")
    sizes = [_size(part) for part in parts]
    if sizes[0][0] > sizes[-1][0] or sizes[0][1] > sizes[-1][1]:
        raise ConfigError(f"--size must go from the smallest to the largest; got {text}")
    return sizes


def _images(given: list[str], config: "DataConfig") -> "list[Image.Image | Path]":
    """The images for the comparison, and a message about their source if they were not given."""
    from PIL import Image

    from dinocore.data.dataset import open_split
    from dinocore.data.images import read_image
    from dinocore.data.synthetic.sample import draw_smear

    from ..inputs import expand

    if given:
        found = expand(given)[0]
        if len(found) > NUM_IMAGES:
            say(f"comparing on the first {NUM_IMAGES} of {len(found)} images")
        return [read_image(item.path, config) for item in found[:NUM_IMAGES]]
    if config.path:
        try:
            data = open_split(config, "val", None)
            files = [data.path(i) for i in range(min(NUM_IMAGES, len(data.image_ids)))]
            say(f"comparing on images of {data.file}")
            return [read_image(file, config) for file in files]
        except DataError as error:
            warn(f"cannot compare on the weights' data ({error})")
    say("comparing on drawn images of blood cells; use --images FILE for others")
    return [Image.fromarray(draw_smear(7, i, size)[0]) for i, size in enumerate([(640, 480), (480, 640), (500, 375)])]
