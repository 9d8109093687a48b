"""Run a detector on annotated images and compute COCO's metrics."""

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
from .backends import choose_backend, mean_of_known, run_backend

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
GATHER_EVERY = 16  # images per rank, after which the ranks exchange their results


class Metrics(NamedTuple):
    """The metrics of an evaluation; -1 if there are no objects to evaluate on, as in pycocotools."""

    summary: dict[str, float]  # the 12 COCO numbers, in their usual order
    classes: dict[str, dict[str, float]]  # AP and AP50 by class name
    num_images: int  # number of evaluated images
    backend: str  # pycocotools or hotcoco
    unreadable: int = 0  # how many of these images could not be read; all their objects count as missed

    @property
    def evaluated(self) -> str:
        """The number of evaluated images, as a message."""
        return evaluated_images(self.num_images, self.unreadable)


def evaluated_images(number: int, unreadable: int) -> str:
    """The number of images of an evaluation, as a message."""
    skipped = f", {unreadable} of them unreadable, so their objects count as missed" if unreadable else ""
    return f"{counted(number, 'image')} evaluated{skipped}"


def detect_all(
    detector: AnyDetector, annotations: Annotations, part: Shard = WHOLE, slicing: Slicing | None = None
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Detect objects in every image; yields, per batch, COCO results and messages about unreadable images.

    Args:
        part: this rank's shard of the images.
        slicing: cut images into slices, like `predict --slice`.
    """
    if slicing is not None:
        yield from _detect_in_slices(detector, annotations, part, slicing)
        return
    for batch, problems in start_workers(evaluation_batches(annotations, detector.config.data, part=part)):
        results = []
        if batch is not None:
            detected = detector.detect_batch(batch)
            for index, detections in zip(batch.indices, detected, strict=True):
                results += as_results(int(annotations.image_ids[index]), detections, detector)
        yield results, problems


def detect_on_ranks(
    detector: AnyDetector, annotations: Annotations, group: SingleProcess, slicing: Slicing | None = None
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Like `detect_all`, with the images split among ranks; every rank gets all results in the same order.

    An image's results do not depend on the number of ranks, because each image, or its slices, is a batch of its own.

    Raises:
        DinoError: a rank failed; raised on every rank.
    """
    images = detect_all(detector, annotations, Shard(group.rank, group.size), slicing)
    if group.size == 1:
        yield from images
        return
    for _ in range(0, len(annotations.image_ids), GATHER_EVERY * group.size):
        own, error = [], None
        try:
            own += islice(images, GATHER_EVERY)
        except DinoError as failure:
            error = failure
        gathered = group.gather((own, error))
        if failed := [failure for _, failure in gathered if failure]:
            raise group.on_all_ranks(failed[0])
        yield from filter(None, chain.from_iterable(zip_longest(*(results for results, _ in gathered))))


def _detect_in_slices(
    detector: AnyDetector, annotations: Annotations, part: Shard, slicing: Slicing
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    indices = range(part.rank, len(annotations.image_ids), part.size)
    images = read_ahead([annotations.path(index) for index in indices], detector.config.data, slicing)
    checked = (_as_annotated(image, annotations, index) for index, image in zip(indices, images, strict=True))
    for index, image in zip(indices, checked, strict=True):
        # one image at a time, so that its results do not depend on other images
        (detections,) = detect_stream(detector, [image])
        if isinstance(detections, DataError):
            yield [], [str(detections)]
        else:
            yield as_results(int(annotations.image_ids[index]), detections, detector), []


def _as_annotated(image: PreparedImage | DataError, annotations: Annotations, index: int) -> PreparedImage | DataError:
    """The image, or an error if its size differs from the annotations."""
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
    """Evaluate results against annotations; crowds are handled as in COCO, and empty results give 0.

    Args:
        backend: `auto`, `pycocotools` or `hotcoco`, which differ only in speed; see `eval.backend`.
        unreadable: how many of the images could not be read.

    Raises:
        DataError: there are results for images that are not annotated.
        EnvironmentFault: the backend is not installed.
    """
    metrics = run_backend(annotations, _known(annotations, results), choose_backend(backend))
    # (IoU thresholds, recalls, classes); all areas, 100 detections
    precision = metrics.precision[:, :, :, 0, -1].copy()
    classes = {
        name: {"AP": mean_of_known(precision[:, :, k]), "AP50": mean_of_known(precision[0, :, k])}
        for k, name in enumerate(table_names(sorted(annotations.categories)))
    }
    summary: dict[str, float] = dict(zip(NAMES, metrics.summary.tolist(), strict=True))
    return Metrics(summary, classes, len(annotations.image_ids), metrics.backend, unreadable)


def _known(annotations: Annotations, results: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The results of annotated classes; COCO ignores others, and hotcoco warns about them on stderr."""
    unknown = set(map(itemgetter("image_id"), results)) - set(annotations.image_ids.tolist())
    if unknown:
        shown = ", ".join(map(str, sorted(unknown)[:5]))
        raise DataError(
            f"results of {counted(len(unknown), 'image')} that {annotations.file} doesn't have, such as {shown}"
        )
    ids = {category.id for category in annotations.categories}
    if set(map(itemgetter("category_id"), results)) <= ids:
        return results
    return [result for result in results if result["category_id"] in ids]
