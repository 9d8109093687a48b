"""Files of results as COCO's server takes them."""

from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np

from ..data.coco import Annotations
from ..errors import DataError

Sides = Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]


class Row(TypedDict):
    """One detection; `bbox` is x y width height in pixels."""

    image_id: int
    category_id: int
    bbox: Sides
    score: float


def read_results(path: Path, annotations: Annotations) -> list[dict[str, Any]]:
    """Read and check results for these annotations; fields that detection doesn't need are left out.

    Raises:
        DataError: the file is missing or no list of results, or none is of a picture and a class that are known.
    """
    fix = "give a JSON list of {image_id, category_id, bbox, score}, such as `dino eval --out FILE` writes"
    try:
        rows: list[Any] = msgspec.json.decode(path.read_bytes(), type=list[Row])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", where=path, fix=fix) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no file of results: {error}", where=path, fix=fix) from None
    numbers = np.array([[*row["bbox"], row["score"]] for row in rows]).reshape(-1, 5)
    if not np.isfinite(numbers).all():
        raise DataError(f"{path} has numbers that are not finite", where=path, fix=fix)
    known = set(annotations.image_ids.tolist())
    strangers = {row["image_id"] for row in rows} - known
    if strangers:
        what = f"{path} has results of {len(strangers)} pictures that {annotations.file} doesn't have, such as "
        raise DataError(
            f"{what}{min(strangers)}", where=path, fix="give the data and the --split that it was made from"
        )
    if rows and not {row["category_id"] for row in rows} & {category.id for category in annotations.categories}:
        classes = ", ".join(f"{category.id} {category.name}" for category in annotations.categories[:10])
        what = f"no result in {path} is of a class of {annotations.file} ({classes})"
        raise DataError(what, where=path, fix="give the data that it was made from")
    return rows
