"""Collects what is wrong with an annotation file, so that a user sees all kinds of fault at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from ..errors import DataError

SHOWN = 5  # offenders of each kind


class Problems:
    """Checks of one annotation file; `stop` raises if any of them failed."""

    def __init__(self, file: Path):
        self.file = file
        self.found: list[str] = []

    def add(self, what: str, offenders: Sequence[Any]) -> None:
        """Note a kind of fault, if there are offenders."""
        if len(offenders):
            more = f" and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
            self.found.append(f"{what}: {', '.join(str(o) for o in list(offenders)[:SHOWN])}{more}")

    def stop(self) -> None:
        """Raise a DataError if anything was found."""
        if self.found:
            self.fail("; ".join(self.found))

    def fail(self, why: str) -> NoReturn:
        """Raise now: what follows makes no sense with this fault."""
        raise DataError(f"{self.file} cannot be used: {why}")

    def table(self, content: Any, key: str, required: Sequence[str]) -> list[Mapping[str, Any]]:
        """A list of objects of the file, each with the required entries."""
        if not isinstance(content, dict):
            self.fail("its top level is not an object with `images`, `annotations` and `categories`")
        rows = content.get(key)
        if not isinstance(rows, list):
            self.fail(f"it has no list `{key}`; COCO annotations have `images`, `annotations` and `categories`")
        for name in required:
            missing = [i for i, row in enumerate(rows) if not isinstance(row, dict) or row.get(name) is None]
            self.add(f"entries of `{key}` without `{name}` (counted from 0)", missing)
        self.stop()
        return rows

    def ids(self, rows: Sequence[Mapping[str, Any]], key: str, table: str) -> np.ndarray:
        """Whole numbers, (rows,) int64; 1.0 counts as 1."""
        values = [row[key] for row in rows]
        wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float) or v != v or v % 1 or abs(v) >= 2**63]
        self.add(f"`{key}` in `{table}` that is not a whole number", [repr(v)[:40] for v in wrong])
        self.stop()
        return np.array([int(v) for v in values], dtype=np.int64)

    def unique(self, ids: np.ndarray, table: str) -> None:
        """Every id of a table is there once."""
        values, counts = np.unique(ids, return_counts=True)
        self.add(f"ids that appear more than once in `{table}`", values[counts > 1].tolist())

    def known(self, rows: Sequence[Mapping[str, Any]], ids: np.ndarray, known: np.ndarray, key: str, table: str) -> None:
        """Every id refers to something."""
        lost = np.flatnonzero(~np.isin(ids, known))
        named = [f"annotation {rows[i].get('id', f'number {i}')} -> {ids[i]}" for i in lost[:SHOWN]]
        self.add(f"`{key}` that is not in `{table}`", named + [""] * (len(lost) - len(named)))

    def boxes(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Boxes of four finite numbers, (rows, 4) float64."""
        wrong = [i for i, row in enumerate(rows) if not _is_box(row["bbox"])]
        self.add("annotations whose `bbox` is not four finite numbers", [_show(rows[i], i) for i in wrong])
        self.stop()
        return np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)

    def file_name(self, image: Mapping[str, Any]) -> str:
        """A name that stays within the picture folder."""
        name = str(image["file_name"])
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
            self.fail(f"the file_name {name!r} of image {image['id']} leads out of the picture folder")
        return str(path)


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in box
    )  # fmt: skip
    return numbers and bool(np.isfinite(np.array(box, dtype=np.float64)).all())


def _show(row: Mapping[str, Any], number: int) -> str:
    return f"annotation {row.get('id', f'number {number}')}: {str(row['bbox'])[:60]}"
