"""Files of results as COCO's server takes them."""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import msgspec
import numpy as np

from ..data.annotations import Annotations
from ..errors import DataError
from ..words import counted

Sides = Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]


class ResultRow(TypedDict):
    """One detection; `bbox` is x y width height in pixels."""

    image_id: int
    category_id: int
    bbox: Sides
    score: float


class Results(NamedTuple):
    """Detections that can be judged, and what a user should know of the others."""

    rows: list[dict[str, Any]]
    notes: list[str]


def read_results(path: Path, annotations: Annotations, allow_orphans: bool = False) -> Results:
    """Read and check results for these annotations; fields that detection doesn't need are left out.

    Results of a class that is taken for another one of its name are that one's.

    Args:
        allow_orphans: leave out results of images and classes that the annotations don't have.

    Raises:
        DataError: the file is missing or no list of results, has numbers that are not finite, or results of unknown
            images or classes; with how many there are.
    """
    rows = _decode(path)
    if taken_for := dict(annotations.merged_ids):
        rows = [row | {"category_id": taken_for.get(row["category_id"], row["category_id"])} for row in rows]
    numbers = np.array([[*row["bbox"], row["score"]] for row in rows]).reshape(-1, 5)
    wrong = np.flatnonzero(~np.isfinite(numbers).all(1)).tolist()
    if wrong:
        what = f"{len(wrong)} of {len(rows)} results have a box or score that is not finite, the first one of image "
        raise DataError(f"{what}{rows[wrong[0]]['image_id']}", code="DATA-RESULTS", where=path,
                        fix="find out what made them; COCO's tools would judge them silently")  # fmt: skip
    strangers = {
        "image_id": (("image",), set(annotations.image_ids.tolist())),
        "category_id": (("class", "classes"), {category.id for category in annotations.categories}),
    }
    notes = [_orphans(rows, key, name, known) for key, (name, known) in strangers.items()]
    if any(notes) and not allow_orphans:
        raise DataError(f"{' and '.join(filter(None, notes))} {annotations.file} doesn't have", code="DATA-RESULTS",
                        where=path)  # fmt: skip
    kept = [row for row in rows if all(row[key] in known for key, (_, known) in strangers.items())]
    return Results(kept, [f"left out, {note} the annotations don't have" for note in notes if note])


def _orphans(rows: list[Any], key: str, noun: tuple[str, ...], known: set[int]) -> str:
    """How many results are of something unknown, or nothing."""
    ids = [row[key] for row in rows if row[key] not in known]
    first = ", ".join(map(str, sorted(set(ids))[:5]))
    return (
        f"{len(ids)} of {len(rows)} results are of {counted(len(set(ids)), *noun)} ({key} {first}) that" if ids else ""
    )


def _decode(path: Path) -> list[Any]:
    """By msgspec, or where it refuses by json, which takes NaN."""
    fix = "give a JSON list of {image_id, category_id, bbox, score}, such as `dino eval --out FILE` writes"
    try:
        content = path.read_bytes()
    except OSError as error:
        what = f"it cannot be read: {error.strerror}"
        raise DataError(what, code="DATA-RESULTS", where=path, fix=fix) from None
    try:
        return msgspec.json.decode(content, type=list[ResultRow])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        try:
            return msgspec.convert(json.loads(content), type=list[ResultRow])
        except (ValueError, RecursionError):
            what = f"it is no file of results: {error}"
            raise DataError(what, code="DATA-RESULTS", where=path, fix=fix) from None
