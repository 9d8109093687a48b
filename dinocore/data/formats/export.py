"""Write a dataset as COCO, YOLO or Pascal VOC: boxes, classes, crowds and images, but not polygons.

Reading the result back gives the same data: all splits have the same classes, matched by name; file names are chosen so
that no reader treats them as hidden or truncates them, and labels are written where the readers look for them.
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

DISK_FIX = "free some disk space, or choose another folder"
KINDS = ("coco", "yolo", "voc")
# names of the files and folders that are written
PARTS = (
    *("annotations", "train2017", "val2017", "test2017"),
    *("images", "labels", "data.yaml"),
    *("ImageSets", "JPEGImages", "Annotations", "labelmap.txt"),
)


class WriteProgress(NamedTuple):
    """Number of images written so far and in total, and of crowd regions that the format cannot express."""

    done: int
    total: int
    lost_crowds: int


class Entry(NamedTuple):
    """An image of a split and its file name in the new dataset."""

    split: str
    annotations: Annotations
    index: int
    name: str  # unique even without its suffix


def write_dataset(
    splits: dict[str, tuple[Annotations, str]], kind: str, out: Path, link: bool
) -> Iterator[WriteProgress]:
    """Write splits, each with the format that it was read from, to the new folder `out`, images first.

    Args:
        link: create hard links to the images instead of copying them.

    Raises:
        EnvironmentFault: the disk is full or `out` cannot be written.
    """
    splits = _with_all_classes(splits)
    entries = list(_entries({name: annotations for name, (annotations, _) in splits.items()}, kind))
    classes = [c.name for c in next(iter(splits.values()))[0].categories]
    # VOC's lists are written first: if the command is interrupted, images that they list are missing
    if kind == "voc":
        _write_voc_lists(entries, classes, out)
    folders = {"coco": "{}2017", "yolo": "images/{}", "voc": "JPEGImages"}
    lost = 0
    for done, entry in enumerate(entries, start=1):
        _copy_or_link(entry.annotations.path(entry.index), out / folders[kind].format(entry.split) / entry.name, link)
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
    """Give every split the classes of all splits; a class keeps its id unless an earlier class has the same id."""
    known: dict[str, Category] = {}
    taken: set[int] = set()
    for category in (c for annotations, _ in splits.values() for c in annotations.categories):
        if category.name not in known:
            free = category.id if category.id not in taken else max(taken) + 1
            known[category.name] = Category(free, category.name)
            taken.add(free)
    categories = list(known.values())
    return {name: (with_categories(annotations, categories), source) for name, (annotations, source) in splits.items()}


def coco_document(annotations: Annotations, source: str, names: list[str] | None = None) -> dict[str, Any]:
    """The annotations as a COCO document. Ids of YOLO's classes, which start at 0, are raised by 1."""
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
    """All images with unique new names.

    Names must be unique without their suffixes, by which YOLO and VOC match labels to images; in VOC, which has one
    folder for all splits, among all images, otherwise within a split.
    """
    taken: set[str] = set()
    for split, annotations in splits.items():
        for index, name in enumerate(_names(annotations)):
            name = _portable_name(name)
            stem, suffix = os.path.splitext(name.replace("/", "_") if kind == "voc" else name)
            stem = stem if kind == "voc" else stem.removeprefix(f"images/{split}/")
            prefix = "" if kind == "voc" else f"{split}/"
            unique, number = stem, 1
            while prefix + unique in taken:
                unique, number = f"{stem}-{split}{number}", number + 1
            taken.add(prefix + unique)
            yield Entry(split, annotations, index, unique + suffix)


def _portable_name(name: str) -> str:
    """A file name that every reader accepts: without hidden parts, control characters, and outer spaces or quotes."""
    parts = [clean_name(part).strip("\"' ") or "_" for part in name.split("/")]
    *folders, file = [f"_{part}" if is_hidden(part) else part for part in parts]
    stem, suffix = os.path.splitext(file)
    return "/".join([*folders, (stem.rstrip("\"' ") or "_") + suffix])


def _write(path: Path, text: str) -> None:
    """Write a small file, not atomically: a folder counts as a dataset only once its last files are written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be written: {error.strerror or error}", fix=DISK_FIX) from error


def _copy_or_link(source: Path, target: Path, link: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.link(os.path.realpath(source), target)
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise EnvironmentFault(f"{target} cannot be written: {error.strerror or error}", fix=DISK_FIX) from error


def _write_labels(entry: Entry, out: Path) -> int:
    """Write a YOLO label file, in full precision.

    Returns:
        the number of crowd regions, which YOLO cannot express and which are skipped.
    """
    annotations, rows = entry.annotations, entry.annotations.objects(entry.index)
    size = annotations.sizes[entry.index].astype(np.float64)
    boxes, crowd = annotations.boxes[rows], annotations.crowd[rows]
    keep = ~crowd & (annotations.labels[rows] >= 0)
    cxcywh = np.concatenate([(boxes[:, :2] + boxes[:, 2:] / 2) / size, boxes[:, 2:] / size], 1)[keep]
    labels = annotations.labels[rows][keep].tolist()
    lines = [" ".join(map(repr, [k, *row])) + "\n" for k, row in zip(labels, cxcywh.tolist(), strict=True)]
    _write(usual_label_file(out / "images" / entry.split / entry.name), "".join(lines))
    return int(crowd.sum())


def _write_xml(entry: Entry, out: Path) -> None:
    """Write a VOC XML file, with pixels counted from 1; crowd regions are marked `difficult`."""
    annotations = entry.annotations
    width, height = annotations.sizes[entry.index].tolist()
    size = {"width": width, "height": height, "depth": 3}
    root = ElementTree.Element("annotation")
    _add_children(root, {"folder": "JPEGImages", "filename": entry.name, "size": size, "segmented": 0})
    rows = annotations.objects(entry.index)
    labels, boxes = annotations.labels[rows].tolist(), annotations.boxes[rows].tolist()
    for label, (x, y, w, h), crowd in zip(labels, boxes, annotations.crowd[rows], strict=True):
        if label < 0:
            continue
        corners = {
            "xmin": _shortest(x + 1),
            "ymin": _shortest(y + 1),
            "xmax": _shortest(x + w),
            "ymax": _shortest(y + h),
        }
        content = {"name": annotations.categories[label].name, "pose": "Unspecified", "truncated": 0}
        _add_children(ElementTree.SubElement(root, "object"), content | {"difficult": int(crowd), "bndbox": corners})
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode") + "\n"
    _write(out / "Annotations" / Path(entry.name).with_suffix(".xml"), text)


def _write_voc_lists(entries: list[Entry], classes: list[str], out: Path) -> None:
    for split in dict.fromkeys(entry.split for entry in entries):
        names = [Path(entry.name).stem for entry in entries if entry.split == split]
        write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    lines = ["# label:color_rgb:parts:actions\n", *(f"{name}:::\n" for name in classes)]
    write_text(out / "labelmap.txt", "".join(lines))


def _add_children(element: ElementTree.Element, content: dict[str, Any]) -> None:
    for key, value in content.items():
        child = ElementTree.SubElement(element, key)
        if isinstance(value, dict):
            _add_children(child, value)
        else:
            child.text = str(value)


def _shortest(value: float) -> str:
    return str(int(value)) if value % 1 == 0 else repr(value)
