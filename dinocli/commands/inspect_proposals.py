"""`dino inspect-proposals`: what the first stage chose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from PIL import Image
from rich.markup import escape
from rich.table import Table

from dinocore.data import split as splits
from dinocore.data.annotations import Annotations, read_annotations
from dinocore.data.dataset import open_split
from dinocore.data.images import read_image
from dinocore.data.split import check_split
from dinocore.errors import ConfigError, DataError
from dinocore.system.files import check_file, write_atomically, write_text
from dinocore.words import whole

from ..annotated import open_annotated, warn_of_whole_images
from ..completion import choices
from ..console import fail, print_json, say, stdout
from ..inputs import Input, expand
from ..options import Data, Device, Json, Out, Precision, Split, Weights
from ..progress import WorkProgress
from ..weights_option import open_detector

if TYPE_CHECKING:
    from dinocore.inspect.proposals.figure import Inspected
    from dinocore.inspect.proposals.proposals import ImageObjects, Judged, Proposal, Recall, StageSummary
    from dinocore.predict import Detector


def inspect_proposals(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Images; default: all of the split of --data, or of the weights' own data."),
    ] = None,
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="How many proposals to show and draw.")] = 30,
    view: Annotated[
        str,
        typer.Option(
            help="What --out draws: boxes, scores of all tokens, or what the decoder's layers did.",
            autocompletion=choices("boxes", "scores", "layers"),
        ),
    ] = "boxes",
    color: Annotated[
        str, typer.Option(help="Colour of the boxes: by level or score.", autocompletion=choices("level", "score"))
    ] = "level",
    out: Out = None,
    report: Annotated[Path | None, typer.Option(help="An HTML file with all views, of at most 20 images.")] = None,
    data: Data = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO file with the objects of these images.")] = None,
    split: Split = "val",
    device: Device = "auto",
    amp: Precision = "auto",
    json: Json = False,
) -> None:
    """Show the first stage's scores and boxes, where the decoder moved them, and, with annotations, what they cover.

    Example: dino inspect-proposals img.jpg --out proposals.png
    """
    drawing = DrawOptions(view, top, color, out, report)
    inspect_files(files or [], weights, Truth(data, annotations, split), drawing, device, amp, json)


SOME_FAILED = 7
VIEWS = ("boxes", "scores", "layers")
KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of --out


class Truth(NamedTuple):
    """Where the annotated objects are, if anywhere."""

    data: Path | None
    annotations: Path | None
    split: str


class DrawOptions(NamedTuple):
    """What is drawn, and where to."""

    view: str
    top: int
    color: str
    out: Path | None
    report: Path | None


def inspect_files(
    files: Sequence[str], weights: str | None, truth: Truth, drawing: DrawOptions, device: str, amp: str, json: bool
) -> None:
    """Run the model on every image; show, draw and judge what its first stage chose and its decoder made of it."""
    from dinocore.inspect.proposals.figure import render_proposals
    from dinocore.inspect.proposals.proposals import as_json, average, recalls
    from dinocore.system.device import pick_device

    _check(files, truth, drawing)
    pick_device(device)
    inputs = expand(files)[0] if files else []
    detector, _ = open_detector(weights, device, amp)
    objects = _objects(truth, detector, inputs)
    inputs = inputs or [Input(Path(name), name) for name in objects]
    if drawing.out is not None and len(inputs) > 1:
        raise ConfigError(f"--out {drawing.out} takes one image, but there are {len(inputs)}")

    found, drawn = _propose(detector, inputs, {Path(name).name: part for name, part in objects.items()}, drawing)
    if not found:
        raise DataError(f"none of {len(inputs)} images could be read")
    warn_of_whole_images([item.size for item in found], lambda i: found[i].file, detector.config.data)
    judged = [_judged(item) for item in found if item.objects is not None]
    if objects and not judged:
        raise DataError("none of the images is in the annotations; they are compared by file name")
    rows, steps = recalls(judged), average([journey for item in found for journey in item.journeys])
    if json:
        images = [_as_json(item, drawing.top) for item in found]
        layers = [step._asdict() for step in steps]
        print_json({"pictures": images, "layers": layers, "recall": as_json(rows), "judged": len(judged)})
    else:
        show_all(found, drawing.top, steps, rows)
        if drawing.out is None and drawing.report is None and len(found) == 1:
            say("add --out proposals.png for the image; --view scores and --view layers draw others")
    if drawing.report is not None:
        write_text(drawing.report, render_proposals(found, drawn, rows, drawing.top))
        say(f"wrote {drawing.report}")
    if len(found) < len(inputs):
        fail(f"{len(inputs) - len(found)} of {len(inputs)} images could not be read; the others are done")
        raise typer.Exit(SOME_FAILED)


def _as_json(item: Inspected, top: int) -> dict[str, Any]:
    from dinocore.inspect.proposals.proposals import spread

    followed = [journey._asdict() for journey in item.journeys]
    facts = {"file": item.file, "proposals": [p._asdict() for p in item.proposals[:top]], "layers": followed}
    return facts | {"scores": [spread(scores) for scores in item.maps]}


def _judged(item: Inspected) -> Judged:
    import torch

    from dinocore.inspect.proposals.proposals import Judged

    assert item.objects is not None
    boxes = torch.tensor([p.proposal for p in item.proposals]).view(-1, 4)
    return Judged(boxes, torch.tensor([p.level for p in item.proposals]), item.objects.boxes, item.objects.areas)


def _check(files: Sequence[str], truth: Truth, drawing: DrawOptions) -> None:
    if drawing.color not in ("level", "score"):
        raise ConfigError(f"--color {drawing.color} is not known; choose level or score")
    if drawing.view not in VIEWS:
        raise ConfigError(f"--view {drawing.view} is not known; choose one of {', '.join(VIEWS)}")
    check_split(truth.split)
    if not files and truth.annotations is not None:
        raise ConfigError("--annotations says nothing of where its images are; name them, or give --data instead")
    if drawing.out is not None:
        check_file("--out", drawing.out, *KINDS)
    if drawing.report is not None:
        check_file("--report", drawing.report, ".html")


def _objects(truth: Truth, detector: Detector, inputs: Sequence[Input]) -> dict[str, ImageObjects]:
    """The annotated objects of every image, by file; of the weights' own data where nothing else is named."""
    if truth.annotations is not None:
        found = read_annotations(splits.Split(truth.annotations, []), detector.categories)
    elif truth.data is not None or not inputs:
        found = open_annotated(truth.data, truth.split, detector)
    else:
        return _own_objects(truth.split, detector, inputs)
    return {str(found.path(i)): _of_image(found, i) for i in range(len(found.image_ids))}


def _own_objects(split: str, detector: Detector, inputs: Sequence[Input]) -> dict[str, ImageObjects]:
    """The objects of those images that are the very files of the data that the weights were trained with."""
    if not detector.config.data.path:
        return {}
    try:
        found = open_split(detector.config.data, split, detector.categories)
    except DataError:
        say("no recall: the data of these weights cannot be read; --data or --annotations say where annotations are")
        return {}
    wanted = {item.path.name: item.path.resolve() for item in inputs}
    files = {i: found.path(i) for i in range(len(found.image_ids))}
    own = {i: file for i, file in files.items() if file.name in wanted and file.resolve() in wanted.values()}
    objects = {str(file): _of_image(found, i) for i, file in own.items()}
    if objects:
        say(f"data: {found.file} (what these weights were trained with; --data DIR for other)")
    return objects


def _of_image(annotations: Annotations, index: int) -> ImageObjects:
    import torch

    from dinocore.inspect.proposals.proposals import ImageObjects

    rows = annotations.objects(index)
    kept = annotations.trainable()[rows]
    boxes, labels, areas = (
        torch.from_numpy(x[rows][kept]) for x in (annotations.boxes, annotations.labels, annotations.area)
    )
    return ImageObjects(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float(), labels, areas)


def _propose(
    detector: Detector, inputs: Sequence[Input], objects: dict[str, ImageObjects], drawing: DrawOptions
) -> tuple[list[Inspected], list[list[Image.Image]]]:
    """What the model did with each image, and, for a report, the views of the first few."""
    from dinocore.inspect.proposals.figure import MOST_IMAGES, draw_view

    found: list[Inspected] = []
    drawn: list[list[Image.Image]] = []
    with WorkProgress(hidden=len(inputs) < 2) as progress:
        for item in progress.track(inputs, description="proposing"):
            try:
                image = read_image(item.path, detector.config.data)
            except DataError as error:
                if len(inputs) == 1:
                    raise
                fail(error)
                continue
            found.append(_inspect(detector, image, item.name, objects.get(Path(item.name).name), drawing.top))
            if drawing.report is not None and len(drawn) < MOST_IMAGES:
                drawn.append([draw_view(image, found[-1], view, drawing.top, drawing.color) for view in VIEWS])
            if drawing.out is not None:
                kind = KINDS[drawing.out.suffix.lower()]
                view = draw_view(image, found[-1], drawing.view, drawing.top, drawing.color)
                write_atomically(drawing.out, lambda temporary, view=view, kind=kind: view.save(temporary, kind))
                say(f"wrote {drawing.out}")
    return found, drawn


def _inspect(detector: Detector, image: Image.Image, name: str, objects: ImageObjects | None, top: int) -> Inspected:
    from dinocore.inspect.proposals.figure import Inspected
    from dinocore.inspect.proposals.proposals import journeys, list_proposals, score_maps

    output = detector.forward(detector.batch(image))
    size = (image.height, image.width)
    return Inspected(
        file=name,
        size=size,
        proposals=list_proposals(output, size, detector.categories),
        maps=score_maps(output),
        journeys=journeys(output, size, objects, detector.config.loss, detector.categories, top),
        objects=objects,
    )


MOST_TABLES = 10
SHOWN_IOU = 0.5  # --json has the other


def show_all(found: Sequence[Inspected], top: int, steps: Sequence[StageSummary], rows: Sequence[Recall]) -> None:
    """A table for each image, but not of very many; then what the layers did and what the proposals cover."""
    for item in found if len(found) <= MOST_TABLES else ():
        if len(found) > 1:
            stdout.print(f"[bold]{escape(item.file)}[/]")
        _show(item.proposals[:top])
    _show_steps(steps)
    if rows:
        _show_recall(rows)


def _show(proposals: Sequence[Proposal]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = ("query", "level", "score", "anchor", "proposal", "final box", "moved", "IoU", "final")
    for title in titles:
        table.add_column(title, justify="left" if title == "final" else "right", no_wrap=True)
    for p in proposals:
        boxes = [whole(box) for box in (p.anchor, p.proposal, p.final)]
        numbers = [f"{p.moved:.0f} px", f"{p.iou:.2f}", f"{escape(p.final_label)} {p.final_score:.2f}"]
        table.add_row(str(p.query), str(p.level), f"{p.score:.2f}", *boxes, *numbers)
    stdout.print(table)


def _show_steps(steps: Sequence[StageSummary]) -> None:
    matched = any(step.iou is not None for step in steps)
    title = "boxes of the queries that answer for the objects, mean" if matched else "boxes of the surest queries, mean"
    table = Table("", "moved", *(("IoU", "gain") if matched else ()), box=None, padding=(0, 3, 0, 0))
    stdout.print(title)
    for step in steps:
        moved = "" if step.moved is None else f"{step.moved:.1f} px"
        numbers = ["" if x is None else f"{x:{form}}" for x, form in ((step.iou, ".3f"), (step.gain, "+.3f"))]
        table.add_row(step.name, moved, *(numbers if matched else ()))
    stdout.print(table)


def _show_recall(rows: Sequence[Recall]) -> None:
    counts = [f"@{count}" for count in rows[0].shares]
    title = f"share of objects covered with IoU {SHOWN_IOU:.2f} by an image's first k proposals"
    table = Table("", "objects", *counts, box=None, padding=(0, 3, 0, 0))
    stdout.print(title)
    for row in rows:
        if row.iou == SHOWN_IOU and (row.level is None or row.size is None):
            name = "all" if row.level is row.size is None else row.size or f"by level {row.level}"
            table.add_row(name, str(row.objects), *(f"{share:.3f}" for share in row.shares.values()))
    stdout.print(table)
