"""Read results files in COCO's format."""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np

from ..data.annotations import Annotations
from ..data.formats.coco import is_number, parse_json
from ..data.split import tails
from ..errors import DataError
from ..words import counted

IDS = ("image_id", "category_id")
REQUIRED = (*IDS, "bbox", "score")
MAX_SHOWN = 40  # characters of an invalid value in messages
MAX_DIGITS = 19  # of a name that may be a number
Sides = Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]


class ResultRow(TypedDict):
    """One detection; `bbox` is x y width height in pixels."""

    image_id: int | str  # YOLO tools write the file name without its suffix where that is not a number
    category_id: int
    bbox: Sides
    score: float
    file_name: NotRequired[str]  # of the image; some tools write it besides


class Results(NamedTuple):
    """Detections that can be evaluated, and messages about skipped ones."""

    rows: list[dict[str, Any]]
    notes: list[str]


def read_results(path: Path, annotations: Annotations, allow_orphans: bool = False) -> Results:
    """Read and check results for these annotations; fields that detection doesn't need are dropped.

    Images are matched by their file names, where the results have them, and otherwise by their ids. If classes with the
    same name were merged, results of all of them count for the class that was kept.

    Args:
        allow_orphans: skip results of images and classes that the annotations don't have.

    Raises:
        DataError: the file is missing or not a list of results, has non-finite numbers, or has results of unknown
            images or classes.
    """
    rows, notes = _with_image_ids(_decode(path), annotations)
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
    orphans = [_orphans(rows, key, name, known) for key, (name, known) in known_ids.items()]
    if any(orphans) and not allow_orphans:
        what = f"{' and '.join(filter(None, orphans))} {annotations.file} doesn't have"
        fix = _numbering(rows, known_ids["category_id"][1]) if orphans[1] else ""
        raise DataError(what, code="DATA-RESULTS", where=path, fix=fix)
    kept = [row for row in rows if all(row[key] in known for key, (_, known) in known_ids.items())]
    return Results(kept, [*notes, *(f"skipped, {found} the annotations don't have" for found in orphans if found)])


def _with_image_ids(rows: list[Any], annotations: Annotations) -> tuple[list[Any], list[str]]:
    """Replace names of images by ids of the annotations, and say so if the file's own ids are others.

    A `file_name` decides. Otherwise, `image_id` is an id if all of them are, and else a name: YOLO tools write the file
    name without its suffix, or 7 for 007.jpg. A name that is unknown or could mean several images stays as it is.
    """
    if not any("file_name" in row or isinstance(row["image_id"], str) for row in rows):
        return rows, []
    images, known = _images_by_name(annotations), set(annotations.image_ids.tolist())
    own = [_as_id(row["image_id"]) for row in rows]
    are_ids = all(image in known for image, row in zip(own, rows, strict=True) if "file_name" not in row)
    other, found = 0, []
    for image, row in zip(own, rows, strict=True):
        if "file_name" in row:
            named = _find_image(row["file_name"], images)
            other += named != image and not isinstance(image, str)
            image = named
        elif not are_ids:
            image = _find_image(str(row["image_id"]), images)
        found.append({key: row[key] for key in REQUIRED} | {"image_id": image})
    what = f"{other} of {len(rows)} results have another image_id than the annotations; images are matched by file name"
    return found, [what] if other else []


def _as_id(value: int | str) -> int | str:
    """A number for text such as "17"."""
    is_id = isinstance(value, str) and value.isdecimal() and len(value) < MAX_DIGITS and str(int(value)) == value
    return int(value) if is_id else value


def _find_image(name: str, images: Mapping[str, int | None]) -> int | str:
    """The id of the image with this name, whose leading folders may be others; the name if there is none."""
    keys = [*tails(name), str(int(name)) if name.isdecimal() and len(name) < MAX_DIGITS else name]
    found = next((images[key] for key in keys if key in images), None)
    return name if found is None else found


def _images_by_name(annotations: Annotations) -> dict[str, int | None]:
    """Image ids by file name, with and without folders, suffix and leading zeros; None for a name of several images."""
    names = dict(zip(map(os.fsdecode, annotations.file_names), annotations.image_ids.tolist(), strict=True))
    images: dict[str, int | None] = {}
    for name, image in names.items():
        path = PurePath(name)
        number = str(int(path.stem)) if path.stem.isdecimal() and len(path.stem) < MAX_DIGITS else path.stem
        for key in {str(path.with_suffix("")), path.name, path.stem, number}:
            images[key] = None if key in images else image
    return images | names


def _orphans(rows: list[Any], key: str, noun: tuple[str, ...], known: set[int]) -> str:
    """A message about results of unknown images or classes, or an empty text."""
    ids = [row[key] for row in rows if row[key] not in known]
    first = ", ".join(map(str, sorted(set(ids), key=lambda one: (isinstance(one, str), one))[:5]))
    return (
        f"{len(ids)} of {len(rows)} results are of {counted(len(set(ids)), *noun)} ({key} {first}) that" if ids else ""
    )


def _numbering(rows: list[Any], known: set[int]) -> str:
    """What to do if the category ids are those of the annotations plus or minus one; otherwise an empty text."""
    used = {row["category_id"] for row in rows}
    for step, what, change in ((1, "lower", "add 1 to"), (-1, "higher", "subtract 1 from")):
        if {number + step for number in used} <= known:
            return f"category ids seem to be {what} by one than those of the annotations; {change} all of them"
    return ""


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
        {key: row[key] if isinstance(row[key], str) else int(row[key]) for key in IDS}
        | {"bbox": [*map(float, row["bbox"])], "score": float(row["score"])}
        | ({"file_name": row["file_name"]} if isinstance(row.get("file_name"), str) else {})
        for row in document
    ]


def _invalid_results(what: str, path: Path) -> DataError:
    fix = "give a JSON list of {image_id, category_id, bbox, score}, such as `dino eval --out FILE` writes"
    return DataError(what, code="DATA-RESULTS", where=path, fix=fix)


def _fault(row: Any) -> str:
    """Why a row is invalid, or an empty text; NaN is allowed here and reported by `read_results`."""
    if not isinstance(row, dict):
        return f"the entry is {_shown(row)}, not an object"
    if {"file", "detections"} <= row.keys():
        return "the entry was written by `dino predict`, which leaves out detections of low scores"
    if missing := [f"`{key}`" for key in REQUIRED if key not in row]:
        return f"it lacks {', '.join(missing)}"
    named = isinstance(row["image_id"], str)
    if wrong := [key for key in IDS[named:] if not (is_number(row[key]) and row[key] % 1 == 0)]:
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
