"""Write a dataset as COCO, YOLO or Pascal VOC: boxes, classes, crowds and images, but not polygons.

What is written is read back the same: classes are those of all splits together, matched by name; files are named so
that no reader takes them for hidden ones or cuts their names, and labels go where the reader looks for them.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml

from ...errors import EnvironmentFault
from ...system.files import to_json, write_text
from ..annotations import Annotations, as_coco_dict, with_categories
from ..split import Category, clean_name, is_hidden
from .yolo import usual_label_file

ELSEWHERE = "free some disk space, or choose another folder"
KINDS = ("coco", "yolo", "voc")
PARTS = (  # what is written into a folder
    *("annotations", "train2017", "val2017", "test2017"),
    *("images", "labels", "data.yaml"),
    *("ImageSets", "JPEGImages", "Annotations", "labelmap.txt"),
)


class WriteProgress(NamedTuple):
    """One image that was written, of how many; and what could not be said in that format."""

    done: int
    total: int
    lost_crowds: int


class Entry(NamedTuple):
    """An image of a split and its name in the new dataset."""

    split: str
    annotations: Annotations
    index: int
    name: str  # with its suffix; no other has the same without


def write_dataset(
    splits: dict[str, tuple[Annotations, str]], kind: str, out: Path, link: bool
) -> Iterator[WriteProgress]:
    """Write splits, each with the format that it was read from, to the new folder `out`, images first.

    Args:
        link: give images another name on the disk (a hard link) instead of copying them.

    Raises:
        EnvironmentFault: the disk is full or `out` cannot be written.
    """
    splits = _with_all_classes(splits)
    entries = list(_entries({name: annotations for name, (annotations, _) in splits.items()}, kind))
    classes = [c.name for c in next(iter(splits.values()))[0].categories]
    if kind == "voc":  # its lists first: a folder that is interrupted lacks images that they name
        _begin_voc(entries, classes, out)
    folders = {"coco": "{}2017", "yolo": "images/{}", "voc": "JPEGImages"}
    lost = 0
    for done, entry in enumerate(entries, start=1):
        _place(entry.annotations.path(entry.index), out / folders[kind].format(entry.split) / entry.name, link)
        if kind == "yolo":
            lost += _write_labels(entry, out)
        elif kind == "voc":
            _write_xml(entry, out)
        yield WriteProgress(done, len(entries), lost)
    if kind == "coco":
        for name, (annotations, source) in splits.items():
            names = [e.name for e in entries if e.split == name]
            text = to_json(coco_document(annotations, source, names), separators=(",", ":"))
            write_text(out / "annotations" / f"instances_{name}2017.json", text)
    elif kind == "yolo":
        content = {split: f"images/{split}" for split in splits} | {"nc": len(classes), "names": classes}
        write_text(out / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _with_all_classes(splits: dict[str, tuple[Annotations, str]]) -> dict[str, tuple[Annotations, str]]:
    """Every split with the classes of all: those of the first split keep their ids, others get theirs or a free one."""
    known: dict[str, Category] = {}
    taken: set[int] = set()
    for category in (c for annotations, _ in splits.values() for c in annotations.categories):
        if category.name not in known:
            free = category.id if category.id not in taken else max(taken) + 1
            known[category.name] = Category(free, category.name)
            taken.add(free)
    every = list(known.values())
    return {name: (with_categories(annotations, every), source) for name, (annotations, source) in splits.items()}


def coco_document(annotations: Annotations, source: str, names: list[str] | None = None) -> dict[str, Any]:
    """All of it in COCO's structure; YOLO's classes, which begin at 0, get ids from 1."""
    document = as_coco_dict(annotations)
    shift = 1 if source == "yolo" else 0
    for image, name in zip(document["images"], names or _names(annotations), strict=True):
        image["file_name"] = name
    for category in document["categories"]:
        category["id"] += shift
    for row in document["annotations"]:
        row["category_id"] += shift
    return document


def _names(annotations: Annotations) -> list[str]:
    return [os.fsdecode(name) for name in annotations.file_names]


def _entries(splits: dict[str, Annotations], kind: str) -> Iterator[Entry]:
    """Every image; VOC has one folder for all splits, and YOLO and VOC know an image by its name without suffix."""
    taken: set[str] = set()
    for split, annotations in splits.items():
        for index, name in enumerate(_names(annotations)):
            name = _plain(name)
            stem, suffix = os.path.splitext(name.replace("/", "_") if kind == "voc" else name)
            stem = stem if kind == "voc" else stem.removeprefix(f"images/{split}/")
            here = "" if kind == "voc" else f"{split}/"
            free, number = stem, 1
            while here + free in taken:
                free, number = f"{stem}-{split}{number}", number + 1
            taken.add(here + free)
            yield Entry(split, annotations, index, free + suffix)


def _plain(name: str) -> str:
    """A file name that every reader takes: no part hidden, no control characters, no spaces or quotes at its ends."""
    parts = [clean_name(part).strip("\"' ") or "_" for part in name.split("/")]
    *folders, file = [f"_{part}" if is_hidden(part) else part for part in parts]
    stem, suffix = os.path.splitext(file)
    return "/".join([*folders, (stem.rstrip("\"' ") or "_") + suffix])


def _write(path: Path, text: str) -> None:
    """A small file; what makes the folder a dataset is written last, and with care."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be written: {error.strerror or error}", fix=ELSEWHERE) from error


def _place(source: Path, target: Path, link: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.link(os.path.realpath(source), target)
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise EnvironmentFault(f"{target} cannot be written: {error.strerror or error}", fix=ELSEWHERE) from error


def _write_labels(entry: Entry, out: Path) -> int:
    """YOLO's lines, with all digits that a number needs; how many crowds were left out."""
    annotations, rows = entry.annotations, entry.annotations.objects(entry.index)
    size = annotations.sizes[entry.index].astype(np.float64)
    boxes, crowd = annotations.boxes[rows], annotations.crowd[rows]
    written = ~crowd & (annotations.labels[rows] >= 0)
    shares = np.concatenate([(boxes[:, :2] + boxes[:, 2:] / 2) / size, boxes[:, 2:] / size], 1)[written]
    labels = annotations.labels[rows][written].tolist()
    lines = [" ".join(map(repr, [k, *row])) + "\n" for k, row in zip(labels, shares.tolist(), strict=True)]
    _write(usual_label_file(out / "images" / entry.split / entry.name), "".join(lines))
    return int(crowd.sum())


def _write_xml(entry: Entry, out: Path) -> None:
    """VOC's description, its pixels counted from 1; a crowd is `difficult`."""
    annotations = entry.annotations
    width, height = annotations.sizes[entry.index].tolist()
    size = {"width": width, "height": height, "depth": 3}
    root = ElementTree.Element("annotation")
    _fill(root, {"folder": "JPEGImages", "filename": entry.name, "size": size, "segmented": 0})
    rows = annotations.objects(entry.index)
    labels, boxes = annotations.labels[rows].tolist(), annotations.boxes[rows].tolist()
    for label, (x, y, w, h), crowd in zip(labels, boxes, annotations.crowd[rows], strict=True):
        if label < 0:
            continue
        corners = {"xmin": _short(x + 1), "ymin": _short(y + 1), "xmax": _short(x + w), "ymax": _short(y + h)}
        content = {"name": annotations.categories[label].name, "pose": "Unspecified", "truncated": 0}
        _fill(ElementTree.SubElement(root, "object"), content | {"difficult": int(crowd), "bndbox": corners})
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode") + "\n"
    _write(out / "Annotations" / Path(entry.name).with_suffix(".xml"), text)


def _begin_voc(entries: list[Entry], classes: list[str], out: Path) -> None:
    for split in dict.fromkeys(entry.split for entry in entries):
        names = [Path(entry.name).stem for entry in entries if entry.split == split]
        write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    lines = ["# label:color_rgb:parts:actions\n", *(f"{name}:::\n" for name in classes)]
    write_text(out / "labelmap.txt", "".join(lines))


def _fill(element: ElementTree.Element, content: dict[str, Any]) -> None:
    for key, value in content.items():
        child = ElementTree.SubElement(element, key)
        if isinstance(value, dict):
            _fill(child, value)
        else:
            child.text = str(value)


def _short(value: float) -> str:
    return str(int(value)) if value % 1 == 0 else repr(value)
