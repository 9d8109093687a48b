"""Which boxes of an image are correct, and what a report starts with: a headline and example images."""

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

MIN_SCORE = 0.05  # of the boxes shown in images
EXAMPLES = 3  # number of best and of worst images


class Counts(NamedTuple):
    """Numbers of right, wrong and missed boxes in one or more images, at IoU 0.5 and one score threshold."""

    right: int
    wrong: int
    missed: int

    @property
    def errors(self) -> int:
        """Wrong detections and missed objects together."""
        return self.wrong + self.missed

    @property
    def f1(self) -> float:
        """The F1 score; 0 if nothing is right."""
        return 2 * self.right / max(1, 2 * self.right + self.errors)


def headline(counts: Iterable[Counts], threshold: float, subject: str = "") -> str:
    """A one-sentence summary of a model, which starts with `subject`."""
    right, wrong, missed = (sum(column) for column in zip(*counts, strict=True))
    objects = counted(right + missed, "object")
    finds = f"{subject} finds" if subject else "Finds"
    return f"{finds} {right} of {objects} at threshold {threshold:.2f}, with {counted(wrong, 'false alarm')}."


def good_and_bad(counts: Mapping[int, Counts]) -> tuple[list[int], list[int]]:
    """Keys of the images with the best F1 (ties: most correct boxes first) and of those with the most errors."""
    bad = [key for key in sorted(counts, key=lambda key: -counts[key].errors) if counts[key].errors][:EXAMPLES]
    others = [key for key in counts if key not in bad] or bad[1:]
    good = sorted(others, key=lambda key: (-counts[key].f1, -counts[key].right))
    good = [key for key in good if counts[key].right][:EXAMPLES]
    return good, [key for key in bad if key not in good]


def count_marks(marks: Iterable[Mark], threshold: float) -> Counts:
    """Count an image's marks at a score threshold; an object whose matched detection is below it is missed."""
    right = wrong = missed = 0
    for mark in marks:
        above = mark.score is not None and mark.score >= threshold
        right += mark.kind == "found" and above
        wrong += mark.kind == "wrong" and above
        missed += mark.kind == "missed" or (mark.kind == "truth" and not above)
    return Counts(right, wrong, missed)


def best_threshold(images: Sequence[Sequence[Mark]]) -> float:
    """The score threshold with the best F1 over all of these images; 0.5 if nothing is right."""
    scores = sorted({mark.score for marks in images for mark in marks if mark.kind == "found" and mark.score})
    all_marks = [mark for marks in images for mark in marks]
    return max(scores, key=lambda score: count_marks(all_marks, score).f1, default=0.5)


def open_images(
    annotations: Annotations, image_ids: Iterable[int], config: DataConfig
) -> Iterator[tuple[str, Image.Image | None]]:
    """The name of each image, and the image; if it can't be read, None, with the reason in the name."""
    indices = {image_id: i for i, image_id in enumerate(annotations.image_ids.tolist())}
    for image_id in image_ids:
        path = annotations.path(indices[image_id])
        try:
            yield path.name, read_image(path, config)
        except DataError as error:
            yield f"{path.name} ({error.what})", None


def marked_image(matches: Matches, image_id: int, image: Image.Image, title: str, note: str = "") -> MarkedImage:
    """The image with its objects and its detections, which are right or wrong at IoU 0.5."""
    return shrink(MarkedImage(title, image, list(image_marks(matches, image_id)), note))


def image_marks(matches: Matches, image_id: int, min_score: float = MIN_SCORE) -> Iterator[Mark]:
    """An image's objects, then its detections, most confident first, right or wrong at IoU 0.5; boxes in pixels.

    Ignored detections, such as a box within a crowd of its class, are skipped.
    """
    names = table_names(matches.categories)
    detections, objects, right = matches.detections, matches.objects, matches.right[0, 0]
    image = int(np.searchsorted(matches.image_ids, image_id))
    hits = np.flatnonzero(right & (detections.image == image))
    scores = dict(zip(matches.pairs.object[matches.pair[hits]].tolist(), detections.score[hits].tolist(), strict=True))
    for n in np.flatnonzero((objects.image == image) & ~objects.crowd).tolist():
        kind = "truth" if n in scores else "missed"
        yield Mark(_corners(objects.boxes[n]), names[objects.label[n]], kind, scores.get(n))
    use = (detections.image == image) & ~matches.ignored[0, 0] & (detections.score >= min_score)
    rows = np.flatnonzero(use)
    for n in rows[np.argsort(-detections.score[rows], kind="stable")].tolist():
        kind = "found" if right[n] else "wrong"
        yield Mark(_corners(detections.boxes[n]), names[detections.label[n]], kind, float(detections.score[n]))


def _corners(box: np.ndarray) -> list[float]:
    x, y, width, height = box.tolist()
    return [x, y, x + width, y + height]
