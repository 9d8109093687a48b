"""Read results files in COCO's format."""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import msgspec
import numpy as np

from ..data.annotations import Annotations
from ..data.formats.coco import is_number, parse_json
from ..errors import DataError
from ..words import counted

IDS = ("image_id", "category_id")
MAX_SHOWN = 40  # characters of an invalid value in messages
Sides = Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]


class ResultRow(TypedDict):
    """One detection; `bbox` is x y width height in pixels."""

    image_id: int
    category_id: int
    bbox: Sides
    score: float


class Results(NamedTuple):
    """Detections that can be evaluated, and messages about skipped ones."""

    rows: list[dict[str, Any]]
    notes: list[str]


def read_results(path: Path, annotations: Annotations, allow_orphans: bool = False) -> Results:
    """Read and check results for these annotations; fields that detection doesn't need are dropped.

    If classes with the same name were merged, results of all of them count for the class that was kept.

    Args:
        allow_orphans: skip results of images and classes that the annotations don't have.

    Raises:
        DataError: the file is missing or not a list of results, has non-finite numbers, or has results of unknown
            images or classes.
    """
    rows = _decode(path)
    if merged := dict(annotations.merged_ids):
        rows = [row | {"category_id": merged.get(row["category_id"], row["category_id"])} for row in rows]
    numbers = np.array([[*row["bbox"], row["score"]] for row in rows]).reshape(-1, 5)
    wrong = np.flatnonzero(~np.isfinite(numbers).all(1)).tolist()
    if wrong:
        what = f"{len(wrong)} of {len(rows)} results have a box or score that is not finite, the first one of image "
        raise DataError(f"{what}{rows[wrong[0]]['image_id']}", code="DATA-RESULTS", where=path,
                        fix="find out what produced them; COCO's tools would evaluate them silently")  # fmt: skip
    known_ids = {
        "image_id": (("image",), set(annotations.image_ids.tolist())),
        "category_id": (("class", "classes"), {category.id for category in annotations.categories}),
    }
    notes = [_orphans(rows, key, name, known) for key, (name, known) in known_ids.items()]
    if any(notes) and not allow_orphans:
        raise DataError(f"{' and '.join(filter(None, notes))} {annotations.file} doesn't have", code="DATA-RESULTS",
                        where=path)  # fmt: skip
    kept = [row for row in rows if all(row[key] in known for key, (_, known) in known_ids.items())]
    return Results(kept, [f"skipped, {note} the annotations don't have" for note in notes if note])


def _orphans(rows: list[Any], key: str, noun: tuple[str, ...], known: set[int]) -> str:
    """A message about results of unknown images or classes, or an empty text."""
    ids = [row[key] for row in rows if row[key] not in known]
    first = ", ".join(map(str, sorted(set(ids))[:5]))
    return (
        f"{len(ids)} of {len(rows)} results are of {counted(len(set(ids)), *noun)} ({key} {first}) that" if ids else ""
    )


def _decode(path: Path) -> list[Any]:
    """Decode with msgspec or, if that fails, with json, which accepts NaN and ids such as 1.0, and check each row."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[ResultRow])
    except (OSError, ValueError, RecursionError):
        pass
    try:
        document = parse_json(path)
    except DataError as error:
        raise _invalid_results(error.what, path) from None
    if not isinstance(document, list):
        raise _invalid_results(f"it is not a results file: its top level is {_shown(document)}, not a list", path)
    if faults := [(i, fault) for i, row in enumerate(document) if (fault := _fault(row))]:
        first, fault = faults[0]
        what = f"{len(faults)} of {len(document)} results are invalid; in result {first} (counted from 0), {fault}"
        raise _invalid_results(what, path)
    return [
        {key: int(row[key]) for key in IDS} | {"bbox": [*map(float, row["bbox"])], "score": float(row["score"])}
        for row in document
    ]


def _invalid_results(what: str, path: Path) -> DataError:
    fix = "give a JSON list of {image_id, category_id, bbox, score}, such as `dino eval --out FILE` writes"
    return DataError(what, code="DATA-RESULTS", where=path, fix=fix)


def _fault(row: Any) -> str:
    """Why a row is invalid, or an empty text; NaN is allowed here and reported by `read_results`."""
    if not isinstance(row, dict):
        return f"the entry is {_shown(row)}, not an object"
    if missing := [f"`{key}`" for key in ResultRow.__annotations__ if key not in row]:
        return f"it lacks {', '.join(missing)}"
    if wrong := [key for key in IDS if not (is_number(row[key]) and row[key] % 1 == 0)]:
        return f"`{wrong[0]}` is {_shown(row[wrong[0]])}, not a whole number"
    box = row["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_coordinate, box))):
        return f"`bbox` is {_shown(box)}, not four numbers"
    return "" if _is_coordinate(row["score"]) else f"`score` is {_shown(row['score'])}, not a number"


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, float) or is_number(value)


def _shown(value: Any) -> str:
    """The start of a value as JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
