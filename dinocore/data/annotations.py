"""Annotations of any format as a few numpy arrays: small, quick to check, and not copied by every worker."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import DataConfig
from ..error_codes import ERROR, NOTE
from .findings import Findings
from .formats.coco import read_coco
from .formats.csv import read_csv
from .formats.kitti import read_kitti
from .formats.visdrone import read_visdrone
from .formats.voc import read_voc
from .formats.yolo import read_yolo
from .split import Category, RawAnnotations, Split
from .validate import (
    check_boxes,
    clean_names,
    compare_categories,
    drop_orphans,
    known_sizes,
    match_categories,
    merge_names,
    present_files,
    report_alike,
    report_orphans,
    safe_names,
    seen_sides,
    sort_by_file,
    unique_ids,
    without_headings,
)

DEFAULTS = DataConfig()
READERS: dict[str, Callable[[Split, Findings, DataConfig], RawAnnotations]] = {
    "coco": lambda split, findings, config: read_coco(split, findings),
    "yolo": read_yolo,
    "voc": read_voc,
    "csv": lambda split, findings, config: read_csv(split, findings),
    "kitti": lambda split, findings, config: read_kitti(split, findings),
    "visdrone": lambda split, findings, config: read_visdrone(split, findings),
}


class Annotations(NamedTuple):
    """One split: I images by file name and their M objects, sorted by image."""

    file: Path
    image_root: Path
    categories: list[Category]  # class k of the model is categories[k]
    image_ids: np.ndarray  # (I,) int64
    file_names: np.ndarray  # (I,) fixed-length bytes, UTF-8
    sizes: np.ndarray  # (I, 2) int64, width and height
    starts: np.ndarray  # (I + 1,) int64, objects of image i are [starts[i], starts[i + 1])
    boxes: np.ndarray  # (M, 4) float64, x y width height in pixels, as written
    labels: np.ndarray  # (M,) int64, index into categories; -1 for a category that the model does not know
    area: np.ndarray  # (M,) float64
    crowd: np.ndarray  # (M,) bool
    notes: list[str]  # messages for the user: objects not trained on, unknown classes
    merged_ids: tuple[tuple[int, int], ...] = ()  # (id, the category's that it is taken for), where two have one name
    own_categories: tuple[Category, ...] = ()  # of the data, by id, whatever `categories` a model has

    def path(self, index: int) -> Path:
        """The image's file."""
        return self.image_root / os.fsdecode(self.file_names[index])

    def objects(self, index: int) -> slice:
        """The rows of boxes, labels, area and crowd of an image."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def owners(self) -> np.ndarray:
        """The image of each object, (M,)."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts))

    def trainable(self, min_size: float = 0.0) -> np.ndarray:
        """The objects to train on, (M,) bool: of a known class, not a crowd, and large enough within the image."""
        sides = seen_sides(self.boxes, self.sizes[self.owners()])
        return (self.labels >= 0) & ~self.crowd & ((sides > 0) & (sides >= min_size)).all(1)


def read_annotations(
    split: Split, categories: Sequence[Category] | None = None, config: DataConfig = DEFAULTS
) -> Annotations:
    """Read and check the annotations of a split.

    Args:
        categories: those of the training annotations, which number the classes and are matched by name; None: the
            annotations' own.

    Raises:
        DataError: names the file, the first offenders and their number.
    """
    findings = Findings(split.annotations)
    annotations = survey_annotations(split, categories, config, findings)
    findings.stop()
    return annotations


def survey_annotations(
    split: Split, categories: Sequence[Category] | None, config: DataConfig, findings: Findings
) -> Annotations:
    """Like `read_annotations`, but invalid entries become findings and are dropped.

    Raises:
        DataError: nothing usable is left.
    """
    table = unique_ids(READERS[split.format](split, findings, config), findings)
    report_orphans(table, config, findings)
    table, root = present_files(safe_names(table, findings), split, config, findings)
    table = _without_held_out(table, root, split, config, findings)
    table, starts = sort_by_file(drop_orphans(known_sizes(table, root, config, findings)))
    table = clean_names(table, findings)
    unread = Findings(Path())  # what there is to say of these classes is said below
    before, own = table.categories, without_headings(merge_names(table, unread), unread)
    table = merge_names(table, findings) if categories is None else match_categories(table, categories, findings)
    check_boxes(table, root, config, findings)
    used = set(np.unique(table.category_ids).tolist())
    if categories is None:
        categories = without_headings(table, findings)
        report_alike(categories, table.category_ids, findings)
    else:
        compare_categories(categories, table.categories, used, findings)
    classes = {category.id: k for k, category in enumerate(categories)}
    ids = {category.name: category.id for category in categories}
    return Annotations(
        file=split.annotations,
        image_root=root,
        categories=list(categories),
        image_ids=table.image_ids,
        file_names=np.array([os.fsencode(name) for name in table.file_names], dtype=np.bytes_),
        sizes=table.sizes,
        starts=starts,
        boxes=table.boxes,
        labels=np.array([classes.get(kind, -1) for kind in table.category_ids.tolist()], dtype=np.int64),
        area=np.where(np.isnan(table.area), table.boxes[:, 2] * table.boxes[:, 3], table.area),
        crowd=table.crowd,
        notes=[finding.text for finding in findings.found if finding.level != ERROR],
        merged_ids=tuple((c.id, ids[c.name]) for c in before if c.id not in classes and c.name in ids),
        own_categories=tuple(own),
    )


def _without_held_out(
    table: RawAnnotations, root: Path, split: Split, config: DataConfig, findings: Findings
) -> RawAnnotations:
    """Without the images of the split that is held out for validation, unless these are all of them."""
    held_out = split.held_out
    if held_out is None:
        return table
    unread = Findings(held_out.annotations)  # what there is to say of that split is said when it is read
    other = safe_names(READERS[held_out.format](held_out, unread, config), unread)
    other, other_root = present_files(other, held_out, config, unread)
    held = {os.path.normpath(other_root / name) for name in other.file_names}
    keep = np.array([os.path.normpath(root / name) not in held for name in table.file_names], dtype=bool)
    if not keep.any():
        return table
    count = int((~keep).sum())
    what = f"{count} of {len(keep)} names in {split.source.name} are in {held_out.source.name}, too, for validation"
    fix = "to train on other images, list them in a file called train next to these"
    findings.add("DATA-SPLIT", f"{what}, and are not trained on", count=count, level=NOTE, fix=fix)
    return table.images(keep)


def as_coco_dict(annotations: Annotations) -> dict[str, Any]:
    """The annotations in COCO's structure for pycocotools: complete, ids from 1, without unknown classes."""
    owners = annotations.image_ids[annotations.owners()]
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


def with_categories(annotations: Annotations, categories: Sequence[Category]) -> Annotations:
    """The same objects with classes renumbered to match `categories` by name; -1 if there is none."""
    index = {category.name: k for k, category in enumerate(categories)}
    new = np.array([*(index.get(c.name, -1) for c in annotations.categories), -1], dtype=np.int64)  # -1 stays -1
    return annotations._replace(categories=list(categories), labels=new[annotations.labels])


def choose_images(annotations: Annotations, chosen: np.ndarray) -> Annotations:
    """A subset of images, given by their rows in ascending order, with their objects."""
    starts = annotations.starts.tolist()
    rows = [np.arange(starts[i], starts[i + 1]) for i in chosen.tolist()]
    objects = np.concatenate([np.zeros(0, np.int64), *rows])
    return annotations._replace(
        image_ids=annotations.image_ids[chosen], file_names=annotations.file_names[chosen],
        sizes=annotations.sizes[chosen], starts=np.cumsum([0, *map(len, rows)]), boxes=annotations.boxes[objects],
        labels=annotations.labels[objects], area=annotations.area[objects], crowd=annotations.crowd[objects],
    )  # fmt: skip
