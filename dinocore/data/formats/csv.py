"""Boxes as a table, one a row: `filename,xmin,ymin,xmax,ymax,class`, in any order and under the usual other names.

Source: TensorFlow's object detection tutorials write `filename,width,height,class,xmin,ymin,xmax,ymax`;
keras-retinanet's `path,x1,y1,x2,y2,class` has no heading. Corners count pixels from 0, the last one not included.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import DataError
from ..findings import Findings
from ..split import Category, Layout, PathGuard, Split, Table, is_hidden, layout_of, one_line, split_told_by

NAMES = {
    "file": ("filename", "file_name", "file", "image", "image_name", "image_path", "img_path", "path", "image_id"),
    "label": ("class", "label", "name", "class_name", "category", "label_name"),
    "x0": ("xmin", "x_min", "x1", "x0", "left", "bbox_xmin"),
    "y0": ("ymin", "y_min", "y1", "y0", "top", "bbox_ymin"),
    "x1": ("xmax", "x_max", "x2", "right", "bbox_xmax"),
    "y1": ("ymax", "y_max", "y2", "bottom", "bbox_ymax"),
}
BARE = {"file": 0, "x0": 1, "y0": 2, "x1": 3, "y1": 4, "label": 5}  # without a heading


def find_csv(folder: Path, guard: PathGuard) -> Layout | None:
    """Tables in the folder itself or one below; the name tells the split, or one table is for training.

    Raises:
        DataError: two tables may be those of one split.
    """
    files = sorted(p for pattern in ("*.csv", "*/*.csv") for p in folder.glob(pattern) if not is_hidden(p.name))
    named: dict[str, Path] = {}
    for file in files:
        if _columns(_rows(guard.check(file))[:1]) is None:
            continue
        told = split_told_by(file.stem) or split_told_by(file.parent.name)
        if told in named:
            what = f"{named[told].name} and {file.name} may both be the boxes of {told or 'train'}"
            raise DataError(what, code="DATA-LAYOUT", where=folder, fix="leave one of them there")
        named[told] = file
    if not named.keys() & {"train", "val"} and "" in named:
        named = {"train": named[""]}
    named.pop("", None)
    classes = tuple(sorted({cells["label"] for file in named.values() for _, cells in _cells(file)} - {""}))
    near = [p for base in (folder, folder / "images") if base.is_dir() for p in sorted(base.iterdir()) if p.is_dir()]
    made = {}
    for name, file in named.items():
        roots = [*(p for p in near if split_told_by(p.name) == name), file.parent, folder / "images", folder]
        others = [p for p in near if not is_hidden(p.name) and not split_told_by(p.name)]
        made[name] = Split(file, [*roots, *others], "csv", folder, (), classes)
    return layout_of("CSV", made)


def read_csv(split: Split, findings: Findings) -> Table:
    """Images are numbered from 1 in the order in which they appear; a row without a box is an image without objects."""
    files: dict[str, int] = {}
    owners, labels, corners, places, wrong = [], [], [], [], []
    numbers = {name: n for n, name in enumerate(split.classes, start=1)}
    for line, cells in _cells(split.annotations):
        said = [cells[key] for key in ("x0", "y0", "x1", "y1")]
        number = files.setdefault(cells["file"], len(files) + 1)
        if not any(said):
            continue
        try:
            box = [float(value) for value in said]
        except ValueError:
            box = [np.nan]
        if not np.isfinite(box).all() or cells["label"] not in numbers:
            wrong.append(f"line {line}: {cells['file']} {','.join(said)} {cells['label']}")
            continue
        owners.append(number)
        labels.append(numbers[cells["label"]])
        corners.append(box)
        places.append(f"line {line}")
    findings.add("DATA-CSV", "rows whose box is not four numbers and a class", wrong)
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    return Table(
        categories=[Category(n, name) for name, n in numbers.items()],
        headings=frozenset(),
        image_ids=np.arange(1, len(files) + 1),
        file_names=list(files),
        sizes=np.zeros((len(files), 2), np.int64),
        owners=np.array(owners, dtype=np.int64),
        category_ids=np.array(labels, dtype=np.int64),
        boxes=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        area=np.full(len(boxes), np.nan),
        crowd=np.zeros(len(boxes), bool),
        name=lambda i: places[i],
    )


def _cells(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and values of every row that names an image; a path of another machine is the file's own name."""
    rows = _rows(file)
    columns = _columns(rows[:1])
    start = 0 if columns is None or columns is BARE else 1
    for line, row in enumerate(rows[start:], start=1 + start):
        cells = {key: row[at].strip() if at < len(row) else "" for key, at in (columns or BARE).items()}
        name = cells["file"].replace("\\", "/")
        name = PurePosixPath(name).name if os.path.isabs(name) or ":" in name else name.removeprefix("./")
        if name:
            yield line, cells | {"file": name, "label": one_line(cells["label"])}


def _rows(file: Path) -> list[list[str]]:
    text = file.read_text("utf-8-sig", errors="replace")
    first = text.partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    return [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]


def _columns(first: list[list[str]]) -> dict[str, int] | None:
    """Where each value stands, by the heading; None where the table is not one of boxes."""
    if not first:
        return None
    heading = [cell.strip().lower().replace(" ", "_") for cell in first[0]]
    found = {key: next((heading.index(name) for name in names if name in heading), -1) for key, names in NAMES.items()}
    if min(found.values()) >= 0:
        return found
    bare = len(heading) == len(BARE) and all(cell.replace(".", "", 1).isdigit() or not cell for cell in heading[1:5])
    return BARE if bare else None
