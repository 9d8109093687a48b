"""Open a dataset: find, read and check it."""

import getpass
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import __version__
from ..config import DataConfig, check_section
from ..errors import DataError
from ..words import counted
from .annotations import Annotations, Category, choose_images, read_annotations
from .check.contents import NO_OBJECTS
from .check.scan import check_files, scan_images
from .findings import Findings
from .formats.layout import find_layout
from .holdout import hold_out
from .split import evenly
from .synthetic.sample import write_sample_data

MAX_HEADERS = 20_000  # image headers that are read before training; 5,000 take a second


class DataSet(NamedTuple):
    """The training split, the evaluation split, and messages for the user."""

    source: str  # a description, for messages
    train: Annotations
    val: Annotations
    notes: list[str]


def open_dataset(config: DataConfig) -> DataSet:
    """Find and read a dataset; an empty path means synthetic images.

    Raises:
        ConfigError: `config` is not a `data` section.
        DataError: the folder or its annotations are unusable, or there is nothing to train on.
    """
    check_section(config, DataConfig)
    folder = Path(config.path) if config.path else sample_folder(config.sample_images)
    layout = find_layout(folder, config.follow_symlinks)
    if not layout.trainable:
        raise DataError(f"{folder} has {layout.gap}", code="DATA-SPLIT", where=folder)
    train = read_annotations(layout.train, config=config)
    if not train.trainable(config.min_box_size).any():
        what = f"{train.file} has {counted(len(train.image_ids), 'image')} but no objects to train on"
        raise DataError(what, code="DATA-NOTHING", where=train.file)
    notes = [f"{train.file.name}: {note}" for note in (*train.notes, *_check_images(train, config))]
    if layout.val is None and config.val_fraction:
        train, val = hold_out(train, config)
        notes.append(f"{folder} has no validation split; holding out {len(val.image_ids)} of its images for it")
    elif layout.val is None:
        val = train
        notes.append(f"{folder} has {layout.gap}; --val-fraction 0.2 holds out some")
    else:
        if config.val_fraction:
            notes.append(f"{folder} has a validation split; data.val_fraction is not used")
        val = read_annotations(layout.val, train.categories, config)
        notes += [f"{val.file.name}: {note}" for note in (*val.notes, *_check_images(val, config))]
        if shared := len(_paths(val) & _paths(train)):
            what = f"{shared} of {counted(len(val.image_ids), 'image')} to evaluate on"
            notes.append(
                f"{val.file.name}: {what} {'is' if shared == 1 else 'are'} also trained on, so AP will be too high"
            )
    if val is not train and not (val.labels >= 0).any():
        notes.append(f"{val.file.name}: {NO_OBJECTS}")
    where = f"{folder} ({layout.kind} layout)" if config.path else f"images drawn by `dino sample-data`, in {folder}"
    return DataSet(where, train, val, notes)


def _paths(annotations: Annotations) -> set[bytes]:
    root = os.fsencode(annotations.image_root)
    return {os.path.join(root, name) for name in annotations.file_names.tolist()}


def _check_images(annotations: Annotations, config: DataConfig) -> list[str]:
    """Compare image sizes in the annotations with the files; at most MAX_HEADERS of them, evenly sampled.

    Returns:
        messages about the files that are not errors.

    Raises:
        DataError: sizes differ, or images cannot be read.
    """
    indices = evenly(len(annotations.image_ids), MAX_HEADERS)
    findings = Findings(annotations.file)
    check_files(annotations, list(scan_images(annotations, config, False, indices)), findings)
    findings.stop()
    return [finding.text for finding in findings.found]


def open_split(config: DataConfig, split: str, categories: Sequence[Category] | None) -> Annotations:
    """Read one split.

    Args:
        split: train, val or test.
        categories: the model's, which define the class indices; None: the split's own, in the order of their ids.

    Raises:
        DataError: the split does not exist, or has none of the classes.
    """
    folder = Path(config.path) if config.path else sample_folder(config.sample_images)
    layout = find_layout(folder, config.follow_symlinks)
    splits = layout.splits() | ({"test": layout.val} if layout.val_is_test and layout.val else {})
    if layout.val is None and layout.trainable and config.val_fraction and split in ("train", "val"):
        train, val = hold_out(read_annotations(layout.train, config=config), config)
        chosen = {"train": train, "val": val}[split]
        if categories is None:
            return chosen
        all_images = read_annotations(layout.train, categories, config)
        return choose_images(all_images, np.flatnonzero(np.isin(all_images.image_ids, chosen.image_ids)))
    if split not in splits:
        name = "validation" if split == "val" else split
        others = " or ".join(f"--split {other}" for other in splits)
        fix = f"use {others} to evaluate on those images"
        if split == "val" and layout.trainable:
            fix += ", or --set data.val_fraction=0.2 for those that --val-fraction 0.2 holds out"
        raise DataError(f"{folder} has no {name} split", code="DATA-SPLIT", where=folder, fix=fix)
    return read_annotations(splits[split], categories, config)


def sample_folder(num_images: int) -> Path:
    """The cache folder with synthetic images, which are drawn if they do not exist yet."""
    folder = _cache_folder() / f"sample-data-{__version__}-{num_images}"
    if not (folder / "annotations" / "instances_train2017.json").is_file():
        write_sample_data(folder, num_images)
    return folder


def _cache_folder() -> Path:
    """The user's cache folder, or a temporary one if that is not writable."""
    chosen = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(chosen) / "dino"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.gettempdir()) / f"dino-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"
