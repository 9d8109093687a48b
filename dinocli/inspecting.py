"""What `dino inspect-proposals` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from dinocore.data.coco import Annotations, read_annotations
from dinocore.data.dataset import open_split
from dinocore.data.images import read_image
from dinocore.data.layout import Split
from dinocore.device import pick_device
from dinocore.errors import ConfigError, DataError
from dinocore.files import write_atomically
from dinocore.predict import Detector
from dinocore.view.proposals import Proposal, draw_proposals, list_proposals, recall

from .console import data, fail, print_json, say, words
from .detector import open_detector
from .inputs import Input, expand

SOME_FAILED = 7
MOST_TABLES = 10


class Truth(NamedTuple):
    """Where the annotated objects are, if anywhere."""

    data: Path | None
    annotations: Path | None
    split: str


def inspect_files(
    files: Sequence[str], weights: str | None, truth: Truth, top: int, color: str, out: Path | None,
    device: str, amp: str, json: bool,
) -> None:  # fmt: skip
    """Run the model on every picture; show, draw and judge what its first stage chose."""
    _check(files, truth, color, out)
    pick_device(device)
    inputs = expand(files)[0] if files else []
    detector, _ = open_detector(weights, device, amp)
    objects = _objects(truth, detector)
    inputs = inputs or [Input(Path(name), name) for name in objects]
    if out is not None and len(inputs) > 1:
        raise ConfigError(f"--out {out} takes one picture, but there are {len(inputs)}")

    found = _propose(detector, inputs, top, color, out)
    if not found:
        raise DataError(f"none of {len(inputs)} pictures could be read")
    covered, judged = _judge(found, objects)
    if json:
        pictures = [{"file": name, "proposals": [p._asdict() for p in rows[:top]]} for name, rows in found.items()]
        print_json({"pictures": pictures, "recall": covered, "judged": judged})
    else:
        _show_all(found, top)
        if covered:
            _show_recall(covered, judged)
        if out is None and len(found) == 1:
            say("add --out proposals.png for the picture")
    if len(found) < len(inputs):
        fail(f"{len(inputs) - len(found)} of {len(inputs)} pictures could not be read; the others are done")
        raise typer.Exit(SOME_FAILED)


def _show_all(found: dict[str, list[Proposal]], top: int) -> None:
    """A table for each picture; of more than a few only the recall is shown."""
    for name, rows in found.items() if len(found) <= MOST_TABLES else ():
        if len(found) > 1:
            data.print(f"[bold]{escape(name)}[/]")
        _show(rows[:top])


def _check(files: Sequence[str], truth: Truth, color: str, out: Path | None) -> None:
    if color not in ("level", "score"):
        raise ConfigError(f"--color {color} is not known; choose level or score")
    if truth.split not in ("val", "train"):
        raise ConfigError(f"there is no split `{truth.split}`; choose val or train")
    if not files and truth.data is None:
        raise ConfigError("name a picture, such as: dino inspect-proposals img.jpg; or a data set with --data")
    if out is not None:
        if out.is_dir():
            raise ConfigError(f"--out {out} is a folder; give a file, such as {out / 'proposals.png'}")
        _kind(out)


def _kind(out: Path) -> str:
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if out.suffix.lower() not in kinds:
        raise ConfigError(f"--out {out} must end in one of {', '.join(kinds)}")
    return kinds[out.suffix.lower()]


def _objects(truth: Truth, detector: Detector) -> dict[str, Tensor]:
    """Annotated boxes of every picture, (T, 4) x0 y0 x1 y1 in pixels, by file."""
    if truth.annotations is not None:
        found = read_annotations(Split(truth.annotations, []), detector.categories)
    elif truth.data is not None:
        settings = detector.config.data.model_copy(update={"path": str(truth.data.expanduser().absolute())})
        found = open_split(settings, truth.split, detector.categories)
    else:
        return {}
    return {str(found.path(i)): _boxes(found, i) for i in range(len(found.image_ids))}


def _propose(
    detector: Detector, inputs: Sequence[Input], top: int, color: str, out: Path | None
) -> dict[str, list[Proposal]]:
    """What the first stage chose, by picture; the first `top` are drawn to `out`, if that is given."""
    found: dict[str, list[Proposal]] = {}
    with Progress(console=words, disable=not words.is_terminal or len(inputs) < 2, transient=True) as progress:
        for item in progress.track(inputs, description="proposing"):
            try:
                picture = read_image(item.path, detector.config.data)
            except DataError as error:
                if len(inputs) == 1:
                    raise
                fail(error)
                continue
            output = detector.forward(detector.batch(picture))
            found[item.name] = list_proposals(output, (picture.height, picture.width), detector.categories)
            if out is not None:
                drawn = draw_proposals(picture, found[item.name][:top], color)
                write_atomically(out, lambda temporary, drawn=drawn: drawn.save(temporary, _kind(out)))
                say(f"picture: {out}")
    return found


def _judge(found: dict[str, list[Proposal]], objects: dict[str, Tensor]) -> tuple[dict[str, float], int]:
    """How many of the annotated objects are covered, and in how many pictures; these are compared by file name."""
    by_name = {Path(key).name: boxes for key, boxes in objects.items()}
    judged = [name for name in found if Path(name).name in by_name]
    if objects and not judged:
        raise DataError("none of the pictures is in the annotations; they are compared by file name")
    covered = recall(
        [torch.tensor([p.proposal for p in found[name]]) for name in judged],
        [by_name[Path(name).name] for name in judged],
    )
    return covered, len(judged)


def _boxes(annotations: Annotations, index: int) -> Tensor:
    rows = annotations.objects(index)
    boxes = torch.from_numpy(annotations.boxes[rows][annotations.trainable()[rows]]).float()
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def _show(proposals: Sequence[Proposal]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = ("#", "level", "score", "anchor", "proposal", "final box", "moved", "IoU", "final")
    for title in titles:
        table.add_column(title, justify="left" if title == "final" else "right", no_wrap=True)
    for p in proposals:
        boxes = [" ".join(f"{v:.0f}" for v in box) for box in (p.anchor, p.proposal, p.final)]
        numbers = [f"{p.moved:.0f} px", f"{p.iou:.2f}", f"{p.final_label} {p.final_score:.2f}"]
        table.add_row(str(p.rank), str(p.level), f"{p.score:.2f}", *boxes, *numbers)
    data.print(table)


def _show_recall(covered: dict[str, float], pictures: int) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0), title=f"objects covered, {pictures} pictures", title_justify="left")
    table.add_column("")
    table.add_column("share", justify="right")
    for name, value in covered.items():
        table.add_row(name, f"{value:.3f}")
    data.print(table)
