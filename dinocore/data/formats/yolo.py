"""YOLO's layout: `data.yaml`, pictures, and for each a file of lines `class cx cy width height` in shares.

Source: what Ultralytics documents (https://docs.ultralytics.com/datasets/detect/). Labels are where `images` in a
picture's path reads `labels`; a line with more corners is an outline, of which the extent counts.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from ...config import DataConfig
from ...errors import DataError
from ..findings import Findings, Place
from ..images import SUFFIXES
from ..split import WORDS, Category, Fence, Layout, Split, Table, layout_of, names_of
from .coco import is_number

MOST = 1.5  # a share of a picture, leaving room for boxes that reach beyond it; more is a number of pixels


def find_yolo(folder: Path, fence: Fence) -> Layout | None:
    """
    Raises:
        DataError: there is a data.yaml that cannot be used, or a link to one outside.
    """
    named = [folder / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    files = [file for file in named if file.is_file()] or sorted(folder.glob("*.y*ml"))
    if len(files) != 1 and not (files and files[0] in named):
        return _without_yaml(folder, fence)
    content = _read_yaml(fence.check(files[0]))
    classes = _class_names(content, files[0])
    splits = {}
    for name, words in WORDS.items():
        entry = next((content[word] for word in words if content.get(word)), None)
        listing = _entered(entry, content.get("path"), folder, files[0]) if entry else _usual(folder, words)
        if listing:
            splits[name] = Split(files[0], [folder], "yolo", folder, listing, classes)
        elif name == "train" and entry:
            raise _bad_yaml(f"`train: {entry}` is not in {folder}", files[0])
    layout = layout_of("YOLO", splits)
    if layout is None:
        raise _bad_yaml("its folders of pictures (`train`, `val`) are not there", files[0])
    return layout


def _without_yaml(folder: Path, fence: Fence) -> Layout | None:
    """Label Studio's export: names in classes.txt, one a line, with images/ and labels/."""
    file = folder / "classes.txt"
    if not (file.is_file() and (folder / "images").is_dir() and (folder / "labels").is_dir()):
        return None
    lines = fence.check(file).read_text("utf-8-sig", errors="replace").splitlines()
    classes = tuple(line.strip() for line in lines if line.strip())
    found = {name: _usual(folder, words) for name, words in WORDS.items()}
    splits = {name: listing for name, listing in found.items() if listing} or {"train": (folder / "images",)}
    made = {name: Split(file, [folder], "yolo", folder, listing, classes) for name, listing in splits.items()}
    return layout_of("YOLO, classes.txt", made)


def read_yolo(split: Split, findings: Findings, config: DataConfig) -> Table:
    """Every picture of the split, and the lines of its label file; pictures are numbered from 1 by name."""
    root = split.image_roots[0]
    pictures = sorted({path for listing in split.listing for path in _pictures(listing, root)})
    labelled = 0
    fence = Fence(split.folder or root, config.follow_symlinks)
    owners, rows, places = [], [], []
    for number, picture in enumerate(pictures, start=1):
        file = label_file(picture)
        looked = fence.look(str(file))
        if looked == "escape":
            findings.add("DATA-PATH-ESCAPE", "label files that a link keeps outside of the data folder", [str(file)])
        if looked == "ok":
            labelled += 1
            for line, row in _lines(file, len(split.classes), findings):
                owners.append(number)
                rows.append(row)
                places.append(f"{file.name} line {line}")
    _lost_labels(pictures, findings)
    if pictures and not labelled:
        place = label_file(pictures[0])
        findings.add("DATA-LABEL-NONE", f"none of {len(pictures)} pictures has a label file, such as {place}", count=1)
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
    """Where a picture's labels are: the last `images` of its path reads `labels`; or beside it, if they are there."""
    beside, parts = picture.with_suffix(".txt"), list(picture.parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    usual = Path(*parts).with_suffix(".txt")
    return beside if beside.is_file() and not usual.is_file() else usual


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
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        return f"{len(values)} columns, a box has 5"
    if max(map(abs, values[1:])) > MOST:
        return f"{max(values[1:], key=abs):g}, where shares of the picture's width and height are at most 1"
    if len(values) == 5:
        return tuple(values)
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
    return [_listed(name.strip(), root) for name in names if name.strip()]


def _listed(name: str, root: Path) -> Path:
    """A picture by its line in a list; a path of another machine counts from the first part that is there."""
    path = root / name.removeprefix("./")
    if os.path.lexists(path):
        return path
    return next((root / tail for tail in _tails(name) if os.path.lexists(root / tail)), path)


def _tails(name: str) -> list[Path]:
    """A path, and what is left of it without its first parts, which lead nowhere but down."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("..", "/")]
    return [Path(*parts[n:]) for n in range(len(parts))]


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
    if isinstance(names, dict):
        numbered = {str(key): name for key, name in names.items()}
        names = [numbered.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise _bad_yaml("it has no `names`, a list of classes or a table of them from 0 without gaps", file)
    if content.get("nc", len(names)) != len(names):
        raise _bad_yaml(f"`nc` is {content['nc']}, but there are {len(names)} `names`", file)
    return tuple(str(name) for name in names)


def _usual(folder: Path, words: Sequence[str]) -> tuple[Path, ...]:
    """Where pictures of a split are if the yaml doesn't say."""
    names = [name for word in words for name in (f"{word}/images", f"images/{word}")]
    return tuple(folder / name for name in names if (folder / name).is_dir())[:1]


def _entered(entry: Any, path: Any, folder: Path, file: Path) -> tuple[Path, ...]:
    """Folders or lists of pictures that an entry names, all within the data folder.

    A path of another machine or Roboflow's `../train/images` counts from the first part that is there.
    """
    found = []
    for name in map(str, entry if isinstance(entry, list) else [entry]):
        bases = [folder / str(path), folder] if isinstance(path, str) else [folder]
        tried = [base / tail for tail in _tails(name) for base in bases] + [folder / name]
        there = [p for p in tried if p.exists() and p.resolve().is_relative_to(folder.resolve())]
        if there:
            found.append(folder / there[0].resolve().relative_to(folder.resolve()))
        elif any(p.exists() for p in tried):
            raise DataError(f"{name} leads out of the data folder", code="DATA-PATH-ESCAPE", where=file,
                            fix="put the pictures into the folder of data.yaml, or write a dataset.toml")  # fmt: skip
    return tuple(found)


def _bad_yaml(what: str, file: Path) -> DataError:
    return DataError(what, code="DATA-YAML", where=file)
