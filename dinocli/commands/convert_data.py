"""`dino convert-data`: write a dataset in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinocore.data.annotations import Annotations, read_annotations
from dinocore.data.formats.export import KINDS, PARTS, write_dataset
from dinocore.data.formats.layout import find_layout
from dinocore.data.holdout import hold_out
from dinocore.errors import ConfigError
from dinocore.system.unfinished import check_fillable, filling
from dinocore.words import counted

from ..completion import choices
from ..console import print_json, say, warn
from ..options import Json, Overrides, ValFraction
from ..progress import WorkProgress


def convert_data(
    folder: Annotated[Path, typer.Argument(metavar="IN", help="Data folder, in any layout that `dino train` takes.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to: new, or empty.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="coco|yolo|voc", help="The format to write.", autocompletion=choices("coco", "yolo", "voc")
        ),
    ],
    link: Annotated[bool, typer.Option("--link", help="Hard-link images instead of copying them.")] = False,
    val_fraction: ValFraction = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Write a dataset as COCO, YOLO or Pascal VOC.

    Example: dino convert-data my-data converted --to yolo
    """
    from dinocore.presets import load_config

    if to not in KINDS:
        raise ConfigError(f"--to {to} is not known; choose {', '.join(KINDS)}")
    check_fillable("OUT", out, PARTS)
    changes = overrides if val_fraction is None else [*overrides, f"data.val_fraction={val_fraction}"]
    config = load_config("tiny", changes).data
    folder = folder.expanduser()
    layout = find_layout(folder, config.follow_symlinks)
    splits: dict[str, tuple[Annotations, str]] = {}
    for name, split in layout.splits().items():
        annotations = read_annotations(split, None, config)  # every split is written with the classes of all splits
        splits[name] = annotations, split.format
        for note in annotations.notes:
            warn(f"{name}: {note}")
    if config.val_fraction and "val" not in splits and "train" in splits:
        train, source = splits["train"]
        held = dict(zip(("train", "val"), hold_out(train, config), strict=True))
        splits |= {name: (part, source) for name, part in held.items()}
    say(f"{folder}: {layout.kind} layout")
    lost = 0
    with filling(out, PARTS), WorkProgress() as progress:
        task = progress.add_task("writing", total=None)
        for written in write_dataset(splits, to, out, link):
            lost = written.lost_crowds
            progress.update(task, completed=written.done, total=written.total)
    if lost:
        warn(f"dropped {counted(lost, 'crowd region')}: YOLO has no crowds")
    counts = {name: len(annotations.image_ids) for name, (annotations, _) in splits.items()}
    if json:
        print_json({"out": str(out), "format": to, "images": counts, "lost_crowds": lost})
    written = ", ".join(f"{counted(count, 'image')} of {name}" for name, count in counts.items())
    say(f"wrote {written} to {out} as {to}")
