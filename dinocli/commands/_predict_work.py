"""What `dino predict` does: every picture on its own, so that a bad one costs only itself."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import typer
from PIL.Image import Image
from rich.progress import Progress
from rich.table import Table

from dinocore.data.images import read_image
from dinocore.detections_io import Found, as_found, check_out, read_found, unlike, write_found
from dinocore.draw.boxes import Box, class_color, draw_boxes
from dinocore.errors import ConfigError, DataError, Interrupted
from dinocore.predict import Detector
from dinocore.system.device import pick_device, pick_precision
from dinocore.system.files import check_writable, write_atomically
from dinocore.words import counted

from ..console import data, fail, print_json, say, warn_of_letters, words
from ..inputs import Input, expand
from ..signals import ending_early
from ..weights_option import open_detector

SOME_FAILED = 7
WRITE_EVERY = 30  # seconds


class Wanted(NamedTuple):
    """What is asked for."""

    out: Path | None
    format: str
    save_images: Path | None
    threshold: float
    max_dets: int
    resume: bool
    json: bool


def predict_files(files: Sequence[str], wanted: Wanted, weights: str | None, device: str, amp: str) -> None:
    """Detect in every picture; write, draw and show what was found.

    Raises:
        DataError: there is no picture, or none of them can be read.
        Interrupted: a signal came; what was found so far is written.
        typer.Exit: with code 7 if only some could be read.
    """
    wanted = _checked(wanted)
    pick_precision(amp, pick_device(device))
    inputs, skipped = expand(files)
    if skipped:
        say(f"left out, by their names no pictures: {counted(skipped, 'file')}")
    if not any(item.path.exists() for item in inputs):
        raise DataError(f"there is no picture {inputs[0].name}", code="DATA-IMAGE-MISSING", where=inputs[0].name,
                        fix="give a picture, a folder, or a glob in quotes")  # fmt: skip
    before = _before(wanted, inputs)
    detector, _ = open_detector(weights, device, amp)
    limits = detector.config.eval.model_copy(update={"max_dets": wanted.max_dets})
    detector.config = detector.config.model_copy(update={"eval": limits})

    found, failed = _detect_or_keep(detector, inputs, before, wanted)
    if not found:
        raise _none_left(len(inputs), failed[0])
    if wanted.out is not None:
        write_found(found, detector.categories, wanted.format, wanted.out)
        count = counted(sum(len(item.detections) for item in found), "detection")
        say(f"{count} in {counted(len(found), 'picture')}: {wanted.out}")
    if wanted.json:
        print_json([item._asdict() for item in found])
    elif wanted.out is None:
        _show(found)
    if failed:
        fail(f"{len(failed)} of {len(inputs)} pictures could not be read; the others are done")
        raise typer.Exit(SOME_FAILED)


def _none_left(count: int, first: DataError) -> DataError:
    return first if count == 1 else DataError(f"none of {count} pictures could be read", fix="see what is said of each")


def _checked(wanted: Wanted) -> Wanted:
    """The same with its format, if it can be done."""
    if wanted.format == "auto":
        wanted = wanted._replace(format="csv" if wanted.out and wanted.out.suffix.lower() == ".csv" else "json")
    check_out(wanted.out or Path("boxes"), wanted.format)
    if wanted.resume and (wanted.out is None or wanted.format != "json"):
        raise ConfigError("--resume goes on with the file of --out in --format json; name it, or leave --resume out")
    if wanted.save_images is not None and wanted.save_images.is_file():
        raise ConfigError(f"--save-images {wanted.save_images} is a file; give a folder")
    folders = [wanted.out.parent if wanted.out else None, wanted.save_images]
    for folder in (folder for folder in folders if folder is not None):
        check_writable(folder)
    return wanted


def _before(wanted: Wanted, inputs: Sequence[Input]) -> list[Found]:
    """What an earlier command found of these pictures, with --resume."""
    if not wanted.resume or wanted.out is None or not wanted.out.exists():
        return []
    names = {item.name for item in inputs}
    before = [item for item in read_found(wanted.out) if item.file in names]
    say(f"{wanted.out} has {len(before)} of {len(inputs)} pictures; the others are looked at")
    return before


def _detect_or_keep(
    detector: Detector, inputs: Sequence[Input], before: Sequence[Found], wanted: Wanted
) -> tuple[list[Found], list[DataError]]:
    """All that is found, in the order of the inputs, and why pictures could not be read.

    It is written now and then, and when a signal comes.
    """
    found, failed = {item.file: item for item in before}, []
    stems = unlike([Path(item.name).stem if item.name != "-" else "stdin" for item in inputs])
    todo = {item: stem for item, stem in zip(inputs, stems, strict=True) if item.name not in found}
    written = time.monotonic()
    with ending_early() as ended:
        for result in _detect(detector, todo, wanted):
            if isinstance(result, DataError):
                failed.append(result)
            else:
                found[result.file] = result
            if wanted.out is not None and (ended() or time.monotonic() - written > WRITE_EVERY):
                write_found(list(found.values()), detector.categories, wanted.format, wanted.out)
                written = time.monotonic()
            if ended():
                raise Interrupted(_so_far(len(found), len(inputs), wanted), ended())
    return [found[item.name] for item in inputs if item.name in found], failed


def _so_far(done: int, count: int, wanted: Wanted) -> str:
    kept = f", which {wanted.out} has" if wanted.out else ""
    advice = "the same command with --resume looks at the others" if kept and wanted.format == "json" else ""
    return f"interrupted after {done} of {count} pictures{kept}" + (f"; {advice}" if advice else "")


def _detect(detector: Detector, inputs: Mapping[Input, str], wanted: Wanted) -> Iterator[Found | DataError]:
    """What was found in each picture, or why it could not be read; drawn, under its name, where that is asked for."""
    drawn = 0
    with Progress(console=words, disable=not words.is_terminal or len(inputs) < 2, transient=True) as progress:
        for item in progress.track(inputs, description="predicting"):
            try:
                picture = read_image(item.path, detector.config.data)
            except DataError as error:
                if len(inputs) > 1:
                    fail(error)
                yield error
                continue
            result = as_found(
                item.name, (picture.height, picture.width), detector(picture), detector.categories, wanted.threshold
            )
            if wanted.save_images is not None:
                _draw(picture, result, detector, wanted.save_images / f"{inputs[item]}.jpg")
                drawn += 1
            yield result
    if drawn:
        say(f"pictures with boxes: {wanted.save_images}")
        warn_of_letters(category.name for category in detector.categories)


def _draw(picture: Image, found: Found, detector: Detector, path: Path) -> None:
    numbers = {category.name: k for k, category in enumerate(detector.categories)}
    boxes = [
        Box(d["box_xyxy"], class_color(numbers[d["label"]]), f"{d['label']} {d['score']:.2f}")
        for d in reversed(found.detections)  # the best on top
    ]
    drawn = draw_boxes(picture, boxes)
    write_atomically(path, lambda temporary: drawn.save(temporary, "JPEG", quality=92))


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
