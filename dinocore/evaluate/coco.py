"""COCO's average precision of a detector."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from operator import itemgetter
from typing import Any, NamedTuple

from ..data.annotations import Annotations
from ..data.loaders import WHOLE, Shard, check_size, evaluation_batches, start_workers
from ..data.split import table_names
from ..errors import DataError, DinoError
from ..predict import AnyDetector, Detections
from ..stream.images import PreparedImage, detect_stream, read_ahead
from ..stream.slices import Slicing
from ..system.processes import SingleProcess
from ..words import counted
from .backends import choose_backend, judge, mean_of_known

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
ROUND = 16  # images that each rank looks at before the ranks tell each other what they found


class Metrics(NamedTuple):
    """What an evaluation says; -1 if it has no objects to evaluate on, as in pycocotools."""

    summary: dict[str, float]  # the 12 COCO numbers, in their usual order
    classes: dict[str, dict[str, float]]  # AP and AP50 by class name
    num_images: int  # that were judged
    backend: str  # who judged: pycocotools or hotcoco
    unreadable: int = 0  # of these images, those that could not be read: all their objects count as missed

    @property
    def judged(self) -> str:
        """The number of evaluated images, as a message."""
        return judged_images(self.num_images, self.unreadable)


def judged_images(number: int, unreadable: int) -> str:
    """The number of images of an evaluation, as a message."""
    lost = f", {unreadable} of them unreadable, so their objects count as missed" if unreadable else ""
    return f"{counted(number, 'image')} evaluated{lost}"


def detect_all(
    detector: AnyDetector, annotations: Annotations, part: Shard = WHOLE, slicing: Slicing | None = None
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Detect objects in every image; yields COCO results per image, and why an image could not be read.

    Args:
        part: this rank's part of the images.
        slicing: cut images into slices, like `predict --slice`.
    """
    if slicing is not None:
        yield from _detect_in_slices(detector, annotations, part, slicing)
        return
    for batch, problems in start_workers(evaluation_batches(annotations, detector.config.data, part=part)):
        results = []
        if batch is not None:
            found = detector.detect_batch(batch)
            for index, detections in zip(batch.indices, found, strict=True):
                results += as_results(int(annotations.image_ids[index]), detections, detector)
        yield results, problems


def detect_on_ranks(
    detector: AnyDetector, annotations: Annotations, group: SingleProcess, slicing: Slicing | None = None
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Like `detect_all`, with the images split among ranks; every rank gets all results in the same order.

    An image's results do not depend on the number of ranks: each image is computed alone, or in its own slices.

    Raises:
        DinoError: on every rank, if one of them failed.
    """
    images = detect_all(detector, annotations, Shard(group.rank, group.size), slicing)
    if group.size == 1:
        yield from images
        return
    for _ in range(0, len(annotations.image_ids), ROUND * group.size):
        own, error = [], None
        try:
            own += islice(images, ROUND)
        except DinoError as failure:
            error = failure
        answers = group.gather((own, error))
        if failed := [failure for _, failure in answers if failure]:
            raise group.on_all_ranks(failed[0])
        yield from filter(None, chain.from_iterable(zip_longest(*(found for found, _ in answers))))


def _detect_in_slices(
    detector: AnyDetector, annotations: Annotations, part: Shard, slicing: Slicing
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    indices = range(part.rank, len(annotations.image_ids), part.size)
    images = read_ahead([annotations.path(index) for index in indices], detector.config.data, slicing)
    checked = (_as_annotated(image, annotations, index) for index, image in zip(indices, images, strict=True))
    for index, image in zip(indices, checked, strict=True):
        (found,) = detect_stream(detector, [image])  # alone: its numbers must not depend on its neighbours
        if isinstance(found, DataError):
            yield [], [str(found)]
        else:
            yield as_results(int(annotations.image_ids[index]), found, detector), []


def _as_annotated(image: PreparedImage | DataError, annotations: Annotations, index: int) -> PreparedImage | DataError:
    """The image, or that it is not as large as the annotations say."""
    if isinstance(image, PreparedImage):
        try:
            check_size(annotations, index, (image.size[1], image.size[0]))
        except DataError as error:
            return error
    return image


def as_results(image_id: int, detections: Detections, detector: AnyDetector) -> list[dict[str, Any]]:
    """Detections in COCO's result format, with the original category ids."""
    boxes = detections.boxes_xyxy.double()
    boxes[:, 2:] -= boxes[:, :2]  # xyxy -> xywh
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), boxes.tolist(), strict=True)
    ids = [category.id for category in detector.categories]
    return [{"image_id": image_id, "category_id": ids[k], "bbox": box, "score": score} for k, score, box in rows]


def coco_metrics(
    annotations: Annotations, results: Sequence[dict[str, Any]], backend: str = "auto", unreadable: int = 0
) -> Metrics:
    """Evaluate results against the annotations; crowds are handled as in COCO, and no results give 0.

    Args:
        backend: `auto`, `pycocotools` or `hotcoco`, which differ only in speed; see `eval.backend`.
        unreadable: how many of the images could not be read.

    Raises:
        DataError: results of images that the annotations don't have.
        EnvironmentFault: the backend is not installed.
    """
    judged = judge(annotations, _known(annotations, results), choose_backend(backend))
    precision = judged.precision[:, :, :, 0, -1].copy()  # (IoU thresholds, recalls, classes); all areas, 100 detections
    classes = {
        name: {"AP": mean_of_known(precision[:, :, k]), "AP50": mean_of_known(precision[0, :, k])}
        for k, name in enumerate(table_names(sorted(annotations.categories)))
    }
    summary: dict[str, float] = dict(zip(NAMES, judged.summary.tolist(), strict=True))
    return Metrics(summary, classes, len(annotations.image_ids), judged.backend, unreadable)


def _known(annotations: Annotations, results: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The results of annotated classes; COCO ignores others, and hotcoco complains about them on stderr."""
    lost = set(map(itemgetter("image_id"), results)) - set(annotations.image_ids.tolist())
    if lost:
        shown = ", ".join(map(str, sorted(lost)[:5]))
        raise DataError(
            f"results of {counted(len(lost), 'image')} that {annotations.file} doesn't have, such as {shown}"
        )
    ids = {category.id for category in annotations.categories}
    if set(map(itemgetter("category_id"), results)) <= ids:
        return results
    return [result for result in results if result["category_id"] in ids]
