"""Whether an exported file gives the numbers of the model that it was made from, on real images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..data.batch import Batch, Sample, collate
from ..predict import Detector
from ..structures import Target
from .runtime import ExportedDetector, Run

ANOTHER_CLASS = 1e9  # cost of pairing detections of two classes


class Tolerance(NamedTuple):
    """How far a file may be from its model."""

    score: float
    box: float  # pixels of the canvas
    least_score: float = 0.0  # detections below it are not compared
    share: float = 0.0  # of detections may be off by more: rounding to 8 bits swaps proposals, and queries with them


TOLERANCES = {"float32": Tolerance(1e-4, 0.05), "int8": Tolerance(0.1, 4.0, least_score=0.3, share=0.1)}


class Difference(NamedTuple):
    """The largest differences between a file and its model, over detections that belong together."""

    score: float = 0.0
    box: float = 0.0  # pixels of the canvas
    off: int = 0  # detections that differ by more than is allowed, or in their class
    compared: int = 0

    def joined(self, other: "Difference") -> "Difference":
        """The larger of both."""
        worst = max(self.score, other.score), max(self.box, other.box)
        return Difference(*worst, self.off + other.off, self.compared + other.compared)

    def within(self, tolerance: Tolerance) -> bool:
        """Whether a file with this difference is good; not if nothing was compared."""
        return self.compared > 0 and self.off <= tolerance.share * self.compared


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels (D,), scores (D,), boxes (D, 4) of one image


def verify(
    run: Run, detector: Detector, images: Sequence[Tensor], canvas: tuple[int, int], tolerance: Tolerance
) -> Iterator[tuple[str, Difference]]:
    """Run a file and its model on the same batches; yields each batch in words, and its difference.

    Args:
        detector: the model in float32, without suppression of what it found twice.
        images: (3, h, w) uint8, resized as for evaluation.
    """
    for batch in batches(images, canvas):
        expected = detector.select(detector.forward(batch).final, batch.sizes)
        given = np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())  # (B, H, W, 3)
        labels, scores, boxes = run(given, np.array(batch.sizes, np.int64))
        difference = Difference()
        for one, *rows in zip(expected, labels, scores, boxes, strict=True):
            want = (one.labels.numpy(), one.scores.numpy(), one.boxes_xyxy.numpy())
            difference = difference.joined(compare(want, (rows[0], rows[1], rows[2]), tolerance))
        yield f"{len(batch.sizes)} x " + ", ".join(f"{h}x{w}" for h, w in batch.sizes), difference


def batches(images: Sequence[Tensor], canvas: tuple[int, int]) -> Iterator[Batch]:
    """Each image alone and turned by a right angle, then all of them in several sizes as one batch."""
    shown = [image for image in images if image.shape[1] <= canvas[0] and image.shape[2] <= canvas[1]]
    turned = [image.mT for image in shown if image.shape[2] <= canvas[0] and image.shape[1] <= canvas[1]]
    cut = [image[:, : max(1, image.shape[1] * 2 // 3), : max(1, image.shape[2] // 2)] for image in shown]
    yield from (_on_canvas([image], canvas) for image in [*shown[:2], *turned[:1]])
    yield _on_canvas([*cut[:1], *turned[1:2], *shown[2:3]] or shown[:1], canvas)
    yield _on_canvas([shown[-1], cut[-1]], canvas)


def _on_canvas(images: Sequence[Tensor], canvas: tuple[int, int]) -> Batch:
    target = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    samples = [Sample(image, target, i, (image.shape[1], image.shape[2])) for i, image in enumerate(images)]
    edge = Sample(torch.zeros(3, *canvas, dtype=torch.uint8), target, len(images), canvas)  # makes the batch so large
    whole = collate([*samples, edge])
    count = len(images)
    return Batch(whole.images[:count], whole.padding[:count], [target] * count, list(range(count)),
                 whole.sizes[:count], [])  # fmt: skip


def compare(expected: Rows, got: Rows, tolerance: Tolerance) -> Difference:
    """The largest difference of detections that are paired so that all differences together are least.

    Rounding swaps detections of nearly equal score, so their order says nothing. Those whose score is as low as the
    last one's may have changed places with ones that were cut off, and are not compared.
    """
    labels, scores, boxes = expected
    if not (np.isfinite(got[1]).all() and np.isfinite(got[2]).all()):
        return Difference(np.inf, np.inf, len(labels), len(labels))
    floor = max(tolerance.least_score, float(scores[-1]) + 2 * tolerance.score if len(scores) else 0.0)
    cost = np.abs(scores[:, None] - got[1]) / tolerance.score
    cost = cost + np.abs(boxes[:, None] - got[2]).max(-1) / tolerance.box
    cost = np.where(labels[:, None] == got[0], np.minimum(cost, ANOTHER_CLASS / 10), ANOTHER_CLASS)
    row, column = linear_sum_assignment(cost)
    compared = scores[row] >= floor
    same = labels[row] == got[0][column]
    score = np.abs(scores[row] - got[1][column])
    box = np.abs(boxes[row] - got[2][column]).max(-1)
    off = compared & ~(same & (score <= tolerance.score) & (box <= tolerance.box))
    score, box = (x[compared & same].max(initial=0) for x in (score, box))
    return Difference(float(score), float(box), int(off.sum()), int(compared.sum()))


def open_file(format: str, path: Path) -> Run:
    """What a user of the file does: load it, and call it with images (B, H, W, 3) and sizes (B, 2)."""
    if format in ("onnx", "openvino"):
        return ExportedDetector(path).run
    if format == "aoti":
        from torch._inductor import aoti_load_package

        return _on_arrays(aoti_load_package(str(path)))
    return _on_arrays(torch.export.load(path).module())


def _on_arrays(module: Callable[..., Sequence[Tensor]]) -> Run:
    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    return run
