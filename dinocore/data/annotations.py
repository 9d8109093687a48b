"""Annotations of any format as a few numpy arrays: compact, fast to check, and shared by all workers."""

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
    complete_sizes,
    drop_duplicate_ids,
    drop_headings,
    drop_orphans,
    drop_unsafe_names,
    find_images,
    match_categories,
    merge_names,
    report_orphans,
    report_similar_names,
    sort_by_file,
    visible_sides,
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
    """A split: I images, sorted by file name, and their M objects, sorted by image."""

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
    merged_ids: tuple[tuple[int, int], ...] = ()  # (id, id that it was merged into) of categories with the same name
    own_categories: tuple[Category, ...] = ()  # those in the data, by id, while `categories` may be a model's

    def path(self, index: int) -> Path:
        """The path of an image."""
        return self.image_root / os.fsdecode(self.file_names[index])

    def objects(self, index: int) -> slice:
        """The rows of boxes, labels, area and crowd of an image."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def owners(self) -> np.ndarray:
        """The image of each object, (M,)."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts))

    def trainable(self, min_size: float = 0.0) -> np.ndarray:
        """Which objects to train on, (M,) bool: those of known classes, no crowds, and large enough in the image."""
        sides = visible_sides(self.boxes, self.sizes[self.owners()])
        return (self.labels >= 0) & ~self.crowd & ((sides > 0) & (sides >= min_size)).all(1)


def read_annotations(
    split: Split, categories: Sequence[Category] | None = None, config: DataConfig = DEFAULTS
) -> Annotations:
    """Read and check the annotations of a split.

    Args:
        categories: the model's or the training split's, which define the class indices; the annotations' own are
            matched to them by name. None: the annotations' own.

    Raises:
        DataError: the annotations have errors. The message has the file, the first examples and their number.
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
    table = drop_duplicate_ids(READERS[split.format](split, findings, config), findings)
    report_orphans(table, config, findings)
    table, root = find_images(drop_unsafe_names(table, findings), split, config, findings)
    table = _without_held_out(table, root, split, config, findings)
    table, starts = sort_by_file(drop_orphans(complete_sizes(table, root, config, findings)))
    table = clean_names(table, findings)
    ignored = Findings(Path())  # findings about these classes are added below
    before, own = table.categories, drop_headings(merge_names(table, ignored), ignored)
    table = merge_names(table, findings) if categories is None else match_categories(table, categories, findings)
    check_boxes(table, root, config, findings)
    used = set(np.unique(table.category_ids).tolist())
    if categories is None:
        categories = drop_headings(table, findings)
        report_similar_names(categories, table.category_ids, findings)
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
    """Drop the images of the split's `held_out` split from the table, unless no image would be left."""
    held_out = split.held_out
    if held_out is None:
        return table
    ignored = Findings(held_out.annotations)  # that split's findings are reported when it is read itself
    other = drop_unsafe_names(READERS[held_out.format](held_out, ignored, config), ignored)
    other, other_root = find_images(other, held_out, config, ignored)
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
    """The annotations as a COCO document for pycocotools: complete, object ids from 1, without unknown classes."""
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
    """The annotations with labels that are indices into `categories`, matched by name; -1 for other classes."""
    index = {category.name: k for k, category in enumerate(categories)}
    # the last entry keeps -1
    new = np.array([*(index.get(c.name, -1) for c in annotations.categories), -1], dtype=np.int64)
    return annotations._replace(categories=list(categories), labels=new[annotations.labels])


def choose_images(annotations: Annotations, chosen: np.ndarray) -> Annotations:
    """The annotations of a subset of images, given by their indices in ascending order."""
    starts = annotations.starts.tolist()
    rows = [np.arange(starts[i], starts[i + 1]) for i in chosen.tolist()]
    objects = np.concatenate([np.zeros(0, np.int64), *rows])
    return annotations._replace(
        image_ids=annotations.image_ids[chosen], file_names=annotations.file_names[chosen],
        sizes=annotations.sizes[chosen], starts=np.cumsum([0, *map(len, rows)]), boxes=annotations.boxes[objects],
        labels=annotations.labels[objects], area=annotations.area[objects], crowd=annotations.crowd[objects],
    )  # fmt: skip
