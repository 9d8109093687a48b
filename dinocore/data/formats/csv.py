"""Boxes as a table, one a row: `filename,xmin,ymin,xmax,ymax,class`, in any order and under the usual other names.

Source: TensorFlow's object detection tutorials write `filename,width,height,class,xmin,ymin,xmax,ymax`;
keras-retinanet's `path,x1,y1,x2,y2,class` has no heading; competitions at Kaggle have `image_id,…,bbox` with
`[x, y, width, height]`, or columns for these. Corners count pixels from 0, the last one not included. Open Images
(https://storage.googleapis.com/openimages/web/download_v7.html) writes shares, codes for classes, and `IsGroupOf`.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError
from ..findings import Findings
from ..split import (
    Layout,
    NamedBox,
    PathGuard,
    RawAnnotations,
    Split,
    image_roots,
    layout_of,
    named_table,
    nameless_for_training,
    one_line,
    read_text,
    split_in_path,
    visible_files,
)
from .pairs import names_on_disk

FILE = (
    *("filename", "file_name", "file", "image", "image_name", "image_path", "img_path", "path"),
    *("image_id", "imageid", "img_id", "img"),
)
LABEL = ("class", "label", "class_name", "classname", "category", "label_name", "labelname", "class_label", "name")
SIZE = (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height"))
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"), ("left", "top", "right", "bottom"),
    ("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"),
)  # fmt: skip
SIDES = (
    ("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("xmin", "ymin", "width", "height"),
)  # fmt: skip
LIST = ("bbox",)  # [x, y, width, height]
EMPTY = ("", "nan", "na", "n/a", "null", "none")  # what stands for no number
ONE_CLASS = "object"  # where no column names classes
GROUP = "isgroupof"


class Columns(NamedTuple):
    """Where each value stands; -1: nowhere."""

    file: int
    label: int
    box: tuple[int, ...]
    form: str  # corners, sides or list
    size: tuple[int, int] = (-1, -1)
    group: int = -1
    in_shares: bool = False
    has_heading: bool = True


BARE = Columns(0, 5, (1, 2, 3, 4), "corners", has_heading=False)


def find_csv(folder: Path, guard: PathGuard) -> Layout | None:
    """Tables of boxes anywhere in the folder; a name tells the split, or one table is for training.

    Raises:
        DataError: two tables may be those of one split.
    """
    named: dict[str, Path] = {}
    for file in visible_files(folder, (".csv", ".tsv")):
        if _columns(_rows(guard.check(file), strict=False)[:1]) is None:
            continue
        part_of = split_in_path(file.relative_to(folder).with_suffix("").parts)
        if part_of in named:
            what = f"{named[part_of].name} and {file.name} may both be the boxes of {part_of or 'train'}"
            text = f'format = "csv"\n[train]\nannotations = "{file.relative_to(folder).as_posix()}"\nimages = "."'
            fix = f"leave one of them there, or write a dataset.toml that names it, such as\n{text}"
            raise DataError(what, code="DATA-LAYOUT", where=folder, fix=fix)
        named[part_of] = file
    tables = {name: (file, image_roots(folder, name, file)) for name, file in nameless_for_training(named).items()}
    return csv_layout("CSV", tables, folder)


def csv_layout(kind: str, tables: dict[str, tuple[Path, list[Path]]], folder: Path) -> Layout | None:
    """The layout of these tables, each with the folders that may hold its images."""
    names = _descriptions(folder)
    labels = {row.label for file, _ in tables.values() for row in read_rows(file) if row.has_box} - {""}
    classes = tuple(sorted({names.get(label, label) for label in labels}))
    made = {name: Split(file, roots, "csv", folder, (), classes) for name, (file, roots) in tables.items()}
    return layout_of(kind, made)


def _descriptions(folder: Path) -> dict[str, str]:
    """Names of Open Images' class codes, from `class-descriptions-boxable.csv` or `classes.csv`."""
    files = [
        file for file in visible_files(folder, (".csv",)) if file.stem.startswith(("class-desc", "oidv", "classes"))
    ]
    pairs = (row for file in files for row in _rows(file, strict=False) if len(row) == 2 and row[0].startswith("/"))
    return {code.strip(): one_line(name) for code, name in pairs}


class CsvRow(NamedTuple):
    """A row that names an image."""

    line: int
    file: str
    label: str
    box: list[str]  # as the columns have it
    size: tuple[str, str]
    is_group: bool

    @property
    def has_box(self) -> bool:
        """Whether the row has any number of a box; one that has none says that its image has no objects."""
        return any(value.lower() not in EMPTY for value in self.box)


def read_csv(split: Split, findings: Findings) -> RawAnnotations:
    """Images are numbered from 1 in the order in which they appear; a row without a box is an image without objects.

    Such a row often has a word like `No finding` for a class, which is no class.
    """
    columns = _columns(_rows(split.annotations)[:1]) or BARE
    names, numbers, sizes = _descriptions(split.folder or split.annotations.parent), {}, {}
    boxes, wrong, no_classes = [], [], set()
    for row in read_rows(split.annotations):
        number = numbers.setdefault(row.file, len(numbers) + 1)
        sizes[number] = row.size
        label = names.get(row.label, row.label)
        if not row.has_box:
            no_classes |= {label} - {"", *split.classes}
            continue
        corners = _corners(row.box, columns.form)
        if corners is None or label not in split.classes:
            wrong.append(f"line {row.line}: {row.file} {','.join(row.box)} {row.label}")
        else:
            boxes.append(NamedBox(number, label, corners, f"line {row.line}", row.is_group))
    findings.add("DATA-CSV", "rows whose box is not four numbers and a class", wrong)
    findings.add("DATA-IMAGE-EMPTY", "no classes, as no row of theirs has a box", sorted(no_classes))
    if columns.label < 0:
        findings.add("DATA-FILLED", f"no column names classes: all are `{ONE_CLASS}`", count=len(boxes))
    declared_sizes = [[int(v) if v.strip().isdigit() else 0 for v in sizes[n]] for n in numbers.values()]
    files = names_on_disk(list(numbers), split.image_roots)
    return named_table(split, files, boxes, declared_sizes, columns.in_shares)


def _corners(values: list[str], form: str) -> tuple[float, float, float, float] | None:
    try:
        a, b, c, d = map(float, values)
    except ValueError:
        return None
    good = all(abs(value) < 1e9 for value in (a, b, c, d))
    return ((a, b, c, d) if form == "corners" else (a, b, a + c, b + d)) if good else None


def read_rows(file: Path) -> Iterator[CsvRow]:
    """Every row that names an image."""
    rows = _rows(file)
    columns = _columns(rows[:1]) or BARE
    for line, cells in enumerate(rows, start=1):
        name = _cell(cells, columns.file).replace("\\", "/").removeprefix("./")
        if not name or (line == 1 and columns.has_heading):
            continue
        box = [_cell(cells, at) for at in columns.box]
        if columns.form == "list":
            box = [part.strip() for part in box[0].strip("[]()").split(",")]
        label = ONE_CLASS if columns.label < 0 else one_line(_cell(cells, columns.label))
        size = (_cell(cells, columns.size[0]), _cell(cells, columns.size[1]))
        yield CsvRow(line, name, label, box, size, _cell(cells, columns.group) == "1")


def _cell(cells: list[str], at: int) -> str:
    return cells[at].strip() if 0 <= at < len(cells) else ""


def _rows(file: Path, strict: bool = True) -> list[list[str]]:
    text = read_text(file, strict)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]


def _columns(first: list[list[str]]) -> Columns | None:
    """Where each value stands, by the heading; None where the table is not one of boxes."""
    if not first:
        return None
    heading = [cell.strip().lower().replace(" ", "_") for cell in first[0]]
    file, label = _one(heading, FILE), _one(heading, LABEL)
    for form, forms in (("corners", CORNERS), ("sides", SIDES), ("list", (LIST,))):
        box = next((names for names in forms if set(names) <= set(heading)), ())
        if file >= 0 and box:
            size = next((pair for pair in SIZE if set(pair) <= {*heading} - {*box}), ("", ""))
            at = (_one(heading, [size[0]]), _one(heading, [size[1]]))
            of_open_images = {"imageid", "labelname"} <= set(heading)
            places = tuple(heading.index(name) for name in box)
            return Columns(file, label, places, form, at, _one(heading, [GROUP]), of_open_images)
    bare = len(heading) == 6 and all(cell.replace(".", "", 1).isdigit() or not cell for cell in heading[1:5])
    return BARE if bare else None


def _one(heading: list[str], names: Sequence[str]) -> int:
    return next((heading.index(name) for name in names if name and name in heading), -1)
