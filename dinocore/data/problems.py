"""Collects what is wrong with an annotation file, so that a user sees all kinds of fault at once."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeGuard

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
        wrong = [v for v in values if not is_number(v) or v % 1]
        self.add(f"`{key}` in `{table}` that is not a whole number", [repr(v)[:40] for v in wrong])
        self.stop()
        return np.array([int(v) for v in values], dtype=np.int64)

    def unique(self, ids: np.ndarray, table: str) -> None:
        """Every id of a table is there once."""
        values, counts = np.unique(ids, return_counts=True)
        self.add(f"ids that appear more than once in `{table}`", values[counts > 1].tolist())

    def known(
        self, rows: Sequence[Mapping[str, Any]], ids: np.ndarray, known: np.ndarray, key: str, table: str
    ) -> None:
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

    def file_names(self, images: Sequence[Mapping[str, Any]]) -> list[str]:
        """Names that stay within the picture folder."""
        names = [str(image["file_name"]).replace("\\", "/") for image in images]
        wrong = [i for i, name in enumerate(names) if not _stays_inside(name)]
        self.add(
            "`file_name` that is no file name or leads out of the picture folder",
            [f"image {images[i]['id']}: {str(images[i]['file_name'])[:60]!r}" for i in wrong],
        )
        return [str(PurePosixPath(name)) for name in names]


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    try:
        os.fsencode(name)  # JSON can write text that no system takes for a name
    except UnicodeEncodeError:
        return False
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name and bool(path.parts)


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(is_number(v) for v in box)


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, and nothing that Python only takes for a number; 2**63 is more than any picture or id needs."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _show(row: Mapping[str, Any], number: int) -> str:
    return f"annotation {row.get('id', f'number {number}')}: {str(row['bbox'])[:60]}"
