"""Check on real images that an exported file matches the model it was made from."""

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

ANOTHER_CLASS = 1e9  # cost of pairing detections of two classes
EQUAL = 1e-4  # logits of proposals that differ by less may swap ranks by rounding, which may move scores as far
MAX_TIES = 64  # of an image are tried
SHUFFLES = 4  # orders of all equal proposals that are drawn where trying single pairs is not enough
Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]  # of a file: images and sizes to detections
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels (D,), scores (D,), boxes (D, 4) of one image


class Tolerance(NamedTuple):
    """How far a file may be from its model."""

    score: float
    box: float  # pixels of the canvas
    least_score: float = 0.0  # detections below it are not compared
    fraction: float = 0.0  # of the detections that may be off by more
    iou: float = 0.0  # above 0: detections of one class that overlap so far are one object, and need no partner


TOLERANCES = {"float32": Tolerance(1e-4, 0.05), "int8": Tolerance(0.1, np.inf, least_score=0.3, fraction=0.1, iou=0.7)}


class Difference(NamedTuple):
    """The largest differences between a file and its model, over detections that belong together."""

    score: float = 0.0
    box: float = 0.0  # pixels of the canvas
    off: int = 0  # detections that differ by more than is allowed, or in their class
    compared: int = 0
    ties: int = 0  # pairs of proposals whose equal scores the file ranks in the other order

    def joined(self, other: "Difference") -> "Difference":
        """The larger of both, and the sum of what is counted."""
        worst = max(self.score, other.score), max(self.box, other.box)
        return Difference(*worst, *(a + b for a, b in zip(self[2:], other[2:], strict=True)))

    def in_words(self) -> str:
        """For people."""
        ties = f"; {counted(self.ties, 'pair')} of equal proposals swapped" if self.ties else ""
        return f"scores differ by {self.score:.1g}, boxes by {self.box:.2g} pixels{ties}"

    def within(self, tolerance: Tolerance) -> bool:
        """Whether a file with this difference is good; not if nothing was compared."""
        return self.compared > 0 and self.off <= tolerance.fraction * self.compared


def verify(
    run: Run, detector: Detector, images: Sequence[Tensor], canvas: tuple[int, int], tolerance: Tolerance
) -> Iterator[tuple[str, Difference]]:
    """Run a file and its model on the same batches; yields each batch in words, and its difference.

    Args:
        detector: the model in float32, without suppression of what it found twice.
        images: (3, h, w) uint8, resized as for evaluation.
    """
    for batch in batches(images, canvas):
        stages = Stages(detector, batch)
        given = np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())  # (B, H, W, 3)
        labels, scores, boxes = run(given, np.array(batch.sizes, np.int64))
        difference = Difference()
        for i, got in enumerate(zip(labels, scores, boxes, strict=True)):
            difference = difference.joined(stages.compare(i, got, tolerance))
        yield f"{len(batch.sizes)} x " + ", ".join(f"{h}x{w}" for h, w in batch.sizes), difference


class Stages:
    """What a model makes of a batch, kept so that its decoder can start again from proposals in another order.

    Two proposals of equal score swap ranks by rounding alone, and with them the learned contents of two queries, which
    moves every answer a little. Such a swap is no fault of a file, so the model is asked for both orders.
    """

    def __init__(self, detector: Detector, batch: Batch):
        self.detector, self.sizes = detector, batch.sizes
        kept: list[Any] = []  # Tokens
        hook = detector.model.encoder.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            output = detector.forward(batch)
        finally:
            hook.remove()
        self.memory, self.final = kept[0], output.final
        self.usable = token_anchors(self.memory)[1]  # (B, S)
        self.ranks = output.proposals and torch.cat([x.flatten(1) for x in output.proposals.maps], dim=1)  # (B, S)

    def compare(self, i: int, got: Rows, tolerance: Tolerance) -> Difference:
        """The difference of image `i`, with the order of equal proposals that comes nearest to the file's."""
        expected = self._rows(i, Predictions(*(x[i : i + 1] for x in self.final)))
        best = compare(expected, got, tolerance)
        if tolerance.iou or self.ranks is None or not best.off or not np.isfinite(best.score):
            return best
        nearest = pair(expected, got, tolerance)
        swapped: list[tuple[int, int]] = []
        for tokens in equal_pairs(self.ranks[i], self.usable[i], self.detector.config.model.num_queries):
            expected = self._rows(i, self._decode(i, exchange([*swapped, tokens], self.memory.content.shape[1])))
            pairing = pair(expected, got, tolerance)
            if pairing.cost < nearest.cost:
                swapped, nearest = [*swapped, tokens], pairing
                best = compare(expected, got, tolerance)._replace(ties=len(swapped))
        return self._as_any_order(i, got, tolerance) if best.off else best

    def _as_any_order(self, i: int, got: Rows, tolerance: Tolerance) -> Difference:
        """The difference of image `i`, with nothing off if it is none that the model doesn't have from itself.

        Thousands of proposals of a model that nobody trained are equal, in more orders than can be tried. So all equal
        ones change places at random, several times, and the file may be as far from the model as the model then is.
        """
        assert self.ranks is not None
        plain = self._rows(i, Predictions(*(x[i : i + 1] for x in self.final)))
        best, draws = compare(plain, got, tolerance), torch.Generator().manual_seed(0)
        own = Difference()
        for _ in range(SHUFFLES):
            noise = EQUAL * (torch.rand(self.memory.content.shape[1], generator=draws) - 0.5)
            other = compare(plain, self._rows(i, self._decode(i, lambda x, noise=noise: x + noise[:, None])), tolerance)
            own = Difference(max(own.score, other.score), max(own.box, other.box), max(own.off, other.off))
        if best.off > own.off or best.score > own.score or best.box > max(own.box, tolerance.box):
            return best
        near = equal_pairs(self.ranks[i], self.usable[i], self.detector.config.model.num_queries, at_most=None)
        return best._replace(off=0, ties=len(near))

    def _rows(self, i: int, final: Predictions) -> Rows:
        labels, scores, boxes = self.detector.select(final, self.sizes[i : i + 1])[0]
        return labels.numpy(), scores.numpy(), boxes.numpy()

    @torch.inference_mode()
    def _decode(self, i: int, ranked: Callable[[Tensor], Tensor]) -> Predictions:
        """The answer for image `i` where the first stage's class logits, (1, S, K), are replaced by others."""
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


def exchange(pairs: Sequence[tuple[int, int]], num_tokens: int) -> Callable[[Tensor], Tensor]:
    """Give both tokens of each pair the other's logits."""
    order = torch.arange(num_tokens)
    for a, b in pairs:
        order[[a, b]] = order[[b, a]]
    return lambda x: x[:, order]


def equal_pairs(
    ranks: Tensor, usable: Tensor, num_chosen: int, at_most: int | None = MAX_TIES
) -> list[tuple[int, int]]:
    """Neighbours in the order of the proposals that rounding may swap, also across the last that is chosen.

    Args:
        ranks: (S,) the logit by which each token is ranked.
        usable: (S,) False where a token has no anchor; such tokens are all alike, so their order says nothing.
    """
    ranked, token = ranks.sort(descending=True)
    near = ranked[:-1] - ranked[1:] <= EQUAL
    near &= usable[token[:-1]] | usable[token[1:]]
    order, places = token.tolist(), near[:num_chosen].nonzero().flatten().tolist()
    return [(order[k], order[k + 1]) for k in places[:at_most]]


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


class Pairing(NamedTuple):
    """Which detection of a model belongs to which of a file."""

    row: np.ndarray  # (n,) of the model
    column: np.ndarray  # (n,) of the file
    cost: float  # how far they are from each other, all together


def pair(expected: Rows, got: Rows, tolerance: Tolerance) -> Pairing:
    """Pair detections so that all differences together are least; those of one class first."""
    cost = np.abs(expected[1][:, None] - got[1]) / tolerance.score
    cost = cost + np.abs(expected[2][:, None] - got[2]).max(-1) / tolerance.box
    cost = np.where(expected[0][:, None] == got[0], np.minimum(cost, ANOTHER_CLASS / 10), ANOTHER_CLASS)
    row, column = linear_sum_assignment(cost)
    return Pairing(row, column, float(cost[row, column].sum()))


def compare(expected: Rows, got: Rows, tolerance: Tolerance) -> Difference:
    """The largest difference of detections that are paired so that all differences together are least.

    Rounding swaps detections of nearly equal score, so their order says nothing. Those whose score is as low as the
    last one's may have changed places with ones that were cut off, and are not compared.
    """
    labels, scores, boxes = expected
    if not (np.isfinite(got[1]).all() and np.isfinite(got[2]).all()):
        return Difference(np.inf, np.inf, len(labels), len(labels))
    if tolerance.iou:
        return compare_objects(expected, got, tolerance).joined(compare_objects(got, expected, tolerance))
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
    """Whether each object that the one finds is found by the other, with nearly the score that the one gives it.

    Rounding to 8 bits swaps proposals, and which of several queries on one object has the best score; so an object is
    all detections of one class that overlap by `tolerance.iou`, and its score the best of theirs.
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
    """IoU of the kept detections of the one with all of the other, 0 between classes, (n, D)."""
    iou = box_iou(torch.from_numpy(one[2][kept]), torch.from_numpy(other[2])).numpy()
    return np.where(one[0][kept][:, None] == other[0], iou, 0.0)
