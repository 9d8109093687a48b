"""Boxes as a table, one a row: `filename,xmin,ymin,xmax,ymax,class`, in any order and under the usual other names.

Source: TensorFlow's object detection tutorials write `filename,width,height,class,xmin,ymin,xmax,ymax`;
keras-retinanet's `path,x1,y1,x2,y2,class` has no heading, nor have SKU-110K's tables, with sizes behind these; Make
Sense writes `class,x,y,width,height,filename,…` without one; competitions at Kaggle have `image_id,…,bbox` with
`[x, y, width, height]`, or columns for these; Global Wheat 2021 has all boxes of an image in one cell. Corners count
pixels from 0, the last one not included. Open Images (https://storage.googleapis.com/openimages/web/download_v7.html)
writes shares, codes for classes, and `IsGroupOf`. Google's AutoML and Vertex AI write `set,path,label` and up to four
corners in shares without a heading. Any table whose numbers are all shares is one of shares.
"""

import csv
import io
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
    nameless_for_training,
    one_line,
    read_text,
    split_in_name,
    split_in_path,
    visible_files,
)
from .pairs import names_on_disk
from .yolo import MOST, SLACK

# names of columns in small letters, without what separates words: `Image ID`, `image_id` and `imageId` are `imageid`
FILE = (
    *("filename", "file", "image", "imagename", "imagepath", "imgpath", "path", "imageid", "imgid", "img", "imgname"),
    *("imagefilename", "imagefile", "filepath", "fname", "frame", "patientid"),
)
CLASS_ID = ("classid", "categoryid", "labelid")
LABEL = (  # names first: where there is one of these, `class` may be its number
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
XYWH = (  # the top left corner; of fractions perhaps the center, as in YOLO's files
    ("x", "y", "w", "h"), ("x", "y", "width", "height"), ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
)  # fmt: skip
CENTRES = tuple(
    (*center, *sides)
    for center in (("xcenter", "ycenter"), ("centerx", "centery"), ("cx", "cy"), ("xc", "yc"))
    for sides in (("w", "h"), ("width", "height"))
)
LIST = ("bbox",)  # [x, y, width, height]
STRING = ("boxesstring",)  # x0 y0 x1 y1;x0 y0 x1 y1
FORMS = {"corners": CORNERS, "sides": SIDES, "xywh": XYWH, "centres": CENTRES, "list": (LIST,), "string": (STRING,)}
SPLIT = ("split", "set", "subset", "partition", "datasplit")
EMPTY = ("", "nan", "na", "n/a", "null", "none", "no_box")  # what stands for no number
NO_BOX = ([0, 0, 0, 0], [-1, -1, -1, -1], [0, 0, 1, 1])  # what stands for no box; the last one where boxes are pixels
ONE_CLASS = "object"  # where no column names classes
GROUP = "isgroupof"
WHOLE = re.compile(r"(?<=\d)\.0+$")  # the end of a whole number as pandas writes it in a column with gaps


class Columns(NamedTuple):
    """Where each value stands; -1: nowhere."""

    file: int
    label: int
    box: tuple[int, ...]
    form: str  # one of FORMS
    size: tuple[int, int] = (-1, -1)
    group: int = -1
    split: int = -1
    class_id: int = -1
    in_shares: bool = False
    has_heading: bool = True


BARE = Columns(0, 5, (1, 2, 3, 4), "corners", has_heading=False)  # keras-retinanet
BARE_WITH_SIZES = BARE._replace(size=(6, 7))  # SKU-110K
BARE_BY_CLASS = Columns(5, 0, (1, 2, 3, 4), "sides", (6, 7), has_heading=False)  # Make Sense
BARE_BY_SPLIT = Columns(1, 2, (3, 4, 7, 8), "corners", split=0, in_shares=True, has_heading=False)  # AutoML
AUTOML_SPLITS = ("TRAIN", "VALIDATION", "TEST", "UNASSIGNED")
DECIMAL_COMMA = re.compile(r"\s*(-?\d+),(\d+)\s*")


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
            both = " and ".join(one.relative_to(folder).as_posix() for one in (named[part_of], file))
            what = f"{both} may both be the boxes of {part_of or 'train'}"
            text = f'format = "csv"\n[train]\nannotations = "{file.relative_to(folder).as_posix()}"\nimages = "."'
            fix = f"leave one of them there, or write a dataset.toml that names it, such as\n{text}"
            raise DataError(what, code="DATA-LAYOUT", where=folder, fix=fix)
        named[part_of] = file
    tables = nameless_for_training(named)
    return csv_layout("CSV", tables, folder, lambda name, file: image_roots(folder, name, file))


def csv_layout(
    kind: str, tables: dict[str, Path], folder: Path, roots: Callable[[str, Path], list[Path]]
) -> Layout | None:
    """The layout of these tables.

    A column with several splits in a table tells the split of each row; a split that has a table of its own keeps it.

    Args:
        roots: the folders that may hold the images of a split and its table.
    """
    names = _descriptions(folder)
    found: set[tuple[str, str]] = set()
    files: dict[str, tuple[Path, str]] = {}  # the table of each split, and the part of its rows, or an empty text
    for name, file in tables.items():
        rows = list(read_rows(file))
        in_shares = _are_shares(rows)
        boxes = (row for row in rows if row.label and row.has_box and not row.stands_for_no_box(in_shares))
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
    """The classes by their ids, from pairs of a name and an id; or by name and no ids, where a class has no number of
    its own.
    """
    names, numbers = {name for name, _ in found}, {number for _, number in found}
    if not len(names) == len(numbers) == len(found) or not all(number.isdecimal() for number in numbers):
        return tuple(sorted(names)), ()
    by_id = sorted((int(number), name) for name, number in found)
    return tuple(name for _, name in by_id), tuple(number for number, _ in by_id)


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
    part: str  # the split that the row tells, or an empty text
    class_id: str

    @property
    def has_box(self) -> bool:
        """Whether the row has any number of a box; one that has none says that its image has no objects."""
        return any(value.lower() not in EMPTY for value in self.box)

    def stands_for_no_box(self, in_shares: bool) -> bool:
        """Whether the numbers are what tables write where there is no box, if the class has no other."""
        return _numbers(self.box) in (NO_BOX[:2] if in_shares else NO_BOX)


def read_csv(split: Split, findings: Findings) -> RawAnnotations:
    """Images are numbered from 1 in the order in which they appear; a row without a box is an image without objects.

    Such a row often has a word like `No finding` for a class, which is no class, and may have zeros for a box.
    """
    columns = _columns(_rows(split.annotations)[:1]) or BARE
    rows = list(read_rows(split.annotations))
    in_shares = columns.in_shares or _are_shares(rows)
    names, numbers, sizes = _descriptions(split.folder or split.annotations.parent), {}, {}
    boxes, wrong, no_classes, of_no_split = [], [], set(), []
    for row in rows:
        if split.part not in ("", row.part):
            of_no_split += [] if row.part else [f"line {row.line}"]
            continue
        number = numbers.setdefault(row.file, len(numbers) + 1)
        sizes[number] = row.size
        label = names.get(row.label, row.label)
        has_class = columns.label >= 0 and label in split.classes
        if not row.has_box or (row.stands_for_no_box(in_shares) and not has_class):
            no_classes |= {label} - {"", *split.classes}
            continue
        corners = _corners(row.box, columns.form)
        if corners is None or label not in split.classes:
            wrong.append(f"line {row.line}: {row.file} {','.join(row.box)} {row.label}")
        else:
            boxes.append(NamedBox(number, label, corners, f"line {row.line}", row.is_group))
    findings.add("DATA-CSV", "rows whose box is not four numbers and a class", wrong)
    what = "rows left out, as their column of splits tells none that is known"
    findings.add("DATA-SPLIT", what, of_no_split, level=NOTE, fix="write train, val or test there")
    findings.add("DATA-IMAGE-EMPTY", "no classes, as no row of theirs has a box", sorted(no_classes))
    if columns.label < 0:
        _report_one_class(split.annotations, columns, len(boxes), findings)
    if in_shares and not columns.in_shares:
        what = f"no number of a box is above {MOST}, so all are read as fractions of the image's width and height"
        findings.add(
            "DATA-BOX-SHARES", what, count=len(boxes), level=NOTE, fix="write pixels if they are not fractions"
        )
    if in_shares and columns.form in ("xywh", "list"):
        _check_origin(boxes, findings)
    declared_sizes = [[int(v) if v.strip().isdigit() else 0 for v in sizes[n]] for n in numbers.values()]
    files = names_on_disk(list(numbers), split.image_roots)
    return named_table(split, files, boxes, declared_sizes, in_shares)


def _report_one_class(file: Path, columns: Columns, num_boxes: int, findings: Findings) -> None:
    """Say that no column has classes, and which columns are not read, of which one may have them."""
    used = {columns.file, *columns.box, *columns.size, columns.group, columns.split}
    heading = _rows(file)[0] if columns.has_heading else []
    others = [one_line(cell) for at, cell in enumerate(heading) if at not in used and cell.strip()]
    advice = f"; not read: {', '.join(others)} (call a column of classes `class`)" if others else ""
    findings.add("DATA-FILLED", f"no column names classes: all are `{ONE_CLASS}`{advice}", count=num_boxes)


def _check_origin(boxes: Sequence[NamedBox], findings: Findings) -> None:
    """Refuse fractions whose x and y may be centers: then, too, all boxes lie in their images."""
    corners = np.array([box.corners for box in boxes]).reshape(-1, 4)
    half = (corners[:, 2:] - corners[:, :2]) / 2
    centered = corners - np.tile(half, 2)
    if ((centered >= -SLACK) & (centered <= 1 + SLACK)).all():
        what = "boxes are fractions, and it is unclear whether x and y are the center or the top left corner"
        fix = "call the columns cx,cy,w,h if they are the center, or left,top,width,height"
        findings.add("DATA-CSV", what, count=len(boxes), fix=fix)


def _are_shares(rows: Iterable[CsvRow]) -> bool:
    """Whether boxes are fractions of their images: none has a number above MOST, and not all numbers are whole."""
    has_fraction = False
    for row in rows:
        numbers = _numbers(row.box) if row.has_box else []
        if max(map(abs, numbers), default=0) > MOST:
            return False
        has_fraction = has_fraction or any(number % 1 for number in numbers)
    return has_fraction


def _numbers(values: list[str]) -> list[float]:
    """The four finite numbers of a box, or none."""
    try:
        numbers = [*map(float, values)]
    except ValueError:
        return []
    return numbers if len(numbers) == 4 and all(abs(value) < 1e9 for value in numbers) else []


def _corners(values: list[str], form: str) -> tuple[float, float, float, float] | None:
    numbers = _numbers(values)
    if not numbers:
        return None
    a, b, c, d = numbers
    if form in ("corners", "string"):
        return a, b, c, d
    return (a - c / 2, b - d / 2, a + c / 2, b + d / 2) if form == "centres" else (a, b, a + c, b + d)


def read_rows(file: Path) -> Iterator[CsvRow]:
    """Every box, and every image without one, that a row names."""
    rows = _rows(file)
    columns = _columns(rows[:1]) or BARE
    for line, cells in enumerate(rows, start=1):
        name = _cell(cells, columns.file).replace("\\", "/").removeprefix("./")
        if not name or (line == 1 and columns.has_heading):
            continue
        label = ONE_CLASS if columns.label < 0 else one_line(_cell(cells, columns.label))
        size = (_cell(cells, columns.size[0]), _cell(cells, columns.size[1]))
        is_group, part = _cell(cells, columns.group) == "1", split_in_name(_cell(cells, columns.split))
        class_id = label if columns.class_id < 0 else WHOLE.sub("", _cell(cells, columns.class_id))
        label = class_id if columns.label == columns.class_id >= 0 else label
        for box in _boxes(cells, columns):
            yield CsvRow(line, name, label, box, size, is_group, part, class_id)


def _boxes(cells: list[str], columns: Columns) -> list[list[str]]:
    """The numbers of each box of a row, as text."""
    values = [_cell(cells, at) for at in columns.box]
    if columns.form == "list":
        return [re.split(r"[,\s]+", values[0].strip("[]() "))]
    return [box.split() for box in values[0].split(";")] if columns.form == "string" else [values]


def _cell(cells: list[str], at: int) -> str:
    return cells[at].strip() if 0 <= at < len(cells) else ""


def _rows(file: Path, strict: bool = True) -> list[list[str]]:
    text = read_text(file, strict)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    return [[_with_point(cell) for cell in row] for row in rows] if delimiter == ";" else rows


def _with_point(cell: str) -> str:
    """A cell of a table that semicolons separate, as spreadsheets write it where 1.5 is 1,5."""
    match = DECIMAL_COMMA.fullmatch(cell)
    return f"{match[1]}.{match[2]}" if match else cell


def _columns(first: list[list[str]]) -> Columns | None:
    """Where each value stands, by the heading; None where the table is not one of boxes."""
    if not first:
        return None
    written = [cell.strip().lower() for cell in first[0]]
    heading = [re.sub(r"[\s_.-]", "", cell) for cell in written]
    file, label, group, split, number = (_one(heading, names) for names in (FILE, LABEL, [GROUP], SPLIT, CLASS_ID))
    for form, forms in FORMS.items():
        box = next((names for names in forms if set(names) <= set(heading)), ())
        if file >= 0 and box:
            size = next((pair for pair in SIZE if set(pair) <= {*heading} - {*box}), ("", ""))
            at = (_one(heading, [size[0]]), _one(heading, [size[1]]))
            of_open_images = {"imageid", "labelname"} <= set(written)
            places = tuple(heading.index(name) for name in box)
            return Columns(file, label, places, form, at, group, split, number, of_open_images)
    return _bare_columns(first[0])


def _bare_columns(cells: list[str]) -> Columns | None:
    """Where each value stands in a table without a heading, by its first row; None where it is not one of boxes."""
    automl = len(cells) == 11 and cells[0].strip().upper() in AUTOML_SPLITS
    if automl and all(map(_is_bare_number, cells[3:])):
        return BARE_BY_SPLIT
    if len(cells) not in (6, 8) or not all(_is_bare_number(cell) for cell in (*cells[1:5], *cells[6:])):
        return None
    if len(cells) == 6:
        return BARE
    return BARE_BY_CLASS if Path(cells[5].strip()).suffix.lower() in IMAGE_SUFFIXES else BARE_WITH_SIZES


def _is_bare_number(cell: str) -> bool:
    text = cell.strip()
    return text.replace(".", "", 1).isdigit() or not text


def _one(heading: list[str], names: Sequence[str]) -> int:
    return next((heading.index(name) for name in names if name and name in heading), -1)
