"""YOLO's layout: `data.yaml`, pictures, and for each a file of lines `class cx cy width height` in shares.

Source: what Ultralytics documents (https://docs.ultralytics.com/datasets/detect/). Labels are where `images` in a
picture's path reads `labels`; a line with more corners is an outline, of which the extent counts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..config import DataConfig
from ..errors import DataError
from .coco_json import is_number
from .findings import Findings, Place
from .images import SUFFIXES
from .split import Category, Fence, Layout, Split, Table, names_of

USUAL = {"train": ("train/images", "images/train"), "val": ("valid/images", "val/images", "images/val", "images/valid"),
         "test": ("test/images", "images/test")}  # fmt: skip


def find_yolo(folder: Path, fence: Fence) -> Layout | None:
    """
    Raises:
        DataError: there is a data.yaml that cannot be used, or a link to one outside.
    """
    named = [folder / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    files = [file for file in named if file.is_file()] or sorted(folder.glob("*.y*ml"))
    if len(files) != 1 and not (files and files[0] in named):
        return None
    content = _read_yaml(fence.check(files[0]))
    classes = _class_names(content, files[0])
    splits = {}
    for name, usual in USUAL.items():
        entry = content.get(name) or (content.get("valid") if name == "val" else None)
        listing = _resolve(entry, usual, folder, content.get("path"), files[0])
        if listing:
            splits[name] = Split(files[0], [folder], "yolo", folder, listing, classes)
    train = splits.get("train") or splits.get("val")
    if train is None:
        raise _bad_yaml("its folders of pictures (`train`, `val`) are not there", files[0])
    return Layout(
        "YOLO", train, splits.get("val") or splits.get("test"), splits.get("test") if "val" in splits else None
    )


def read_yolo(split: Split, findings: Findings, config: DataConfig) -> Table:
    """Every picture of the split, and the lines of its label file; pictures are numbered from 1 by name."""
    root = split.image_roots[0]
    pictures = sorted({path for listing in split.listing for path in _pictures(listing, root)})
    fence = Fence(split.folder or root, config.follow_symlinks)
    owners, rows, places = [], [], []
    for number, picture in enumerate(pictures, start=1):
        file = label_file(picture)
        looked = fence.look(str(file))
        if looked == "escape":
            findings.add("DATA-PATH-ESCAPE", "label files that a link keeps outside of the data folder", [str(file)])
        if looked == "ok":
            for line, row in _lines(file, len(split.classes), findings):
                owners.append(number)
                rows.append(row)
                places.append(f"{file.name} line {line}")
    _lost_labels(pictures, findings)
    values = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Table(
        categories=[Category(i, name) for i, name in enumerate(split.classes)],
        headings=frozenset(),
        image_ids=np.arange(1, len(pictures) + 1),
        file_names=names_of(pictures, root),
        sizes=np.zeros((len(pictures), 2), np.int64),
        owners=np.array(owners, dtype=np.int64),
        kinds=values[:, 0].astype(np.int64),
        boxes=np.concatenate([values[:, 1:3] - values[:, 3:] / 2, values[:, 3:]], 1),
        area=np.full(len(rows), np.nan),
        crowd=np.zeros(len(rows), bool),
        name=lambda i: places[i],
        in_shares=True,
    )


def label_file(picture: Path) -> Path:
    """Where a picture's labels are: the last `images` of its path reads `labels`."""
    parts = list(picture.parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _lines(file: Path, num_classes: int, findings: Findings) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Number and class, cx, cy, width, height of every line that can be read."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        findings.add("DATA-FILE", "label files that cannot be read", [f"{file.name}: {error}"])
        return
    wrong = []
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            row = _row(words, num_classes)
            if isinstance(row, str):
                wrong.append(f"{file.name} line {number}: {row}")
            else:
                yield number, row
    findings.add("DATA-LABEL-LINE", "lines of label files that cannot be read", wrong)


def _row(words: list[str], num_classes: int) -> tuple[float, ...] | str:
    """Class, cx, cy, width, height; or what is wrong with the line."""
    if any("," in word for word in words):
        return "commas; write decimals with a point and spaces between numbers"
    try:
        values = [float(word) for word in words]
    except ValueError:
        return "not numbers"
    if not all(map(is_number, values)):
        return "numbers that are not finite"
    if values[0] % 1 or not 0 <= values[0] < num_classes:
        return f"class {words[0]}, known are 0 to {num_classes - 1}"
    if len(values) == 5:
        return tuple(values)
    if len(values) < 7 or len(values) % 2 == 0:
        return f"{len(values)} columns, a box has 5"
    x, y = values[1::2], values[2::2]
    return values[0], (min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)


def _lost_labels(pictures: list[Path], findings: Findings) -> None:
    """Label files that belong to no picture."""
    known = {label_file(picture) for picture in pictures}
    folders = sorted({file.parent for file in known})
    lost = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.txt"))
            if file not in known and file.stem not in ("classes", "train", "val", "test")]  # fmt: skip
    findings.add("DATA-LABEL-LOST", "label files without a picture", [Place(file.name) for file in lost])


def _pictures(listing: Path, root: Path) -> list[Path]:
    """Pictures of a folder, or of a list with a name on each line."""
    if listing.is_dir():
        return [path for path in listing.rglob("*") if path.suffix.lower() in SUFFIXES]
    names = listing.read_text("utf-8-sig", errors="surrogateescape").splitlines()
    return [root / name.strip().removeprefix("./") for name in names if name.strip()]


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad_yaml(f"it cannot be read: {' '.join(str(error).split())[:200]}", file) from None
    if not isinstance(content, dict):
        raise _bad_yaml("its top level has no keys", file)
    return content


def _class_names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise _bad_yaml("it has no `names`, a list of classes or a table of them from 0 without gaps", file)
    if content.get("nc", len(names)) != len(names):
        raise _bad_yaml(f"`nc` is {content['nc']}, but there are {len(names)} `names`", file)
    return tuple(str(name) for name in names)


def _resolve(entry: Any, usual: tuple[str, ...], folder: Path, path: Any, file: Path) -> tuple[Path, ...]:
    """Folders or lists of pictures that an entry names, all within the data folder; Roboflow's `../` is overlooked."""
    found = []
    for name in entry if isinstance(entry, list) else [entry] if entry else []:
        bases = [folder / str(path), folder] if isinstance(path, str) else [folder]
        plain = str(name).removeprefix("../").removeprefix("./")
        tried = [base / plain for base in bases] + [folder / str(name)]
        there = [p for p in tried if p.exists() and p.resolve().is_relative_to(folder.resolve())]
        if there:
            found.append(folder / there[0].resolve().relative_to(folder.resolve()))
        elif any(p.exists() for p in tried):
            raise DataError(f"{name} leads out of the data folder", code="DATA-PATH-ESCAPE", where=file,
                            fix="put the pictures into the folder of data.yaml, or write a dataset.toml")  # fmt: skip
    return tuple(found) or tuple(folder / name for name in usual if (folder / name).is_dir())[:1]


def _bad_yaml(what: str, file: Path) -> DataError:
    return DataError(what, code="DATA-YAML", where=file, fix="write `train: images/train` and `names: [a, b]`")
