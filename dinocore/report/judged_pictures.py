"""Pictures with the boxes that an evaluation judged."""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from ..config import DataConfig
from ..data.annotations import Annotations
from ..data.images import read_image
from ..errors import DataError
from ..evaluate.matches import Matches
from .parts import Mark, Picture
from .pictures import shrink

LEAST = 0.05  # the lowest score of a box in the pictures


def open_pictures(
    annotations: Annotations, image_ids: Iterable[int], config: DataConfig
) -> Iterator[tuple[str, Image.Image | None]]:
    """A name for each picture, and the picture; None where it can't be read, and the name says why."""
    indices = {image_id: i for i, image_id in enumerate(annotations.image_ids.tolist())}
    for image_id in image_ids:
        path = annotations.path(indices[image_id])
        try:
            yield path.name, read_image(path, config)
        except DataError as error:
            yield f"{path.name} ({error.what})", None


def judged_picture(matches: Matches, image_id: int, image: Image.Image, title: str, note: str) -> Picture:
    """The picture with its objects, and with what was found there, right or wrong at IoU 0.5."""
    return shrink(Picture(title, image, list(_marks(matches, image_id)), note))


def _marks(matches: Matches, image_id: int) -> Iterator[Mark]:
    """Objects, then detections from the surest on; what is ignored is left out."""
    names = [category.name for category in matches.categories]
    found, objects, right = matches.found, matches.objects, matches.right[0, 0]
    picture = int(np.searchsorted(matches.image_ids, image_id))
    hits = np.flatnonzero(right & (found.picture == picture))
    answers = dict(zip(matches.pairs.object[matches.pair[hits]].tolist(), found.score[hits].tolist(), strict=True))
    for n in np.flatnonzero((objects.picture == picture) & ~objects.crowd).tolist():
        kind = "truth" if n in answers else "missed"
        yield Mark(_corners(objects.boxes[n]), names[objects.label[n]], kind, answers.get(n))
    use = (found.picture == picture) & ~matches.ignored[0, 0] & (found.score >= LEAST)
    rows = np.flatnonzero(use)
    for n in rows[np.argsort(-found.score[rows], kind="stable")].tolist():
        kind = "found" if right[n] else "wrong"
        yield Mark(_corners(found.boxes[n]), names[found.label[n]], kind, float(found.score[n]))


def _corners(box: np.ndarray) -> list[float]:
    x, y, width, height = box.tolist()
    return [x, y, x + width, y + height]
