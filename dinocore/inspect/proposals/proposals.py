"""The first stage's proposals and the decoder's changes: scores of all tokens, moved boxes, recall@k."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...boxes import iou, to_cxcywh, to_pixels
from ...config import LossConfig
from ...data.annotations import Annotations, Category
from ...errors import ConfigError
from ...matching import hungarian
from ...model.dino import DinoOutput
from ...predict import Detector
from ...structures import Predictions, Proposals, Target

COUNTS = (10, 50, 100, 300, 900)
IOUS = (0.5, 0.75)
# area in pixels, as COCO has it
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}


class Proposal(NamedTuple):
    """A selected token: its anchor, the first stage's box, the decoder's final box; in pixels, x0 y0 x1 y1."""

    query: int  # from 0, by first-stage score, as in every other inspector
    level: int  # feature level, 0 is the finest
    score: float  # first-stage probability of its best class, or of foreground
    label: str  # that class, or "foreground"
    anchor: list[float]
    proposal: list[float]
    final: list[float]
    final_label: str
    final_score: float
    moved: float  # pixels between the centres of the proposal and of the final box
    iou: float  # of the proposal and the final box


def list_proposals(output: DinoOutput, size: tuple[int, int], categories: Sequence[Category]) -> list[Proposal]:
    """The proposals in the only image of a batch, of this height and width, best first.

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    first, names = _first_stage(output), [category.name for category in categories]
    anchors, proposals, finals = (to_pixels(x[0], size) for x in (first.anchors, first.boxes, output.final.boxes))
    scores, labels = _best_class(first.logits)
    final_scores, final_labels = _best_class(output.final.logits)
    first_names = ["foreground"] if first.logits.shape[-1] == 1 < len(names) else names
    columns = (first.level[0], scores, labels, anchors, proposals, finals, final_labels, final_scores,
               _distance(proposals, finals), iou(proposals, finals))  # fmt: skip
    rows = enumerate(zip(*(column.tolist() for column in columns), strict=True))
    return [
        Proposal(query, level, score, first_names[label], anchor, box, end, names[kind], sure, moved, share)
        for query, (level, score, label, anchor, box, end, kind, sure, moved, share) in rows
    ]


def _first_stage(output: DinoOutput) -> Proposals:
    if output.proposals is None:
        raise ConfigError("this model has no first stage (model.queries = static), so there are no proposals to show")
    return output.proposals


def _best_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and number of each query's best class, of the one image of a batch."""
    return logits[0].float().cpu().sigmoid().max(-1)


def _distance(boxes_xyxy: Tensor, others: Tensor) -> Tensor:
    """Between the centres."""
    one, other = ((boxes[..., :2] + boxes[..., 2:]) / 2 for boxes in (boxes_xyxy, others))
    return (one - other).norm(dim=-1)


def score_maps(output: DinoOutput) -> list[np.ndarray]:
    """The probability of the best class, or of foreground, of every token of the one image, L x (H_l, W_l).

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    return [scores[0].float().cpu().sigmoid().numpy() for scores in _first_stage(output).maps]


def spread(scores: np.ndarray) -> dict[str, float | list[int]]:
    """A map in a few numbers."""
    values = torch.from_numpy(scores).flatten().double()
    p50, p99, best = values.quantile(torch.tensor([0.5, 0.99, 1.0], dtype=torch.float64)).tolist()
    return {"size": list(scores.shape), "median": p50, "p99": p99, "best": best}


class ImageObjects(NamedTuple):
    """The annotated objects of one image, x0 y0 x1 y1 in its pixels."""

    boxes: Tensor  # (T, 4)
    labels: Tensor  # (T,) int64
    areas: Tensor  # (T,)


def objects_of(annotations: Annotations, index: int) -> ImageObjects:
    """The trainable objects of an image."""
    rows = annotations.objects(index)
    kept = annotations.trainable()[rows]
    boxes, labels, areas = (
        torch.from_numpy(x[rows][kept]) for x in (annotations.boxes, annotations.labels, annotations.area)
    )
    return ImageObjects(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float(), labels, areas)


class Journey(NamedTuple):
    """A query's box from the anchor to the last layer, x0 y0 x1 y1 in pixels."""

    query: int  # from 0; it starts from the proposal of this number
    label: str  # of the final box
    score: float
    boxes: list[list[float]]  # anchor, proposal, then one a decoder layer
    moved: list[float]  # pixels between the centres of neighbours in `boxes`
    object: int | None  # the annotated object it answers for after the last layer, by the Hungarian method
    ious: list[float] | None  # of each box with that object's


def journeys(
    output: DinoOutput, size: tuple[int, int], objects: ImageObjects | None, loss: LossConfig,
    categories: Sequence[Category], top: int,
) -> list[Journey]:  # fmt: skip
    """For the queries matched to objects or, without annotations, for the `top` most confident ones.

    Args:
        size: height and width of the image, the only one of the batch.

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    first = _first_stage(output)
    stages = [first.anchors, first.boxes, *(stage.boxes for stage in output.stages)]
    boxes = torch.stack([to_pixels(stage[0], size) for stage in stages])  # (stages, N, 4)
    moved = _distance(boxes[1:], boxes[:-1])  # (stages - 1, N)
    scores, labels = _best_class(output.final.logits)
    if objects is None:
        pairs = [(query, None) for query in scores.argsort(descending=True)[:top].tolist()]
    else:
        target = Target(objects.labels, to_cxcywh(objects.boxes / torch.tensor(size[::-1]).repeat(2)))
        final = Predictions(*(part[:1].float().cpu() for part in output.final))
        (match,) = hungarian([final], [target], loss)
        pairs = sorted(zip(match.query.tolist(), match.target.tolist(), strict=True), key=lambda pair: pair[1])
    return [
        Journey(
            query=query,
            label=categories[int(labels[query])].name,
            score=float(scores[query]),
            boxes=boxes[:, query].tolist(),
            moved=moved[:, query].tolist(),
            object=number,
            ious=None if objects is None else iou(boxes[:, query], objects.boxes[number]).tolist(),
        )
        for query, number in pairs
    ]


class Inspected(NamedTuple):
    """One image and the model's results on it."""

    file: str
    size: tuple[int, int]  # height, width
    proposals: list[Proposal]
    maps: list[np.ndarray]
    journeys: list[Journey]
    objects: ImageObjects | None

    def as_dict(self, top: int) -> dict[str, Any]:
        """As JSON has it, with the `top` best proposals."""
        return {
            "file": self.file,
            "proposals": [proposal._asdict() for proposal in self.proposals[:top]],
            "layers": [journey._asdict() for journey in self.journeys],
            "scores": [spread(scores) for scores in self.maps],
        }


def inspect_image(
    detector: Detector, image: Image.Image, name: str, objects: ImageObjects | None, top: int
) -> Inspected:  # fmt: skip
    """Run the model on an image.

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    output, size, categories = detector.forward(detector.batch(image)), (image.height, image.width), detector.categories
    found = journeys(output, size, objects, detector.config.loss, categories, top)
    return Inspected(name, size, list_proposals(output, size, categories), score_maps(output), found, objects)


class StageSummary(NamedTuple):
    """The changes by one stage, averaged over boxes."""

    name: str  # anchor, proposal, layer 0, ...
    moved: float | None  # pixels, from the stage before
    iou: float | None
    gain: float | None


def average(found: Sequence[Journey]) -> list[StageSummary]:
    """A row for each stage."""
    if not found:
        return []
    moved = [None, *torch.tensor([journey.moved for journey in found]).mean(0).tolist()]
    known = [journey.ious for journey in found if journey.ious is not None]
    ious, gains = [None] * len(moved), [None] * len(moved)
    if known:
        ious = torch.tensor(known).mean(0).tolist()
        gains = [None, *(after - before for before, after in pairwise(ious))]
    names = ["anchor", "proposal", *(f"layer {n}" for n in range(len(moved) - 2))]
    return [StageSummary(*row) for row in zip(names, moved, ious, gains, strict=True)]


class Recall(NamedTuple):
    """Recall@k: the fraction of objects of one size covered by one of an image's first k proposals of one level."""

    iou: float  # the least that covers
    level: int | None  # None: of any level
    size: str | None  # None: of any size
    objects: int
    shares: dict[int, float]


def recalls(found: Sequence[Inspected]) -> list[Recall]:
    """For each IoU, level and size with objects; the last k is the number of all proposals, unless there are more.

    Images without annotations don't count.
    """
    images = [(image.proposals, image.objects) for image in found if image.objects is not None]
    if not sum(len(objects.boxes) for _, objects in images):
        return []
    most = min(COUNTS[-1], max(len(proposals) for proposals, _ in images))
    counts = [*(count for count in COUNTS if count < most), most]
    areas = torch.cat([objects.areas for _, objects in images])
    wanted: dict[str | None, Tensor] = {None: torch.ones_like(areas, dtype=torch.bool)}
    wanted |= {size: (areas >= low) & (areas < high) for size, (low, high) in SIZES.items()}
    levels: list[int | None] = [None, *sorted({p.level for proposals, _ in images for p in proposals})]
    rows = []
    for level in levels:
        best = torch.cat([_best(*image, level, counts) for image in images])  # (all objects, counts)
        for least in IOUS:
            for size, chosen in wanted.items():
                if chosen.any():
                    shares = (best[chosen] >= least).double().mean(0).tolist()
                    rows.append(Recall(least, level, size, int(chosen.sum()), dict(zip(counts, shares, strict=True))))
    return rows


def _best(proposals: Sequence[Proposal], objects: ImageObjects, level: int | None, counts: Sequence[int]) -> Tensor:
    """The greatest IoU of each object with one of the first k proposals, if of this level, (T, counts)."""
    overlap = iou(objects.boxes[:, None], torch.tensor([p.proposal for p in proposals]).view(-1, 4))  # (T, N)
    if level is not None:
        overlap = overlap.masked_fill(torch.tensor([p.level for p in proposals]) != level, 0)
    so_far = overlap.cummax(dim=1).values if overlap.numel() else overlap
    return so_far[:, [min(count, len(proposals)) - 1 for count in counts]]
