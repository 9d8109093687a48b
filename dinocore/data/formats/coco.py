"""Read a COCO file as raw annotations: every value is checked; invalid ones become findings and are dropped."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np

from ...errors import DataError
from ...words import counted
from ..findings import Findings
from ..split import Category, RawAnnotations, Split, one_line
from .suggestion import marks_of_json, tool_of

EXAMPLE = """write a file such as
  {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
   "categories": [{"id": 1, "name": "cell"}],
   "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}]}
  where bbox is x, y, width, height in pixels"""


class ImageRow(msgspec.Struct, gc=False):
    """A row of `images`. The values are not checked yet."""

    id: Any = None
    file_name: Any = None
    coco_url: Any = None
    width: Any = None
    height: Any = None


class CategoryRow(msgspec.Struct, gc=False):
    """A row of `categories`."""

    id: Any = None
    name: Any = None
    supercategory: Any = None


class ObjectRow(msgspec.Struct, gc=False):
    """A row of `annotations`. Polygons, which make up most of a COCO file, are skipped."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = None


class CocoFile(msgspec.Struct, gc=False):
    """The three lists of a COCO file."""

    images: list[ImageRow] | None = None
    categories: list[CategoryRow] | None = None
    annotations: list[ObjectRow] | None = None


ROWS = {"images": ImageRow, "categories": CategoryRow, "annotations": ObjectRow}
REQUIRED = {"images": ("id", "file_name"), "categories": ("id", "name"),
            "annotations": ("image_id", "category_id", "bbox")}  # fmt: skip


def read_coco(split: Split, findings: Findings) -> RawAnnotations:
    """Read the COCO file of a split.

    Raises:
        DataError: the file is not valid JSON or not a COCO file.
    """
    content = _decode(split.annotations, findings)
    _set_names_from_urls(content.images or [])
    images = _complete(content.images or [], "images", findings)
    categories = _complete(content.categories or [], "categories", findings)
    _set_missing_ids(content.annotations or [], findings)
    objects = _complete(content.annotations or [], "annotations", findings)
    images, image_ids = _ids(images, "id", "images", findings)
    categories, category_ids = _ids(categories, "id", "categories", findings)
    objects, owners = _ids(objects, "image_id", "annotations", findings)
    objects, kinds, owners = _ids(objects, "category_id", "annotations", findings, owners)
    objects, boxes, owners, kinds = _boxes(objects, owners, kinds, findings)
    _report_filled_in(images, objects, findings)
    areas = [row.area for row in objects]
    return RawAnnotations(
        categories=[Category(i, one_line(row.name)) for i, row in zip(category_ids.tolist(), categories, strict=True)],
        headings=frozenset(str(r.supercategory) for r in categories if r.supercategory and r.supercategory != r.name),
        image_ids=image_ids,
        file_names=[str(row.file_name) for row in images],
        sizes=np.array([_size(row) for row in images], dtype=np.int64).reshape(-1, 2),
        owners=owners,
        category_ids=kinds,
        boxes=boxes,
        area=np.array([a if is_area(a) else np.nan for a in areas], dtype=np.float64),
        crowd=np.array([is_crowd(row.iscrowd) for row in objects], dtype=bool),
        name=_object_namer(objects),
    )


def parse_json(file: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: it cannot be read or is not valid JSON; with the line and column of the first error.
    """
    try:
        # bytes, so that a byte order mark and UTF-16 are recognized
        return json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated") or error.pos >= len(error.doc) - len("-Infinity")
        where = f"line {error.lineno}, column {error.colno} of {file.stat().st_size} bytes"
        what = f"not valid JSON: {error.msg.removesuffix(' at')} at {where}" + (
            ", where the file looks cut off" if cut else ""
        )
        raise DataError(what, code="DATA-JSON", where=file) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"it cannot be read: {reason}", code="DATA-FILE", where=file) from error


def _decode(file: Path, findings: Findings) -> CocoFile:
    """Decode a COCO file with msgspec; if that fails, with json, which accepts NaN and UTF-16 and locates errors."""
    try:
        content = msgspec.json.decode(file.read_bytes(), type=CocoFile)
        if None not in (content.images, content.categories, content.annotations):
            return content
    except (OSError, ValueError, RecursionError):
        pass
    document = parse_json(file)
    if not isinstance(document, dict):
        what = "the top level is not an object with `images`, `annotations` and `categories`"
        raise _not_coco(what, document, file)
    if missing := [f"`{key}`" for key in ROWS if not isinstance(document.get(key), list)]:
        raise _not_coco(f"it lacks the list{'s' * (len(missing) > 1)} {', '.join(missing)}", document, file)
    return CocoFile(**{key: [_row(row, kind) for row in document[key]] for key, kind in ROWS.items()})


def _not_coco(what: str, document: Any, file: Path) -> DataError:
    if tool := tool_of(marks_of_json(document)):
        what = f"it is not a COCO file; it looks like {tool.name}"
        return DataError(what, code="DATA-KEYS", where=file, fix=tool.fix)
    return DataError(what, code="DATA-KEYS", where=file, fix=EXAMPLE)


def _row(row: Any, kind: type) -> Any:
    return kind(**{key: row.get(key) for key in kind.__struct_fields__}) if isinstance(row, dict) else kind()


def _set_names_from_urls(images: Sequence[ImageRow]) -> None:
    """Take missing file names from the last folder and file of the URL: LVIS has `coco_url` only."""
    for row in images:
        if row.file_name is None and isinstance(row.coco_url, str):
            row.file_name = "/".join(row.coco_url.split("/")[-2:])


def _complete(rows: list, table: str, findings: Findings) -> list:
    """The rows that have all required keys."""
    bad: set[int] = set()
    for key in REQUIRED[table]:
        missing = [i for i, row in enumerate(rows) if getattr(row, key) is None]
        findings.add("DATA-ENTRY", f"entries of `{table}` without `{key}` (counted from 0)", map(str, missing),
                     len(missing))  # fmt: skip
        bad.update(missing)
    return [row for i, row in enumerate(rows) if i not in bad] if bad else rows


def _set_missing_ids(objects: Sequence[ObjectRow], findings: Findings) -> None:
    """Fill in missing object ids and report duplicate ones, of which pycocotools silently keeps one."""
    ids = [row.id for row in objects if isinstance(row.id, int | str)]
    for i, row in enumerate(objects):
        if row.id is None:
            row.id = f"number {i}"
    if len(set(ids)) < len(ids):
        duplicates = [str(value) for value, count in Counter(ids).items() if count > 1]
        findings.add("DATA-ID-TWICE", "ids that appear more than once in `annotations`", duplicates)


def _ids(rows: list, key: str, table: str, findings: Findings, *others: np.ndarray) -> tuple:
    """Keep the rows whose `key` is an integer; 1.0 counts as 1.

    Returns:
        the rows, their numbers (rows,) int64, and each of the `others`, filtered the same way.
    """
    values = [getattr(row, key) for row in rows]
    good = None
    if not set(map(type, values)) <= {int} or (values and max(map(abs, values)) >= 2**63):
        good = np.array([is_number(v) and v % 1 == 0 for v in values], dtype=bool)
        wrong = [f"{values[i]!r:.40} in entry {i}" for i in np.flatnonzero(~good).tolist()]
        findings.add("DATA-ID", f"`{key}` in `{table}` that is not a whole number (entries counted from 0)", wrong)
        rows, values = ([x for x, fine in zip(column, good, strict=True) if fine] for column in (rows, values))
    numbers = np.array([int(v) for v in values] if good is not None else values, dtype=np.int64)
    return rows, numbers, *(other if good is None else other[good] for other in others)


def _boxes(rows: list[ObjectRow], owners: np.ndarray, kinds: np.ndarray, findings: Findings) -> tuple:
    """Keep the rows whose box is four finite numbers.

    Returns:
        the rows, their boxes (rows, 4) float64, and `owners` and `kinds`, filtered the same way.
    """
    values = [row.bbox for row in rows]
    if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
        numbers = list(chain.from_iterable(values))
        # NaN fails the comparison
        if set(map(type, numbers)) <= {int, float} and all(-(2**63) < v < 2**63 for v in numbers):
            return rows, np.array(numbers, dtype=np.float64).reshape(-1, 4), owners, kinds
    good = np.array([_has_four(v) and all(map(is_number, v)) for v in values], dtype=bool)
    name = _object_namer(rows)
    wrong = {i: f"{name(i)}: {str(values[i])[:60]}" for i in np.flatnonzero(~good).tolist()}
    infinite = [i for i in wrong if _has_four(values[i]) and all(type(v) in (int, float) for v in values[i])]
    what = "annotations whose `bbox` is not four finite numbers"
    findings.add("DATA-BOX-NAN", what, [wrong[i] for i in infinite])
    findings.add("DATA-BOX", what, [text for i, text in wrong.items() if i not in infinite])
    boxes = np.array([v for v, fine in zip(values, good, strict=True) if fine], dtype=np.float64).reshape(-1, 4)
    return [row for row, fine in zip(rows, good, strict=True) if fine], boxes, owners[good], kinds[good]


def _report_filled_in(images: list[ImageRow], objects: list[ObjectRow], findings: Findings) -> None:
    """Report missing and invalid values that are replaced; the replacement is in parentheses."""
    sizes = sum(not all(_size(row)) for row in images)
    area, crowd = sum(not is_area(row.area) for row in objects), sum(row.iscrowd is None for row in objects)
    odd = sum(row.iscrowd is not None and not _is_flag(row.iscrowd) for row in objects)
    replaced = [
        (sizes, f"`width` and `height` of {counted(sizes, 'image')} (read from the files)"),
        (area, f"`area` of {counted(area, 'object')} (width x height)"),
        (crowd, f"`iscrowd` of {counted(crowd, 'object')} (0)"),
        (odd, f"`iscrowd` of {counted(odd, 'object')} that is neither 0 nor 1 (0)"),
    ]
    if filled := [text for count, text in replaced if count]:
        findings.add("DATA-FILLED", "filled in", filled)


def _size(row: ImageRow) -> tuple[int, int]:
    good = all(is_side(side) for side in (row.width, row.height))
    return (int(row.width), int(row.height)) if good else (0, 0)


def _has_four(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4


def _object_namer(rows: Sequence[ObjectRow]) -> Callable[[int], str]:
    return lambda i: f"annotation {str(rows[i].id)[:40]}"


def is_side(value: Any) -> bool:
    """Whether a value is a valid width or height of an image; 640.0 counts as 640."""
    return is_number(value) and value % 1 == 0 and 0 < value < 2**31


def is_area(value: Any) -> TypeGuard[float]:
    """Whether a value is a valid area of an object."""
    return is_number(value) and value >= 0


def is_crowd(value: Any) -> bool:
    """Whether `iscrowd` means a crowd: 1 or true, also as text. The text "0" does not."""
    return value == 1 or (isinstance(value, str) and value.strip().lower() in ("1", "true"))


def _is_flag(value: Any) -> bool:
    return value in (0, 1) or (isinstance(value, str) and value.strip().lower() in ("0", "1", "false", "true"))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number and not a bool; below 2**63, which is more than any image or id needs."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
