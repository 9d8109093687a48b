"""Check on real images that an exported file gives the same results as its model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from ..data.batch import Batch, Sample, collate
from ..model.dino import DINO
from ..model.proposals import token_anchors
from ..predict import Detector
from ..structures import Predictions, Target
from ..words import counted

CLASS_MISMATCH = 1e9  # cost of pairing detections of different classes
TIE = 1e-4  # proposals whose logits differ by less may swap ranks by rounding, which changes scores by about as much
MAX_TIES = 64  # tried per image
SHUFFLES = 4  # random orders of all tied proposals, if swapping single pairs is not enough
Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]  # runs a file: images and sizes to detections
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels (D,), scores (D,), boxes (D, 4) of one image


class Tolerance(NamedTuple):
    """The largest allowed differences between a file and its model."""

    score: float
    box: float  # pixels of the canvas
    least_score: float = 0.0  # detections below it are not compared
    fraction: float = 0.0  # of detections, which may differ by more
    iou: float = 0.0  # above 0: compare objects, where detections of one class with this IoU are one object


TOLERANCES = {"float32": Tolerance(1e-4, 0.05), "int8": Tolerance(0.1, np.inf, least_score=0.3, fraction=0.1, iou=0.7)}


class Difference(NamedTuple):
    """The largest differences between paired detections of a file and its model."""

    score: float = 0.0
    box: float = 0.0  # pixels of the canvas
    off: int = 0  # detections that differ by more than the tolerance, or in their class
    compared: int = 0
    ties: int = 0  # pairs of tied proposals that the file ranks in the opposite order

    def combined(self, other: "Difference") -> "Difference":
        """The maximum of the differences, and the sum of the counts."""
        worst = max(self.score, other.score), max(self.box, other.box)
        return Difference(*worst, *(a + b for a, b in zip(self[2:], other[2:], strict=True)))

    def __str__(self) -> str:
        ties = f"; {counted(self.ties, 'pair')} of equal proposals swapped" if self.ties else ""
        return f"scores differ by {self.score:.1g}, boxes by {self.box:.2g} pixels{ties}"

    def within(self, tolerance: Tolerance) -> bool:
        """Whether this is acceptable; False if nothing was compared."""
        return self.compared > 0 and self.off <= tolerance.fraction * self.compared


def verify(
    run: Run, detector: Detector, images: Sequence[Tensor], canvas: tuple[int, int], tolerance: Tolerance
) -> Iterator[tuple[str, Difference]]:
    """Run a file and its model on the same batches; yield a description and the difference for each batch.

    Args:
        detector: the model in float32, without NMS.
        images: (3, h, w) uint8, resized as for evaluation.
    """
    for batch in batches(images, canvas):
        stages = Stages(detector, batch)
        images_hwc = np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())  # (B, H, W, 3)
        labels, scores, boxes = run(images_hwc, np.array(batch.sizes, np.int64))
        difference = Difference()
        for i, got in enumerate(zip(labels, scores, boxes, strict=True)):
            difference = difference.combined(stages.compare(i, got, tolerance))
        yield f"{len(batch.sizes)} x " + ", ".join(f"{h}x{w}" for h, w in batch.sizes), difference


class Stages:
    """A model's encoder output for a batch, so that the decoder can be run again with proposals in another order.

    Rounding may swap the ranks of two proposals with equal scores. The learned contents of two queries then change
    places, which changes all results slightly. That is not an error of the file, so the model is run with both orders.
    """

    def __init__(self, detector: Detector, batch: Batch):
        self.detector, self.sizes = detector, batch.sizes
        outputs: list[Any] = []  # Tokens
        hook = detector.model.encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            output = detector.forward(batch)
        finally:
            hook.remove()
        self.memory, self.final = outputs[0], output.final
        self.usable = token_anchors(self.memory)[1]  # (B, S)
        self.ranks = output.proposals and torch.cat([x.flatten(1) for x in output.proposals.maps], dim=1)  # (B, S)

    def compare(self, i: int, got: Rows, tolerance: Tolerance) -> Difference:
        """The difference for image `i`, with the order of tied proposals that comes closest to the file's results."""
        expected = self._rows(i, Predictions(*(x[i : i + 1] for x in self.final)))
        best = compare(expected, got, tolerance)
        if tolerance.iou or self.ranks is None or not best.off or not np.isfinite(best.score):
            return best
        nearest = pair(expected, got, tolerance)
        swapped: list[tuple[int, int]] = []
        for tokens in tied_pairs(self.ranks[i], self.usable[i], self.detector.config.model.num_queries):
            expected = self._rows(i, self._decode(i, swap_tokens([*swapped, tokens], self.memory.content.shape[1])))
            pairing = pair(expected, got, tolerance)
            if pairing.cost < nearest.cost:
                swapped, nearest = [*swapped, tokens], pairing
                best = compare(expected, got, tolerance)._replace(ties=len(swapped))
        return self._compare_shuffled(i, got, tolerance) if best.off else best

    def _compare_shuffled(self, i: int, got: Rows, tolerance: Tolerance) -> Difference:
        """The difference for image `i`, with nothing off if it is no larger than the model's from itself.

        An untrained model has thousands of tied proposals, far too many to try all orders. So all ties are broken at
        random several times, and the file may differ from the model by as much as the model then differs from itself.
        """
        assert self.ranks is not None
        unshuffled = self._rows(i, Predictions(*(x[i : i + 1] for x in self.final)))
        best, generator = compare(unshuffled, got, tolerance), torch.Generator().manual_seed(0)
        own = Difference()
        for _ in range(SHUFFLES):
            noise = TIE * (torch.rand(self.memory.content.shape[1], generator=generator) - 0.5)
            shuffled = self._rows(i, self._decode(i, lambda x, noise=noise: x + noise[:, None]))
            other = compare(unshuffled, shuffled, tolerance)
            own = Difference(max(own.score, other.score), max(own.box, other.box), max(own.off, other.off))
        if best.off > own.off or best.score > own.score or best.box > max(own.box, tolerance.box):
            return best
        near = tied_pairs(self.ranks[i], self.usable[i], self.detector.config.model.num_queries, at_most=None)
        return best._replace(off=0, ties=len(near))

    def _rows(self, i: int, final: Predictions) -> Rows:
        labels, scores, boxes = self.detector.select(final, self.sizes[i : i + 1])[0]
        return labels.numpy(), scores.numpy(), boxes.numpy()

    @torch.inference_mode()
    def _decode(self, i: int, ranked: Callable[[Tensor], Tensor]) -> Predictions:
        """The predictions for image `i` after `ranked` has changed the first stage's class logits, (1, S, K)."""
        model: DINO = self.detector.model
        whole, one = self.memory, slice(i, i + 1)
        memory = whole._replace(
            content=whole.content[one], position=whole.position[one], padding=whole.padding[one],
            valid_ratios=whole.valid_ratios[one],
        )  # fmt: skip

        def replace(module: Any, inputs: Any, logits: Any) -> Tensor:
            return ranked(logits)

        hook = model.proposer.get_submodule("class_head").register_forward_hook(replace)
        try:
            return model.decoder(model.proposer(memory)[1], memory)[-1]
        finally:
            hook.remove()


def swap_tokens(pairs: Sequence[tuple[int, int]], num_tokens: int) -> Callable[[Tensor], Tensor]:
    """A function that swaps the logits of the two tokens of each pair."""
    order = torch.arange(num_tokens)
    for a, b in pairs:
        order[[a, b]] = order[[b, a]]
    return lambda x: x[:, order]


def tied_pairs(ranks: Tensor, usable: Tensor, num_chosen: int, at_most: int | None = MAX_TIES) -> list[tuple[int, int]]:
    """Neighbouring proposals that rounding may swap, including the last selected one and its successor.

    Args:
        ranks: (S,) the logit by which each token is ranked.
        usable: (S,) False for tokens without an anchor, which are all equal, so that their order does not matter.
    """
    ranked, token = ranks.sort(descending=True)
    near = ranked[:-1] - ranked[1:] <= TIE
    near &= usable[token[:-1]] | usable[token[1:]]
    order, places = token.tolist(), near[:num_chosen].nonzero().flatten().tolist()
    return [(order[k], order[k + 1]) for k in places[:at_most]]


def batches(images: Sequence[Tensor], canvas: tuple[int, int]) -> Iterator[Batch]:
    """Batches of single images, one of them transposed, and batches of images of different sizes."""
    fitting = [image for image in images if image.shape[1] <= canvas[0] and image.shape[2] <= canvas[1]]
    transposed = [image.mT for image in fitting if image.shape[2] <= canvas[0] and image.shape[1] <= canvas[1]]
    cropped = [image[:, : max(1, image.shape[1] * 2 // 3), : max(1, image.shape[2] // 2)] for image in fitting]
    yield from (_on_canvas([image], canvas) for image in [*fitting[:2], *transposed[:1]])
    yield _on_canvas([*cropped[:1], *transposed[1:2], *fitting[2:3]] or fitting[:1], canvas)
    yield _on_canvas([fitting[-1], cropped[-1]], canvas)


def _on_canvas(images: Sequence[Tensor], canvas: tuple[int, int]) -> Batch:
    target = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    samples = [Sample(image, target, i, (image.shape[1], image.shape[2])) for i, image in enumerate(images)]
    filler = Sample(torch.zeros(3, *canvas, dtype=torch.uint8), target, len(images), canvas)  # pads to the canvas
    padded = collate([*samples, filler])
    count = len(images)
    return Batch(padded.images[:count], padded.padding[:count], [target] * count, list(range(count)),
                 padded.sizes[:count], [])  # fmt: skip


class Pairing(NamedTuple):
    """A one-to-one assignment of a model's detections to a file's."""

    row: np.ndarray  # (n,) indices of the model's detections
    column: np.ndarray  # (n,) indices of the file's detections
    cost: float  # total


def pair(expected: Rows, got: Rows, tolerance: Tolerance) -> Pairing:
    """Pair detections with the least total difference, preferring pairs of the same class."""
    cost = np.abs(expected[1][:, None] - got[1]) / tolerance.score
    cost = cost + np.abs(expected[2][:, None] - got[2]).max(-1) / tolerance.box
    cost = np.where(expected[0][:, None] == got[0], np.minimum(cost, CLASS_MISMATCH / 10), CLASS_MISMATCH)
    row, column = linear_sum_assignment(cost)
    return Pairing(row, column, float(cost[row, column].sum()))


def compare(expected: Rows, got: Rows, tolerance: Tolerance) -> Difference:
    """The largest differences between detections, paired with the least total difference.

    Rounding may swap detections of nearly equal score, so their order is ignored. Detections with a score close to the
    last one's may have been replaced by others that were cut off, and are not compared.
    """
    labels, scores, boxes = expected
    if not (np.isfinite(got[1]).all() and np.isfinite(got[2]).all()):
        return Difference(np.inf, np.inf, len(labels), len(labels))
    if tolerance.iou:
        return compare_objects(expected, got, tolerance).combined(compare_objects(got, expected, tolerance))
    floor = max(tolerance.least_score, float(scores[-1]) + 2 * tolerance.score if len(scores) else 0.0)
    row, column, _ = pair(expected, got, tolerance)
    compared = scores[row] >= floor
    same = labels[row] == got[0][column]
    score = np.abs(scores[row] - got[1][column])
    box = np.abs(boxes[row] - got[2][column]).max(-1)
    off = compared & ~(same & (score <= tolerance.score) & (box <= tolerance.box))
    score, box = (x[compared & same].max(initial=0) for x in (score, box))
    return Difference(float(score), float(box), int(off.sum()), int(compared.sum()))


def compare_objects(one: Rows, other: Rows, tolerance: Tolerance) -> Difference:
    """Compare whether `other` finds each object of `one`, with nearly the same score.

    Rounding to 8 bits swaps proposals, and changes which of several queries for an object has the best score. So an
    object is a group of detections of one class with an IoU of at least `tolerance.iou`, and its score is the highest.
    """
    kept = one[1] >= tolerance.least_score
    mine, theirs = (_overlaps(one, kept, rows) for rows in (one, other))  # (n, D)
    own, found = (
        np.where(iou >= tolerance.iou, rows[1], -np.inf).max(1, initial=-np.inf)
        for iou, rows in ((mine, one), (theirs, other))
    )
    near = theirs.max(1, initial=0) >= tolerance.iou
    score = np.where(near, np.abs(own - np.where(near, found, 0)), np.inf)
    nearest = other[2][theirs.argmax(1)] if len(other[1]) else np.zeros((len(near), 4))
    box = np.abs(one[2][kept] - nearest).max(-1)
    off = ~(score <= tolerance.score)
    return Difference(float(score[near].max(initial=0)), float(box[near].max(initial=0)), int(off.sum()), len(off))


def _overlaps(one: Rows, kept: np.ndarray, other: Rows) -> np.ndarray:
    """IoU of the kept detections of `one` with all of `other`, 0 between different classes, (n, D)."""
    iou = box_iou(torch.from_numpy(one[2][kept]), torch.from_numpy(other[2])).numpy()
    return np.where(one[0][kept][:, None] == other[0], iou, 0.0)
