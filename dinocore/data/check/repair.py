"""Repair COCO annotations and log every change. Nothing is guessed; rows that cannot be repaired are dropped."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools import mask

from ...config import DataConfig
from ...errors import DataError
from ..formats.coco import is_area, is_crowd, is_number, is_side
from ..images import image_size
from ..split import PathGuard, stays_inside, tails
from ..validate import similar_names

Rows = list[dict[str, Any]]


class Change(NamedTuple):
    """A change to a row; `row` is its index in the original file, from 0."""

    table: str
    row: int
    id: Any
    change: str
    before: Any = None
    after: Any = None


class Repair:
    """Repairs a parsed COCO file in place, table by table."""

    def __init__(self, document: Any, root: Path, folder: Path, config: DataConfig):
        self.document = document if isinstance(document, dict) else {}
        self.root = root
        self.guard = PathGuard(folder, config.follow_symlinks)
        self.config = config
        # for names that lead out of the folder: the file here, and the number of names that may mean it
        self.names: dict[str, tuple[str, int]] = {}
        # for names without a file: the only file with a similar name
        self.similar: dict[str, str] = {}
        self.changes: list[Change] = []
        # new ids for ids that are texts
        self.renumbered: dict[str, dict[str, int]] = {"images": {}, "categories": {}, "annotations": {}}

    def run(self) -> tuple[dict[str, Any], list[Change]]:
        """The repaired document, and the changes."""
        rows = self._rows("images")
        self.names = self._find_foreign_names([row.get("file_name") for _, row in rows])
        self.similar = self._similar([row.get("file_name") for _, row in rows])
        images = [(n, row) for n, row in rows if self._image(n, row)]
        images = self._numbered("images", images)
        kinds = [(n, row) for n, row in self._rows("categories") if self._category(n, row)]
        kinds = self._numbered("categories", kinds, drop_duplicates=True)
        sizes: dict[int, tuple[int, int]] = {row["id"]: (row["width"], row["height"]) for _, row in images}
        known = {row["id"] for _, row in kinds}
        objects = [(n, row) for n, row in self._rows("annotations") if self._object(n, row, sizes, known)]
        objects = self._numbered("annotations", objects)
        tables = {"images": images, "categories": kinds, "annotations": objects}
        return self.document | {name: [row for _, row in rows] for name, rows in tables.items()}, self.changes

    def _log(self, table: str, row: int, entry: Any, change: str, before: Any = None, after: Any = None) -> bool:
        """Log a change. Returns False, so that callers can drop the row with `return self._log(...)`."""
        name = entry.get("id") if isinstance(entry, dict) else None
        self.changes.append(Change(table, row, _loggable(name), change, _loggable(before), _loggable(after)))
        return False

    def _rows(self, table: str) -> list[tuple[int, dict[str, Any]]]:
        rows = self.document.get(table)
        if not isinstance(rows, list):
            self._log(table, -1, None, "not a list, replaced by an empty one")
            rows = []
        for n, row in enumerate(rows):
            if not isinstance(row, dict):
                self._log(table, n, row, "dropped: not an object", row)
        return [(n, row) for n, row in enumerate(rows) if isinstance(row, dict)]

    def _to_integer(self, table: str, n: int, row: dict[str, Any], key: str) -> bool:
        """Convert an id such as "7" or 7.0 to an integer; False if that is not possible."""
        value = row.get(key)
        if type(value) is int and abs(value) < 2**63:
            return True
        number = _as_number(value)
        if number is None or number % 1:
            return False
        self._log(table, n, row, f"`{key}` converted to a whole number", value, int(number))
        row[key] = int(number)
        return True

    def _find_foreign_names(self, names: Sequence[Any]) -> dict[str, tuple[str, int]]:
        """For each name that leads out of the folder, the file here that it may mean, and how many names may mean it.

        The file is the longest end of the path that exists, or an empty text. Only a file that a single name may mean
        is used, so that folders with the same file names are not mixed up.
        """
        texts = [name.replace("\\", "/") for name in names if isinstance(name, str)]
        outside = {name for name in texts if not stays_inside(name)}
        files = {name: next((tail for tail in tails(name) if self._status(tail) == "ok"), "") for name in outside}
        uses = Counter(files.get(name, name) for name in set(texts))
        given = [name for name in names if isinstance(name, str)]
        return {name: (files[key], uses[files[key]]) for name in given if (key := name.replace("\\", "/")) in outside}

    def _similar(self, names: Sequence[Any]) -> dict[str, str]:
        """Files for names that are spelled differently, found in the same way as when annotations are read."""
        given = [name for name in names if isinstance(name, str)]
        texts = [name.replace("\\", "/") for name in given]
        missing = [i for i, text in enumerate(texts) if stays_inside(text) and self._status(text) == "missing"]
        found = similar_names(texts, missing, self.root, self.config.follow_symlinks) if missing else {}
        return {given[i]: name for i, name in found.items()}

    def _status(self, name: str) -> str:
        return self.guard.status(f"{self.root}/{name}")

    def _image(self, n: int, row: dict[str, Any]) -> bool:
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            return self._log("images", n, row, "dropped: no `file_name`", name)
        if not stays_inside(name.replace("\\", "/")):
            own, sharing = self.names.get(name, ("", 0))
            if sharing > 1:
                return self._log("images", n, row, f"dropped: {sharing} entries may mean {own}", name)
            if not own:
                return self._log("images", n, row, "dropped: no `file_name` within the data folder", name)
            self._log("images", n, row, "`file_name` set to the image in the folder", name, own)
            name = row["file_name"] = own
        if name in self.similar:
            self._log("images", n, row, "`file_name` set to the name on disk", name, self.similar[name])
            name = row["file_name"] = self.similar[name]
        here = name if self._status(name) == "ok" else name.replace("\\", "/")
        if (state := self._status(here)) != "ok":
            why = "there is no such file" if state == "missing" else "a link leads out of the data folder"
            return self._log("images", n, row, f"dropped: {why}", name)
        if not all(is_side(row.get(key)) for key in ("width", "height")):
            try:
                size = image_size(self.root / here, self.config)
            except DataError as error:
                return self._log("images", n, row, f"dropped: {error.what}", name)
            self._log("images", n, row, "size read from the file", (row.get("width"), row.get("height")), size)
            row["width"], row["height"] = size
        return True

    def _category(self, n: int, row: dict[str, Any]) -> bool:
        if not (self._to_integer("categories", n, row, "id") or isinstance(row.get("id"), str)):
            return self._log("categories", n, row, "dropped: no id", row.get("id"))
        if not isinstance(row.get("name"), str):
            self._log("categories", n, row, "named", row.get("name"), str(row.get("name") or f"class {row['id']}"))
            row["name"] = str(row.get("name") or f"class {row['id']}")
        return True

    def _object(self, n: int, row: dict[str, Any], sizes: dict[int, tuple[int, int]], known: set[int]) -> bool:
        for key, table, ids in (("image_id", "images", sizes), ("category_id", "categories", known)):
            before = row.get(key)
            if isinstance(before, str) and before in self.renumbered[table]:
                row[key] = self.renumbered[table][before]
                self._log("annotations", n, row, f"`{key}` as renumbered", before, row[key])
            elif not self._to_integer("annotations", n, row, key) or row[key] not in ids:
                return self._log("annotations", n, row, f"dropped: unknown `{key}`", row.get(key))
        box = row.get("bbox")
        values = _four_numbers(box)
        if values is None and (values := extent(row.get("segmentation"))) is not None:
            self._log("annotations", n, row, "`bbox` set to the extent of its `segmentation`", box, values)
            box = row["bbox"] = values
        if values is None:
            return self._log("annotations", n, row, "dropped: `bbox` is not four finite numbers", box)
        if min(values[2:]) <= 0:
            return self._log("annotations", n, row, "dropped: no width or height", box)
        clipped = _clip(values, sizes[row["image_id"]])
        if min(clipped[2:]) <= 0:
            return self._log("annotations", n, row, "dropped: outside its image", box)
        self._set_box(n, row, clipped)
        return True

    def _set_box(self, n: int, row: dict[str, Any], box: list[float]) -> None:
        """Set the box, and the area and crowd flag if they are invalid."""
        changed = box != row["bbox"]
        if changed:
            self._log("annotations", n, row, "box clipped to its image", row["bbox"], box)
            row["bbox"] = box
        if changed or not is_area(row.get("area")):
            self._log("annotations", n, row, "`area` set to width x height", row.get("area"), box[2] * box[3])
            row["area"] = box[2] * box[3]
        if row.get("iscrowd") not in (0, 1):
            crowd = int(is_crowd(row.get("iscrowd")))
            self._log("annotations", n, row, "`iscrowd` filled in", row.get("iscrowd"), crowd)
            row["iscrowd"] = crowd

    def _numbered(
        self, table: str, rows: list[tuple[int, dict[str, Any]]], drop_duplicates: bool = False
    ) -> list[tuple[int, dict[str, Any]]]:
        """Give every row a unique id. The first row with an id keeps it, and the objects that refer to it.

        Args:
            drop_duplicates: drop the other rows with that id, instead of renumbering them.
        """
        taken: set[int] = set()
        kept, to_renumber = [], []
        for n, row in rows:
            is_integer = self._to_integer(table, n, row, "id")
            if is_integer and row["id"] not in taken and (row["id"] or table != "annotations"):
                taken.add(row["id"])
                kept.append((n, row))
            elif is_integer and drop_duplicates:
                self._log(table, n, row, "dropped: its id is taken", row["id"])
            else:
                to_renumber.append((n, row))
        free = max(taken, default=0) + 1
        for number, (n, row) in enumerate(to_renumber, start=free):
            before = row.get("id")
            self._log(table, n, row, "renumbered", before, number)
            row["id"] = number
            if isinstance(before, str):
                self.renumbered[table].setdefault(before, number)
        return sorted(kept + to_renumber, key=lambda pair: pair[0])


def likely_root(document: Any, roots: Sequence[Path]) -> Path | None:
    """The first folder that has one of the first images, under its path without leading folders."""
    rows = document.get("images") if isinstance(document, dict) else None
    names = [row.get("file_name") for row in (rows if isinstance(rows, list) else [])[:20] if isinstance(row, dict)]
    ends = [tails(name) for name in names if isinstance(name, str) and "\0" not in name]
    # the bare file name counts only if no path with a folder exists in any root
    for with_folders in (True, False):
        for root in roots:
            for parts in ends:
                if any(os.path.lexists(root / name) for name in (parts[:-1] if with_folders else parts[-1:])):
                    return root
    return None


def _clip(box: list[float], size: tuple[int, int]) -> list[float]:
    x0, y0 = max(box[0], 0), max(box[1], 0)
    x1, y1 = min(box[0] + box[2], size[0]), min(box[1] + box[3], size[1])
    inside = (x0, y0, x1) == (box[0], box[1], box[0] + box[2]) and y1 == box[1] + box[3]
    return box if inside else [x0, y0, x1 - x0, y1 - y0]


def _four_numbers(box: Any) -> list[float] | None:
    numbers = [_as_number(v) for v in box] if isinstance(box, list) and len(box) == 4 else []
    values = [v for v in numbers if v is not None]
    return values if len(values) == 4 else None


def extent(segmentation: Any) -> list[float] | None:
    """The bounding box, x y width height, of COCO's polygons or run lengths; None for anything else."""
    if isinstance(segmentation, dict):
        return _extent_of_runs(segmentation)
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return None
    if not all(is_number(v) for polygon in segmentation for v in polygon):
        return None
    xs, ys = ([v for polygon in segmentation for v in polygon[start::2]] for start in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] if len(ys) > 2 else None


def _extent_of_runs(runs: dict[str, Any]) -> list[float] | None:
    size, counts = runs.get("size"), runs.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(map(is_side, size))):
        return None
    height, width = map(int, size)
    encoded: Any = {"size": [height, width], "counts": counts}
    try:
        if isinstance(counts, list):
            encoded = mask.frPyObjects(encoded, height, width)
        box = mask.toBbox(encoded).tolist()
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None
    return box if all(map(is_number, box)) else None


def _as_number(value: Any) -> float | None:
    """A finite number, possibly given as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
        except ValueError:
            return None
    return value if is_number(value) and math.isfinite(value) else None


def _loggable(value: Any) -> Any:
    """A value for the log, which can be written as JSON; texts are cut off after 200 characters."""
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**63:
        return value
    return None if value is None else str(value)[:200]
