"""What `dino predict` does: every picture on its own, so that a bad one costs only itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import typer
from rich.progress import Progress
from rich.table import Table

from dinocore.data.images import read_image
from dinocore.device import pick_device, pick_precision
from dinocore.errors import ConfigError, DataError
from dinocore.files import check_writable, write_atomically
from dinocore.predict import Detector
from dinocore.view.draw import Box, class_color, draw_boxes
from dinocore.view.formats import Found, as_found, check_out, unlike, write_found

from .console import data, fail, print_json, say, words
from .detector import open_detector
from .inputs import Input, expand

SOME_FAILED = 7


class Wanted(NamedTuple):
    """What is asked for."""

    out: Path | None
    format: str
    save_images: Path | None
    threshold: float
    max_dets: int
    json: bool


def predict_files(files: Sequence[str], wanted: Wanted, weights: str | None, device: str, amp: str) -> None:
    """Detect in every picture; write, draw and show what was found.

    Raises:
        DataError: there is no picture, or none of them can be read.
        typer.Exit: with code 7 if only some could be read.
    """
    wanted = _checked(wanted)
    pick_precision(amp, pick_device(device))
    inputs, skipped = expand(files)
    if skipped:
        say(f"{skipped} files that are no pictures are left out")
    if not any(item.path.exists() for item in inputs):
        raise DataError(f"there is no picture {inputs[0].name}", fix="give a picture, a folder, or a glob in quotes")
    detector, _ = open_detector(weights, device, amp)
    limits = detector.config.eval.model_copy(update={"max_dets": wanted.max_dets})
    detector.config = detector.config.model_copy(update={"eval": limits})

    found, failed = _detect(detector, inputs, wanted)
    if not found:
        raise DataError(f"none of {len(inputs)} pictures could be read" if len(inputs) > 1 else failed[0])
    if wanted.out is not None:
        write_found(found, detector.categories, wanted.format, wanted.out)
        say(f"{sum(len(item.detections) for item in found)} detections in {len(found)} pictures: {wanted.out}")
    if wanted.json:
        print_json([item._asdict() for item in found])
    elif wanted.out is None:
        _show(found)
    if failed:
        fail(f"{len(failed)} of {len(inputs)} pictures could not be read; the others are done")
        raise typer.Exit(SOME_FAILED)


def _checked(wanted: Wanted) -> Wanted:
    """The same with its format, if it can be done."""
    if wanted.format == "auto":
        wanted = wanted._replace(format="csv" if wanted.out and wanted.out.suffix.lower() == ".csv" else "json")
    check_out(wanted.out or Path("boxes"), wanted.format)
    if wanted.save_images is not None and wanted.save_images.is_file():
        raise ConfigError(f"--save-images {wanted.save_images} is a file; give a folder")
    folders = [wanted.out.parent if wanted.out else None, wanted.save_images]
    for folder in (folder for folder in folders if folder is not None):
        check_writable(folder)
    return wanted


def _detect(detector: Detector, inputs: Sequence[Input], wanted: Wanted) -> tuple[list[Found], list[str]]:
    """What was found, and why pictures could not be read."""
    found, failed = [], []
    names = unlike([Path(item.name).stem if item.name != "-" else "stdin" for item in inputs])
    with Progress(console=words, disable=not words.is_terminal or len(inputs) < 2, transient=True) as progress:
        for item, name in zip(progress.track(inputs, description="predicting"), names, strict=True):
            try:
                picture = read_image(item.path, detector.config.data)
            except DataError as error:
                failed.append(str(error))
                if len(inputs) > 1:
                    fail(error)
                continue
            result = as_found(
                item.name, (picture.height, picture.width), detector(picture), detector.categories, wanted.threshold
            )
            found.append(result)
            if wanted.save_images is not None:
                numbers = {category.name: k for k, category in enumerate(detector.categories)}
                boxes = [
                    Box(d["box_xyxy"], class_color(numbers[d["label"]]), f"{d['label']} {d['score']:.2f}")
                    for d in reversed(result.detections)  # the best on top
                ]
                drawn = draw_boxes(picture, boxes)
                path = wanted.save_images / f"{name}.jpg"
                write_atomically(path, lambda temporary, drawn=drawn: drawn.save(temporary, "JPEG", quality=92))
    if wanted.save_images is not None and found:
        say(f"pictures with boxes: {wanted.save_images}")
    return found, failed


def _show(found: Sequence[Found]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("file", "label"):
        table.add_column(title, overflow="fold")
    for title in ("score", "x0 y0 x1 y1"):
        table.add_column(title, justify="right", overflow="fold")
    for item in found:
        for d in item.detections:
            box = " ".join(f"{value:.0f}" for value in d["box_xyxy"])
            table.add_row(item.file, d["label"], f"{d['score']:.2f}", box)
        if not item.detections:
            table.add_row(item.file, "-", "", "nothing found")
    data.print(table)
