"""COCO annotations as a few numpy arrays: small, quick to check, and not copied by every worker."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from .images import image_size
from .layout import Split
from .problems import Problems, is_number

MIN_EVIDENCE = 10  # boxes, before a file is said to mean another format


class Category(NamedTuple):
    """A class as the annotations call it."""

    id: int
    name: str


class Annotations(NamedTuple):
    """One split: I pictures and their M objects, sorted by picture."""

    file: Path
    image_root: Path
    categories: list[Category]  # class k of the model is categories[k]
    image_ids: np.ndarray  # (I,) int64
    file_names: np.ndarray  # (I,) fixed-length bytes, UTF-8
    sizes: np.ndarray  # (I, 2) int64, width and height
    starts: np.ndarray  # (I + 1,) int64, objects of picture i are [starts[i], starts[i + 1])
    boxes: np.ndarray  # (M, 4) float64, x y width height in pixels, as written
    labels: np.ndarray  # (M,) int64, index into categories; -1 for a category that the model does not know
    area: np.ndarray  # (M,) float64
    crowd: np.ndarray  # (M,) bool
    notes: list[str]  # what a user should know: objects that training leaves out, unknown classes

    def path(self, index: int) -> Path:
        """The picture's file."""
        return self.image_root / os.fsdecode(self.file_names[index])

    def objects(self, index: int) -> slice:
        """Which rows of boxes, labels, area and crowd belong to a picture."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def trainable(self) -> np.ndarray:
        """Which objects can be learned from, (M,) bool: known, not a crowd, and some of it within the picture."""
        sizes = np.repeat(self.sizes, np.diff(self.starts), axis=0)
        low, high = self.boxes[:, :2].clip(0), (self.boxes[:, :2] + self.boxes[:, 2:]).clip(max=sizes)
        return (self.labels >= 0) & ~self.crowd & ((high - low) > 0).all(1)


def read_annotations(
    split: Split, categories: Sequence[Category] | None = None, max_pixels: int = 10**9
) -> Annotations:
    """Read and check a COCO annotation file.

    Args:
        categories: those of the training annotations, which number the classes; None: this file's own.

    Raises:
        DataError: naming the file, the first offenders and how many there are.
    """
    content = _read_json(split.annotations)
    problems = Problems(split.annotations)
    images = problems.table(content, "images", ("id", "file_name"))
    own = problems.table(content, "categories", ("id", "name"))
    objects = problems.table(content, "annotations", ("image_id", "category_id", "bbox"))
    image_ids = problems.ids(images, "id", "images")
    problems.unique(image_ids, "images")
    own_ids = problems.ids(own, "id", "categories")
    problems.unique(own_ids, "categories")
    names = problems.file_names(images)
    owners = problems.ids(objects, "image_id", "annotations")
    kinds = problems.ids(objects, "category_id", "annotations")
    boxes = problems.boxes(objects)
    problems.known(objects, owners, image_ids, "image_id", "images")
    problems.known(objects, kinds, own_ids, "category_id", "categories")
    problems.stop()

    used = [Category(int(c["id"]), str(c["name"])) for c in own]
    notes: list[str] = []
    if categories is None:
        categories = _without_roots(sorted(used), own, {int(k) for k in kinds}, notes)
    else:
        _compare_categories(split.annotations, categories, used, {int(k) for k in kinds}, notes)
    root = _image_root(split, names)
    order = np.argsort(_positions(owners, image_ids), kind="stable")
    return _with_notes(
        Annotations(
            file=split.annotations,
            image_root=root,
            categories=list(categories),
            image_ids=image_ids,
            file_names=np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
            sizes=_sizes(images, names, root, max_pixels),
            starts=np.concatenate([[0], np.cumsum(np.bincount(_positions(owners, image_ids), minlength=len(images)))]),
            boxes=boxes[order],
            labels=_labels(kinds[order], categories),
            area=np.array([_area(objects[i], boxes[i]) for i in order], dtype=np.float64),
            crowd=np.array([bool(objects[i].get("iscrowd")) for i in order], dtype=bool),
            notes=notes,
        )
    )


def as_coco_dict(annotations: Annotations) -> dict[str, Any]:
    """The annotations in COCO's own structure for pycocotools: complete, ids from 1, unknown classes left out."""
    owners = np.repeat(annotations.image_ids, np.diff(annotations.starts))
    ids = [category.id for category in annotations.categories]
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(owners.tolist(), annotations.labels.tolist(), annotations.boxes.tolist(), annotations.area.tolist(),
               annotations.crowd.astype(int).tolist(), strict=True)  # fmt: skip
    known = [(owner, ids[label], *rest) for owner, label, *rest in rows if label >= 0]
    images = zip(annotations.image_ids.tolist(), annotations.sizes.tolist(), strict=True)
    return {
        "info": {},
        "images": [{"id": i, "width": width, "height": height} for i, (width, height) in images],
        "categories": [category._asdict() for category in annotations.categories],
        "annotations": [{"id": n} | dict(zip(keys, row, strict=True)) for n, row in enumerate(known, start=1)],
    }


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())  # bytes: a byte order mark and UTF-16 are understood
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated") or error.pos >= len(error.doc) - len("-Infinity")
        end = "; the file looks cut off" if cut else ""
        where = f"line {error.lineno}, column {error.colno} of {file.stat().st_size} bytes"
        raise DataError(f"{file} is not valid JSON: {error.msg} at {where}{end}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _without_roots(
    categories: list[Category], rows: Sequence[Mapping[str, Any]], used: set[int], notes: list[str]
) -> list[Category]:
    """Drop what Roboflow adds: a category without objects that is only the heading of others."""
    headings = [row.get("supercategory") for row in rows if row.get("supercategory") != row["name"]]
    roots = [c for c in categories if c.id not in used and c.name in headings]
    if roots:
        notes.append(f"left out as headings without objects: {', '.join(c.name for c in roots)}")
    return [c for c in categories if c not in roots]


def _compare_categories(
    file: Path, known: Sequence[Category], own: Sequence[Category], used: set[int], notes: list[str]
) -> None:
    names = {c.id: c.name for c in known}
    other = [c for c in own if names.get(c.id, c.name) != c.name]
    if other:
        clashes = "; ".join(f"{c.id} is `{c.name}` here and `{names[c.id]}` in training" for c in other[:5])
        raise DataError(f"{file} names {len(other)} classes differently from the training data: {clashes}")
    if extra := [c.name for c in own if c.id not in names and c.id in used]:
        notes.append(f"classes that the model does not know, left out of the evaluation: {', '.join(extra)}")


def _labels(kinds: np.ndarray, categories: Sequence[Category]) -> np.ndarray:
    classes = {category.id: k for k, category in enumerate(categories)}
    return np.array([classes.get(kind, -1) for kind in kinds.tolist()], dtype=np.int64)


def _area(row: Mapping[str, Any], box: np.ndarray) -> float:
    """As written (of the object's outline), or else that of the box."""
    written = row.get("area")
    return float(written) if is_number(written) else float(box[2] * box[3])


def _positions(owners: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """The row of each object's picture."""
    order = np.argsort(image_ids)
    return order[np.searchsorted(image_ids[order], owners)] if len(image_ids) else np.zeros(0, np.int64)


def _image_root(split: Split, names: Sequence[str]) -> Path:
    """The first folder that holds the first pictures; then every picture must be there. No folders: no pictures."""
    if not names or not split.image_roots:
        return split.annotations.parent
    here = [root for root in split.image_roots if any(os.path.isfile(root / name) for name in names[:20])]
    if not here:
        tried = ", ".join(str(root) for root in split.image_roots)
        raise DataError(f"the pictures of {split.annotations}, such as {names[0]}, are in none of {tried}")
    missing = [name for name in names if not os.path.isfile(here[0] / name)]  # False for a name too long
    if missing:
        shown = ", ".join(missing[:5])
        raise DataError(f"{len(missing)} of {len(names)} pictures of {split.annotations} are not in {here[0]}: {shown}")
    return here[0]


def _sizes(images: Sequence[Mapping[str, Any]], names: Sequence[str], root: Path, max_pixels: int) -> np.ndarray:
    """Width and height as written, or else from the file."""
    sizes = []
    for image, name in zip(images, names, strict=True):
        written = (image.get("width"), image.get("height"))
        good = all(isinstance(side, int) and 0 < side < 2**31 for side in written)
        sizes.append(written if good else image_size(root / name, max_pixels))
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _looks_like_corners(annotations: Annotations) -> int:
    """How many boxes reach beyond their picture, if all of them read well as two corners, or else 0."""
    near, far = annotations.boxes[:, :2], annotations.boxes[:, 2:]
    sizes = np.repeat(annotations.sizes, np.diff(annotations.starts), axis=0) + 1  # rounding
    beyond = int((near + far > sizes).any(1).sum())
    as_corners = (far >= near).all() and (far <= sizes).all()
    return beyond if as_corners and beyond > 0.2 * len(near) and len(near) > MIN_EVIDENCE else 0


def _with_notes(annotations: Annotations) -> Annotations:
    """Say what training leaves out; refuse what looks like another box format."""
    no_size = int((annotations.boxes[:, 2:] <= 0).any(1).sum())
    known = (annotations.labels >= 0) & ~annotations.crowd
    lost = int((known & ~annotations.trainable()).sum())
    count = max(1, len(annotations.boxes))
    if no_size > 0.05 * count:
        raise DataError(
            f"{annotations.file}: {no_size} of {count} boxes have no width or height; COCO's `bbox` is "
            "x, y, width, height in pixels, x and y of the top left corner"
        )
    if len(annotations.boxes) and (annotations.boxes.max(1) <= 1.0).mean() > 0.5:
        raise DataError(f"{annotations.file}: most boxes lie within [0, 1]; COCO's `bbox` is in pixels")
    if beyond := _looks_like_corners(annotations):
        raise DataError(
            f"{annotations.file}: {beyond} of {count} boxes reach beyond their picture; were they exported as "
            "x0 y0 x1 y1? COCO's `bbox` is x, y, width, height in pixels"
        )
    if lost:
        annotations.notes.append(f"{lost} of {count} objects have no size or lie outside their picture; not trained on")
    return annotations
