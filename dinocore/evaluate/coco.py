"""COCO's average precision, by pycocotools."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.coco import Annotations, as_coco_dict
from ..data.loaders import evaluation_batches
from ..predict import Detections, Detector

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class Metrics(NamedTuple):
    """What an evaluation says; -1 where there is no object to judge by, as in pycocotools."""

    summary: dict[str, float]  # the 12 COCO numbers, in their usual order
    classes: dict[str, dict[str, float]]  # AP and AP50 by class name
    num_images: int


def detect_all(detector: Detector, annotations: Annotations) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Detect in every picture; yields, picture by picture, COCO results and why a picture could not be read."""
    for batch, problems in evaluation_batches(annotations, detector.config.data):
        results = []
        if batch is not None:
            found = detector.select(detector.forward(batch).final, batch.sizes)
            for index, detections in zip(batch.indices, found, strict=True):
                results += as_results(int(annotations.image_ids[index]), detections, detector)
        yield results, problems


def as_results(image_id: int, detections: Detections, detector: Detector) -> list[dict[str, Any]]:
    """Detections in COCO's result format, with the original category ids."""
    boxes = detections.boxes_xyxy.double()
    boxes[:, 2:] -= boxes[:, :2]  # xyxy -> xywh
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), boxes.tolist(), strict=True)
    ids = [category.id for category in detector.categories]
    return [{"image_id": image_id, "category_id": ids[k], "bbox": box, "score": score} for k, score, box in rows]


def coco_metrics(annotations: Annotations, results: Sequence[dict[str, Any]]) -> Metrics:
    """Judge results by the annotations; crowds count as in COCO, no result at all gives 0."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints 25 lines
        content = as_coco_dict(annotations)
        truth, found = _indexed(content), _indexed(content | {"annotations": []})
        if results:
            rows = [dict(result) for result in results]
            found = truth.loadRes(rows)  # pyright: ignore[reportArgumentType]  the stub knows file names only
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # (IoU thresholds, recalls, classes)
    classes = {
        category.name: {"AP": _mean(precision[:, :, k]), "AP50": _mean(precision[0, :, k])}
        for k, category in enumerate(sorted(annotations.categories))
    }
    summary = {name: float(value) for name, value in zip(NAMES, judge.stats, strict=True)}
    return Metrics(summary, classes, len(annotations.image_ids))


def _indexed(content: Any) -> COCO:
    """What pycocotools would make of a file with this content."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _mean(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if len(valid) else -1.0
