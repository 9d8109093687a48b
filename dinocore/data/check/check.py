"""Check a dataset before training, as `dino check-data` does: annotations, images, and how they suit the model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...config import Config, DataConfig
from ...error_codes import CODES, ERROR, NOTE
from ...errors import DataError
from ...words import counted
from ..annotations import Annotations, survey_annotations
from ..findings import Finding, Findings
from ..formats.layout import find_layout
from ..holdout import hold_out
from ..split import Category, Layout, Split
from .contents import NO_OBJECTS, check_contents, check_unlisted
from .duplicates import SplitImage, check_duplicates, near_pairs, same_files
from .fitness import check_fitness
from .scan import ImageInfo, check_images, scan_images
from .statistics import statistics

HOLD_OUT = "add one, or hold out some of the training images with --val-fraction 0.2, also in dino train"


class CheckedSplit(NamedTuple):
    """The findings and statistics of one split."""

    split: Split
    annotations: Annotations | None  # None: cannot be read at all
    findings: Findings
    numbers: dict[str, Any]  # see `statistics`


class Checked(NamedTuple):
    """The findings and statistics of a dataset."""

    folder: Path
    layout: Layout
    decoded: bool
    splits: dict[str, CheckedSplit]
    between: Findings  # about several splits, such as duplicate images
    config: DataConfig  # the settings with which images were read

    def findings(self) -> list[tuple[str, Finding]]:
        """All findings, errors first, each with the name of its split or an empty text."""
        parts = {name: part.findings for name, part in self.splits.items()} | {"": self.between}
        found = [(name, finding) for name, part in parts.items() for finding in part.found]
        order = ["error", "warning", "note"]
        return sorted(found, key=lambda pair: order.index(pair[1].level))

    def counts(self) -> dict[str, int]:
        """The number of findings of each level."""
        levels = [finding.level for _, finding in self.findings()]
        return {f"{level}s": levels.count(level) for level in ("error", "warning", "note")}

    def as_dict(self) -> dict[str, Any]:
        """The results for JSON."""
        return {
            "folder": str(self.folder),
            "layout": self.layout.kind,
            "decoded": self.decoded,
            **self.counts(),
            "findings": [{"split": name or None} | finding.as_dict() for name, finding in self.findings()],
            "splits": {
                name: {"annotations": str(part.split.annotations)} | part.numbers for name, part in self.splits.items()
            },
        }


class ScanProgress(NamedTuple):
    """The number of images scanned so far in a split."""

    split: str
    done: int
    total: int


def check_data(folder: Path, config: Config, decode: bool) -> Iterator[ScanProgress | Checked]:
    """Check annotations, images, and how they suit the model.

    Yields:
        progress, and finally the result.

    Raises:
        DataError: no annotations are found.
    """
    layout = find_layout(folder, config.data.follow_symlinks)
    splits = _survey(layout, config)
    infos: dict[str, list[ImageInfo]] = {}
    for name, part in splits.items():
        if part.annotations is None:
            continue
        infos[name] = []
        for info in scan_images(part.annotations, config.data, decode):
            infos[name].append(info)
            yield ScanProgress(name, len(infos[name]), len(part.annotations.image_ids))
        check_images(part.annotations, infos[name], part.findings)
    between = Findings(folder)
    held_out = config.data.val_fraction and layout.val is None and "val" in splits
    if held_out:
        what = f"no validation split; holding out {config.data.val_fraction:.0%} of the images for it"
        between.add("DATA-SPLIT", what, count=1, level=NOTE)
    elif layout.gap:
        between.add("DATA-SPLIT", layout.gap, count=1, fix=HOLD_OUT if layout.trainable else "")
    _compare(splits, infos, between)
    yield Checked(folder, layout, decode, splits, between, config.data)


def _survey(layout: Layout, config: Config) -> dict[str, CheckedSplit]:
    """Check the annotations of all splits; with `data.val_fraction`, also split off the held-out images."""
    categories: list[Category] | None = None
    splits = {}
    for name, split in layout.splits().items():
        findings, numbers = Findings(split.annotations), {}
        try:
            annotations = survey_annotations(split, categories, config.data, findings)
            numbers = statistics(annotations)
            categories = annotations.categories if categories is None else categories
            check_contents(annotations, findings, name == "train")
            if name == "train" and not annotations.trainable(config.data.min_box_size).any():
                what = f"{counted(len(annotations.image_ids), 'image')} but no objects to train on"
                findings.add("DATA-NOTHING", what, count=1)
            if name != "train" and not annotations.trainable(0).any():
                findings.add("DATA-SPLIT-EMPTY", NO_OBJECTS, count=1)
            check_fitness(annotations, config, findings, trained_on=name == "train")
        except DataError as error:
            annotations = None
            what, code = error.what, error.code if error.code in CODES else "DATA"
            findings.add(code, what, count=1, level=ERROR, fix=error.fix)
        splits[name] = CheckedSplit(split, annotations, findings, numbers)
    train = splits["train"].annotations if "train" in splits else None
    if not config.data.val_fraction or "val" in splits or train is None:
        return splits
    try:
        parts = hold_out(train, config.data)
    except DataError as error:
        splits["train"].findings.add("DATA-SPLIT", error.what, count=1, level=ERROR, fix=error.fix)
        return splits
    for name, part in zip(("train", "val"), parts, strict=True):
        findings = splits["train"].findings if name == "train" else Findings(layout.train.annotations)
        splits[name] = CheckedSplit(layout.train, part, findings, statistics(part))
    return splits


def _compare(splits: dict[str, CheckedSplit], infos: dict[str, list[ImageInfo]], between: Findings) -> None:
    """Report duplicate images, and images that no split contains."""
    images, all_infos, roots = [], [], {}
    for name, of_split in infos.items():
        annotations = splits[name].annotations
        if annotations is not None:
            # by path, because entries that share a file are already reported as DATA-IMAGE-TWICE
            by_path = {annotations.path(info.index): info for info in of_split}
            images += [SplitImage(name, path) for path in by_path]
            all_infos += by_path.values()
            roots.setdefault(os.path.realpath(annotations.image_root), name)
    check_duplicates(same_files(images), near_pairs(images, all_infos), between)
    listed = {os.path.realpath(image.path) for image in images}
    for name in roots.values():
        part = splits[name]
        if part.annotations is not None:
            check_unlisted(part.annotations, listed, part.findings)
