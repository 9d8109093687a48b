"""Which boxes of an image are correct, and the summary of an evaluation: the first lines of a report."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..config import DataConfig
from ..data.annotations import Annotations
from ..data.images import read_image
from ..data.split import table_names
from ..errors import DataError
from ..evaluate.matches import Matches
from ..words import counted
from .page import shrink
from .parts import Mark, MarkedImage

LEAST = 0.05  # the lowest score of a box in the images
EXAMPLES = 3  # good images, and bad ones


class Counts(NamedTuple):
    """What is right, wrong and missed in one image or in many, at IoU 0.5 and one score threshold."""

    right: int
    wrong: int
    missed: int

    @property
    def errors(self) -> int:
        """Wrong detections and missed objects together."""
        return self.wrong + self.missed

    @property
    def f1(self) -> float:
        """0 where nothing is right."""
        return 2 * self.right / max(1, 2 * self.right + self.errors)


def headline(counts: Iterable[Counts], threshold: float, subject: str = "") -> str:
    """A one-sentence summary of a model; `subject` starts it."""
    right, wrong, missed = (sum(column) for column in zip(*counts, strict=True))
    objects = counted(right + missed, "object")
    finds = f"{subject} finds" if subject else "Finds"
    return f"{finds} {right} of {objects} at threshold {threshold:.2f}, with {counted(wrong, 'false alarm')}."


def good_and_bad(counts: Mapping[int, Counts]) -> tuple[list[int], list[int]]:
    """Keys of the images with the best F1, the most objects first, and of those with the most errors; none is both."""
    bad = [key for key in sorted(counts, key=lambda key: -counts[key].errors) if counts[key].errors][:EXAMPLES]
    rest = [key for key in counts if key not in bad] or bad[1:]
    good = sorted(rest, key=lambda key: (-counts[key].f1, -counts[key].right))
    good = [key for key in good if counts[key].right][:EXAMPLES]
    return good, [key for key in bad if key not in good]


def count_marks(marks: Iterable[Mark], threshold: float) -> Counts:
    """What the boxes over an image say at a score threshold; an object whose answer is below it is missed."""
    right = wrong = missed = 0
    for mark in marks:
        sure = mark.score is not None and mark.score >= threshold
        right += mark.kind == "found" and sure
        wrong += mark.kind == "wrong" and sure
        missed += mark.kind == "missed" or (mark.kind == "truth" and not sure)
    return Counts(right, wrong, missed)


def best_threshold(images: Sequence[Sequence[Mark]]) -> float:
    """The score of the greatest F1 over all of these images; 0.5 where nothing is right."""
    scores = sorted({mark.score for marks in images for mark in marks if mark.kind == "found" and mark.score})
    every = [mark for marks in images for mark in marks]
    return max(scores, key=lambda score: count_marks(every, score).f1, default=0.5)


def open_images(
    annotations: Annotations, image_ids: Iterable[int], config: DataConfig
) -> Iterator[tuple[str, Image.Image | None]]:
    """A name for each image, and the image; None where it can't be read, and the name says why."""
    indices = {image_id: i for i, image_id in enumerate(annotations.image_ids.tolist())}
    for image_id in image_ids:
        path = annotations.path(indices[image_id])
        try:
            yield path.name, read_image(path, config)
        except DataError as error:
            yield f"{path.name} ({error.what})", None


def judged_image(matches: Matches, image_id: int, image: Image.Image, title: str, note: str = "") -> MarkedImage:
    """The image with its objects, and with what was found there, right or wrong at IoU 0.5."""
    return shrink(MarkedImage(title, image, list(judged_marks(matches, image_id)), note))


def judged_marks(matches: Matches, image_id: int, least: float = LEAST) -> Iterator[Mark]:
    """An image's objects, then its detections from the surest on, right or wrong at IoU 0.5; boxes in its pixels.

    What is ignored, such as a box within a crowd of its class, is left out.
    """
    names = table_names(matches.categories)
    found, objects, right = matches.found, matches.objects, matches.right[0, 0]
    image = int(np.searchsorted(matches.image_ids, image_id))
    hits = np.flatnonzero(right & (found.image == image))
    answers = dict(zip(matches.pairs.object[matches.pair[hits]].tolist(), found.score[hits].tolist(), strict=True))
    for n in np.flatnonzero((objects.image == image) & ~objects.crowd).tolist():
        kind = "truth" if n in answers else "missed"
        yield Mark(_corners(objects.boxes[n]), names[objects.label[n]], kind, answers.get(n))
    use = (found.image == image) & ~matches.ignored[0, 0] & (found.score >= least)
    rows = np.flatnonzero(use)
    for n in rows[np.argsort(-found.score[rows], kind="stable")].tolist():
        kind = "found" if right[n] else "wrong"
        yield Mark(_corners(found.boxes[n]), names[found.label[n]], kind, float(found.score[n]))


def _corners(box: np.ndarray) -> list[float]:
    x, y, width, height = box.tolist()
    return [x, y, x + width, y + height]
