"""CSV tables with one box per row: `filename,xmin,ymin,xmax,ymax,class`, in any order, and common other column names.

Source: TensorFlow's object detection tutorials write `filename,width,height,class,xmin,ymin,xmax,ymax`;
keras-retinanet's `path,x1,y1,x2,y2,class` has no header, and neither have SKU-110K's tables, which append the image
sizes; Make Sense writes `class,x,y,width,height,filename,…` without a header; Kaggle competitions have
`image_id,…,bbox` with `[x, y, width, height]`, or a column for each of these; Global Wheat 2021 has all boxes of an
image in one cell. Corners count pixels from 0 and exclude the last one. Open Images
(https://storage.googleapis.com/openimages/web/download_v7.html) writes fractions, class codes and `IsGroupOf`.
Google's AutoML and Vertex AI write `set,path,label` and up to four corners as fractions without a header. A table
whose boxes have no number above MAX_FRACTION, and not only whole numbers, is read as fractions.
"""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...error_codes import NOTE
from ...errors import DataError
from ..findings import Findings
from ..images import IMAGE_SUFFIXES
from ..split import (
    Layout,
    NamedBox,
    PathGuard,
    RawAnnotations,
    Split,
    image_roots,
    layout_of,
    named_table,
    one_line,
    read_text,
    split_in_name,
    split_in_path,
    unnamed_as_train,
    visible_files,
)
from .pairs import names_on_disk
from .yolo import MAX_FRACTION, SLACK

# column names in lower case without separators: `Image ID`, `image_id` and `imageId` become `imageid`
FILE = (
    *("filename", "file", "image", "imagename", "imagepath", "imgpath", "path", "imageid", "imgid", "img", "imgname"),
    *("imagefilename", "imagefile", "filepath", "fname", "frame", "patientid"),
)
CLASS_ID = ("classid", "categoryid", "labelid")
# class names come first: next to such a column, `class` may hold the number
LABEL = (
    "classname", "labelname", "categoryname", "class", "label", "category", "classlabel", "name", "labels", "classes",
    "objectclass", "tag", "species", "target", *CLASS_ID,
)  # fmt: skip
SIZE = (("width", "height"), ("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("imgw", "imgh"))
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"), ("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"),
    ("roix1", "roiy1", "roix2", "roiy2"),
)  # fmt: skip
SIDES = (("left", "top", "width", "height"), ("xmin", "ymin", "width", "height"))
# x and y are the top left corner; in fractions, they may be the center, as in YOLO's files
XYWH = (
    ("x", "y", "w", "h"), ("x", "y", "width", "height"), ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
)  # fmt: skip
CENTERS = tuple(
    (*center, *sides)
    for center in (("xcenter", "ycenter"), ("centerx", "centery"), ("cx", "cy"), ("xc", "yc"))
    for sides in (("w", "h"), ("width", "height"))
)
LIST = ("bbox",)  # [x, y, width, height]
STRING = ("boxesstring",)  # x0 y0 x1 y1;x0 y0 x1 y1
BOX_FORMATS = {
    "corners": CORNERS, "sides": SIDES, "xywh": XYWH, "centers": CENTERS, "list": (LIST,), "string": (STRING,),
}  # fmt: skip
SPLIT = ("split", "set", "subset", "partition", "datasplit")
EMPTY = ("", "nan", "na", "n/a", "null", "none", "no_box")  # stand for a missing number
NO_BOX = ([0, 0, 0, 0], [-1, -1, -1, -1], [0, 0, 1, 1])  # stand for no box; the last one in pixels only
ONE_CLASS = "object"  # the class if no column has classes
GROUP = "isgroupof"
TRAILING_ZEROS = re.compile(r"(?<=\d)\.0+$")  # pandas writes integers as 1.0 if the column has gaps


class Columns(NamedTuple):
    """The column index of each value; -1 if the table has no such column."""

    file: int
    label: int
    box: tuple[int, ...]
    box_format: str  # one of BOX_FORMATS
    size: tuple[int, int] = (-1, -1)
    group: int = -1
    split: int = -1
    class_id: int = -1
    in_fractions: bool = False
    has_header: bool = True


BARE = Columns(0, 5, (1, 2, 3, 4), "corners", has_header=False)  # keras-retinanet
BARE_WITH_SIZES = BARE._replace(size=(6, 7))  # SKU-110K
BARE_BY_CLASS = Columns(5, 0, (1, 2, 3, 4), "sides", (6, 7), has_header=False)  # Make Sense
BARE_BY_SPLIT = Columns(1, 2, (3, 4, 7, 8), "corners", split=0, in_fractions=True, has_header=False)  # AutoML
AUTOML_SPLITS = ("TRAIN", "VALIDATION", "TEST", "UNASSIGNED")
DECIMAL_COMMA = re.compile(r"\s*(-?\d+),(\d+)\s*")


def find_csv(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of tables of boxes anywhere in the folder. The path of a table names its split; the default is train.

    Raises:
        DataError: two tables may belong to the same split.
    """
    named: dict[str, Path] = {}
    for file in visible_files(folder, (".csv", ".tsv")):
        if _columns(next(_rows(guard.check(file), strict=False), [])) is None:
            continue
        split = split_in_path(file.relative_to(folder).with_suffix("").parts)
        if split in named:
            both = " and ".join(one.relative_to(folder).as_posix() for one in (named[split], file))
            what = f"{both} may both be the boxes of {split or 'train'}"
            text = f'format = "csv"\n[train]\nannotations = "{file.relative_to(folder).as_posix()}"\nimages = "."'
            fix = f"leave one of them there, or write a dataset.toml that names it, such as\n{text}"
            raise DataError(what, code="DATA-LAYOUT", where=folder, fix=fix)
        named[split] = file
    tables = unnamed_as_train(named)
    return csv_layout("CSV", tables, folder, lambda name, file: image_roots(folder, name, file))


def csv_layout(
    kind: str, tables: dict[str, Path], folder: Path, roots: Callable[[str, Path], list[Path]]
) -> Layout | None:
    """The layout of given tables, by split.

    If a table's split column has several values, each row belongs to the split that it names, except that a split with
    a table of its own uses only that table.

    Args:
        roots: returns the folders that may hold the images of a split, given the split and its table.
    """
    names = _descriptions(folder)
    found: set[tuple[str, str]] = set()
    files: dict[str, tuple[Path, str]] = {}  # per split: the table, and the value of its split column or an empty text
    for name, file in tables.items():
        rows = list(read_rows(file))
        in_fractions = _are_fractions(rows)
        boxes = (row for row in rows if row.label and row.has_box and not row.stands_for_no_box(in_fractions))
        found |= {(names.get(row.label, row.label), row.class_id) for row in boxes}
        parts = {row.part for row in rows} - {""}
        if len(parts) > 1:
            files |= {part: (file, part) for part in parts if part == name or part not in tables}
        else:
            files[name] = (file, "")
    classes, ids = _classes(found)
    made = {
        name: Split(file, roots(name, file), "csv", folder, (), classes, class_ids=ids, part=part)
        for name, (file, part) in files.items()
    }
    return layout_of(kind, made)


def _classes(found: set[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Classes and their ids, in the order of the ids, from pairs (name, id).

    If the pairs are not one-to-one or an id is not a number, classes are sorted by name and have no ids.
    """
    names, numbers = {name for name, _ in found}, {number for _, number in found}
    if not len(names) == len(numbers) == len(found) or not all(number.isdecimal() for number in numbers):
        return tuple(sorted(names)), ()
    by_id = sorted((int(number), name) for name, number in found)
    return tuple(name for _, name in by_id), tuple(number for number, _ in by_id)


def _descriptions(folder: Path) -> dict[str, str]:
    """Open Images' class names by their codes, from `class-descriptions-boxable.csv` or `classes.csv`."""
    files = [
        file for file in visible_files(folder, (".csv",)) if file.stem.startswith(("class-desc", "oidv", "classes"))
    ]
    pairs = (row for file in files for row in _rows(file, strict=False) if len(row) == 2 and row[0].startswith("/"))
    return {code.strip(): one_line(name) for code, name in pairs}


class CsvRow(NamedTuple):
    """A box of an image, or an image without boxes."""

    line: int
    file: str
    label: str
    box: list[str]  # in the table's box format
    size: tuple[str, str]
    is_group: bool
    part: str  # the split in the row's split column, or an empty text
    class_id: str

    @property
    def has_box(self) -> bool:
        """Whether the row has any number of a box; a row without one means that its image has no objects."""
        return any(value.lower() not in EMPTY for value in self.box)

    def stands_for_no_box(self, in_fractions: bool) -> bool:
        """Whether the numbers are a placeholder for no box. The caller checks the class as well."""
        return _numbers(self.box) in (NO_BOX[:2] if in_fractions else NO_BOX)


def read_csv(split: Split, findings: Findings) -> RawAnnotations:
    """Read the rows of a split. Images are numbered from 1 in order of appearance.

    A row without a box means an image without objects. Such rows often have a text such as `No finding` in the class
    column, which does not become a class, and may have zeros as the box.
    """
    columns = _columns(next(_rows(split.annotations), [])) or BARE
    rows = list(read_rows(split.annotations))
    in_fractions = columns.in_fractions or _are_fractions(rows)
    names, numbers, sizes = _descriptions(split.folder or split.annotations.parent), {}, {}
    boxes, invalid, no_box_labels, without_split = [], [], set(), []
    for row in rows:
        if split.part not in ("", row.part):
            without_split += [] if row.part else [f"line {row.line}"]
            continue
        number = numbers.setdefault(row.file, len(numbers) + 1)
        sizes[number] = row.size
        label = names.get(row.label, row.label)
        has_class = columns.label >= 0 and label in split.classes
        if not row.has_box or (row.stands_for_no_box(in_fractions) and not has_class):
            no_box_labels |= {label} - {"", *split.classes}
            continue
        corners = _corners(row.box, columns.box_format)
        if corners is None or label not in split.classes:
            invalid.append(f"line {row.line}: {row.file} {','.join(row.box)} {row.label}")
        else:
            boxes.append(NamedBox(number, label, corners, f"line {row.line}", row.is_group))
    findings.add("DATA-CSV", "rows whose box is not four numbers and a class", invalid)
    what = "rows skipped, because their split column names no known split"
    findings.add("DATA-SPLIT", what, without_split, level=NOTE, fix="write train, val or test there")
    findings.add("DATA-IMAGE-EMPTY", "no classes, as no row of theirs has a box", sorted(no_box_labels))
    if columns.label < 0:
        _report_one_class(split.annotations, columns, len(boxes), findings)
    if in_fractions and not columns.in_fractions:
        what = (
            f"no number of a box is above {MAX_FRACTION}, so all are read as fractions of the image's width and height"
        )
        fix = "write pixels if they are not fractions"
        findings.add("DATA-BOX-SHARES", what, count=len(boxes), level=NOTE, fix=fix)
    if in_fractions and columns.box_format in ("xywh", "list"):
        _check_origin(boxes, findings)
    declared_sizes = [[int(v) if v.strip().isdigit() else 0 for v in sizes[n]] for n in numbers.values()]
    files = names_on_disk(list(numbers), split.image_roots)
    return named_table(split, files, boxes, declared_sizes, in_fractions)


def _report_one_class(file: Path, columns: Columns, num_boxes: int, findings: Findings) -> None:
    """Report that no column has classes, and list the unused columns, one of which may have them."""
    used = {columns.file, *columns.box, *columns.size, columns.group, columns.split}
    header = next(_rows(file)) if columns.has_header else []
    others = [one_line(cell) for i, cell in enumerate(header) if i not in used and cell.strip()]
    advice = f"; not read: {', '.join(others)} (call a column of classes `class`)" if others else ""
    findings.add("DATA-FILLED", f"no column names classes: all are `{ONE_CLASS}`{advice}", count=num_boxes)


def _check_origin(boxes: Sequence[NamedBox], findings: Findings) -> None:
    """Report an error if x and y may be either centers or corners, because all boxes lie in their images both ways."""
    corners = np.array([box.corners for box in boxes]).reshape(-1, 4)
    half = (corners[:, 2:] - corners[:, :2]) / 2
    centered = corners - np.tile(half, 2)
    if ((centered >= -SLACK) & (centered <= 1 + SLACK)).all():
        what = "boxes are fractions, and it is unclear whether x and y are the center or the top left corner"
        fix = "call the columns cx,cy,w,h if they are the center, or left,top,width,height"
        findings.add("DATA-CSV", what, count=len(boxes), fix=fix)


def _are_fractions(rows: Iterable[CsvRow]) -> bool:
    """Whether boxes are fractions of the image size: no number is above MAX_FRACTION, and not all are integers."""
    has_fraction = False
    for row in rows:
        numbers = _numbers(row.box) if row.has_box else []
        if max(map(abs, numbers), default=0) > MAX_FRACTION:
            return False
        has_fraction = has_fraction or any(number % 1 for number in numbers)
    return has_fraction


def _numbers(values: list[str]) -> list[float]:
    """The four finite numbers of a box; empty if the values are anything else."""
    try:
        numbers = [*map(float, values)]
    except ValueError:
        return []
    return numbers if len(numbers) == 4 and all(abs(value) < 1e9 for value in numbers) else []


def _corners(values: list[str], box_format: str) -> tuple[float, float, float, float] | None:
    numbers = _numbers(values)
    if not numbers:
        return None
    a, b, c, d = numbers
    if box_format in ("corners", "string"):
        return a, b, c, d
    return (a - c / 2, b - d / 2, a + c / 2, b + d / 2) if box_format == "centers" else (a, b, a + c, b + d)


def read_rows(file: Path) -> Iterator[CsvRow]:
    """All boxes of a table, and its images without boxes."""
    rows = _rows(file)
    first = next(rows, [])
    columns = _columns(first) or BARE
    for line, cells in enumerate(itertools.chain([first], rows), start=1):
        name = _cell(cells, columns.file).replace("\\", "/").removeprefix("./")
        if not name or (line == 1 and columns.has_header):
            continue
        label = ONE_CLASS if columns.label < 0 else one_line(_cell(cells, columns.label))
        size = (_cell(cells, columns.size[0]), _cell(cells, columns.size[1]))
        is_group, part = _cell(cells, columns.group) == "1", split_in_name(_cell(cells, columns.split))
        class_id = label if columns.class_id < 0 else TRAILING_ZEROS.sub("", _cell(cells, columns.class_id))
        label = class_id if columns.label == columns.class_id >= 0 else label
        for box in _boxes(cells, columns):
            yield CsvRow(line, name, label, box, size, is_group, part, class_id)


def _boxes(cells: list[str], columns: Columns) -> list[list[str]]:
    """The numbers of each box in a row, as text."""
    values = [_cell(cells, i) for i in columns.box]
    if columns.box_format == "list":
        return [re.split(r"[,\s]+", values[0].strip("[]() "))]
    return [box.split() for box in values[0].split(";")] if columns.box_format == "string" else [values]


def _cell(cells: list[str], index: int) -> str:
    return cells[index].strip() if 0 <= index < len(cells) else ""


def _rows(file: Path, strict: bool = True) -> Iterator[list[str]]:
    """The non-empty rows of a table, parsed one at a time."""
    text = read_text(file, strict)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row)
    return ([_with_decimal_point(cell) for cell in row] for row in rows) if delimiter == ";" else rows


def _with_decimal_point(cell: str) -> str:
    """A cell with 1,5 replaced by 1.5: spreadsheets that write decimal commas separate cells by semicolons."""
    match = DECIMAL_COMMA.fullmatch(cell)
    return f"{match[1]}.{match[2]}" if match else cell


def _columns(first: list[str]) -> Columns | None:
    """The columns by the header in the first row, or those of a known table without one; None if it has no boxes."""
    lower = [cell.strip().lower() for cell in first]
    header = [re.sub(r"[\s_.-]", "", cell) for cell in lower]
    file, label, group, split, class_id = (
        _find_column(header, names) for names in (FILE, LABEL, [GROUP], SPLIT, CLASS_ID)
    )
    for box_format, layouts in BOX_FORMATS.items():
        box = next((names for names in layouts if set(names) <= set(header)), ())
        if file >= 0 and box:
            size = next((pair for pair in SIZE if set(pair) <= {*header} - {*box}), ("", ""))
            size_columns = (_find_column(header, [size[0]]), _find_column(header, [size[1]]))
            is_open_images = {"imageid", "labelname"} <= set(lower)
            box_columns = tuple(header.index(name) for name in box)
            return Columns(file, label, box_columns, box_format, size_columns, group, split, class_id, is_open_images)
    return _bare_columns(first)


def _bare_columns(cells: list[str]) -> Columns | None:
    """The columns of a known table without a header, by its first row; None if it is no table of boxes."""
    is_automl = len(cells) == 11 and cells[0].strip().upper() in AUTOML_SPLITS
    if is_automl and all(map(_is_bare_number, cells[3:])):
        return BARE_BY_SPLIT
    if len(cells) not in (6, 8) or not all(_is_bare_number(cell) for cell in (*cells[1:5], *cells[6:])):
        return None
    if len(cells) == 6:
        return BARE
    return BARE_BY_CLASS if Path(cells[5].strip()).suffix.lower() in IMAGE_SUFFIXES else BARE_WITH_SIZES


def _is_bare_number(cell: str) -> bool:
    """Whether a cell is a number of at least 0, or empty."""
    text = cell.strip()
    return text.replace(".", "", 1).isdigit() or not text


def _find_column(header: list[str], names: Sequence[str]) -> int:
    return next((header.index(name) for name in names if name and name in header), -1)
