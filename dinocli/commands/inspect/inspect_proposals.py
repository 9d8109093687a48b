"""`dino inspect-proposals`: show the first stage's proposals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image
from rich.markup import escape

from dinocore.config import DataConfig
from dinocore.data import split as splits
from dinocore.data.annotations import read_annotations
from dinocore.data.dataset import open_split
from dinocore.data.images import read_image
from dinocore.errors import ConfigError, DataError
from dinocore.system.files import write_text
from dinocore.words import whole

from ...annotated import open_annotated, warn_of_whole_images
from ...completion import choices
from ...console import fail, print_json, say, stdout
from ...inputs import Input, check_header, expand
from ...options import Data, Device, Json, Out, Precision, Split, Weights
from ...outputs import check_outputs, print_table, write_image
from ...progress import WorkProgress
from ...weights_option import open_detector

if TYPE_CHECKING:
    from dinocore.inspect.proposals.proposals import ImageObjects, Inspected, Recall, StageSummary
    from dinocore.predict import Detector

SOME_FAILED = 7
VIEWS, COLORS = ("boxes", "scores", "layers"), ("level", "score")
MAX_TABLES = 10
SHOWN_IOU = 0.5  # --json also has the other thresholds


def inspect_proposals(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES", help="Images; default: the whole split of --data, or of the weights' own data."
        ),
    ] = None,
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="Number of proposals to show and draw.")] = 30,
    view: Annotated[
        str,
        typer.Option(
            help="What --out draws: boxes, scores (of all tokens), or layers (what each decoder layer did).",
            autocompletion=choices(*VIEWS),
        ),
    ] = "boxes",
    color: Annotated[
        str, typer.Option(help="Colour boxes by level or by score.", autocompletion=choices(*COLORS))
    ] = "level",
    out: Out = None,
    report: Annotated[Path | None, typer.Option(help="An HTML file with all views of up to 20 images.")] = None,
    data: Data = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO file with the objects of these images.")] = None,
    split: Split = "val",
    device: Device = "auto",
    amp: Precision = "auto",
    json: Json = False,
) -> None:
    """Show the first stage's scores and boxes, where the decoder moves them, and, with annotations, their recall.

    Example: dino inspect-proposals img.jpg --out proposals.png
    """
    _check(files or [], annotations, split, view, color)
    check_outputs(out, report, ".png", ".jpg", ".jpeg", ".webp")
    check_header(files or [])
    from dinocore.inspect.proposals.figure import MAX_IMAGES, draw_view, render_proposals
    from dinocore.inspect.proposals.proposals import average, inspect_image, recalls
    from dinocore.system.device import pick_device

    pick_device(device)
    inputs = expand(files)[0] if files else []
    detector, _ = open_detector(weights, device, amp)
    objects = _objects(data, annotations, split, detector, inputs)
    inputs = inputs or [Input(Path(name), name) for name in objects]
    if out is not None and len(inputs) > 1:
        raise ConfigError(f"--out {out} takes one image, but there are {len(inputs)}")
    by_name = {Path(name).name: part for name, part in objects.items()}

    found: list[Inspected] = []
    drawn: list[list[Image.Image]] = []  # all views of the first few images, for the report
    for item, image in _images(inputs, detector.config.data):
        one = inspect_image(detector, image, item.name, by_name.get(Path(item.name).name), top)
        found.append(one)
        if report is not None and len(drawn) < MAX_IMAGES:
            drawn.append([draw_view(image, one, name, top, color) for name in VIEWS])
        if out is not None:
            write_image(out, draw_view(image, one, view, top, color))
            say(f"wrote {out}")
    warn_of_whole_images([item.size for item in found], lambda i: found[i].file, detector.config.data)
    annotated = sum(item.objects is not None for item in found)
    if objects and not annotated:
        raise DataError("none of the images is in the annotations; images are matched by file name")
    rows, steps = recalls(found), average([journey for item in found for journey in item.journeys])
    if json:
        answer = {"pictures": [item.as_dict(top) for item in found], "layers": [step._asdict() for step in steps]}
        print_json(answer | {"recall": [row._asdict() for row in rows], "judged": annotated})
    else:
        _show(found, top, steps, rows)
        if not (out or report) and len(found) == 1:
            say("add --out proposals.png for the image; --view scores and --view layers draw others")
    if report is not None:
        write_text(report, render_proposals(found, drawn, rows, top))
        say(f"wrote {report}")
    if len(found) < len(inputs):
        fail(f"{len(inputs) - len(found)} of {len(inputs)} images could not be read; the others were processed")
        raise typer.Exit(SOME_FAILED)


def _check(files: Sequence[str], annotations: Path | None, split: str, view: str, color: str) -> None:
    if color not in COLORS:
        raise ConfigError(f"--color {color} is not known; choose level or score")
    if view not in VIEWS:
        raise ConfigError(f"--view {view} is not known; choose one of {', '.join(VIEWS)}")
    splits.check_split(split)
    if not files and annotations is not None:
        raise ConfigError(
            "--annotations does not say where its images are; give the images, too, or use --data instead"
        )


def _objects(
    data: Path | None, annotations: Path | None, split: str, detector: Detector, inputs: Sequence[Input]
) -> dict[str, ImageObjects]:
    """The annotated objects of each image, by file; by default from the weights' training data."""
    from dinocore.inspect.proposals.proposals import objects_of

    settings, own = detector.config.data, False
    if annotations is not None:
        found = read_annotations(splits.Split(annotations, []), detector.categories)
    elif data is not None or not inputs:
        found = open_annotated(data, split, detector)
    elif not settings.path:
        return {}
    else:
        try:
            found, own = open_split(settings, split, detector.categories), True
        except DataError:
            say("no recall: the data of these weights cannot be read; give --data or --annotations")
            return {}
    files = {i: found.path(i) for i in range(len(found.image_ids))}
    if own:  # only images that are files of this dataset
        given = {item.path.name: item.path.resolve() for item in inputs}
        files = {i: file for i, file in files.items() if file.name in given and file.resolve() in given.values()}
        if files:
            say(f"data: {found.file} (the data these weights were trained with; --data DIR for other)")
    return {str(file): objects_of(found, i) for i, file in files.items()}


def _images(inputs: Sequence[Input], config: DataConfig) -> Iterator[tuple[Input, Image.Image]]:
    """Read the images; unreadable ones are reported if there are several.

    Raises:
        DataError: none can be read.
    """
    failed = 0
    with WorkProgress(hidden=len(inputs) < 2) as progress:
        for item in progress.track(inputs, description="proposing"):
            try:
                yield item, read_image(item.path, config)
            except DataError as error:
                if len(inputs) == 1:
                    raise
                fail(error)
                failed += 1
    if failed == len(inputs):
        raise DataError(f"none of {len(inputs)} images could be read")


def _show(found: Sequence[Inspected], top: int, steps: Sequence[StageSummary], rows: Sequence[Recall]) -> None:
    """Print a table per image, unless there are many; then the changes by decoder layer and the proposals' recall."""
    for item in found if len(found) <= MAX_TABLES else ():
        if len(found) > 1:
            stdout.print(f"[bold]{escape(item.file)}[/]")
        lines = [
            [p.query, p.level, p.score, whole(p.anchor), whole(p.proposal), whole(p.final),
             f"{p.moved:.0f} px", p.iou, f"{p.final_label} {p.final_score:.2f}"]
            for p in item.proposals[:top]
        ]  # fmt: skip
        titles = ("query", "level", "score", "anchor", "proposal", "final box", "moved", "IoU", "final")
        print_table(titles, lines, left=("final",))
    matched = any(step.iou is not None for step in steps)
    which = "queries matched to objects" if matched else "surest queries"
    stdout.print(f"boxes of the {which}, mean")
    titles = ("", "moved", *(("IoU", "gain") if matched else ()))
    lines = [
        [step.name, *(None if x is None else f"{x:{form}}{unit}" for x, form, unit in
                      ((step.moved, ".1f", " px"), (step.iou, ".3f", ""), (step.gain, "+.3f", "")))][: len(titles)]
        for step in steps
    ]  # fmt: skip
    print_table(titles, lines, titles, gap=3)
    if rows:
        shown = [row for row in rows if row.iou == SHOWN_IOU and (row.level is None or row.size is None)]
        lines = [
            ["all" if row.level is row.size is None else row.size or f"by level {row.level}", row.objects,
             *(f"{share:.3f}" for share in row.shares.values())]
            for row in shown
        ]  # fmt: skip
        titles = ("", "objects", *(f"@{count}" for count in rows[0].shares))
        stdout.print(f"fraction of objects covered with IoU {SHOWN_IOU:.2f} by an image's first k proposals")
        print_table(titles, lines, titles, gap=3)
