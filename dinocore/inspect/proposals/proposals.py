"""The first stage's proposals and how decoder layers change them: scores of all tokens, boxes by layer, recall@k."""

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
# areas in pixels, as in COCO
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}


class Proposal(NamedTuple):
    """A selected token: its anchor, the first stage's box, the decoder's final box; in pixels, x0 y0 x1 y1."""

    query: int  # from 0, in the order of first-stage scores, as in every other inspector
    level: int  # feature level, 0 is the finest
    score: float  # first-stage probability of its best class, or of foreground
    label: str  # that class, or "foreground"
    anchor: list[float]
    proposal: list[float]
    final: list[float]
    final_label: str
    final_score: float
    moved: float  # pixels between the centres of the proposal and of the final box
    iou: float  # between the proposal and the final box


def list_proposals(output: DinoOutput, size: tuple[int, int], categories: Sequence[Category]) -> list[Proposal]:
    """The proposals of a batch's only image, best first.

    Args:
        size: height and width of the image.

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
        Proposal(
            query, level, score, first_names[label], anchor, box, final, names[final_label], final_score, moved, overlap
        )
        for query, (level, score, label, anchor, box, final, final_label, final_score, moved, overlap) in rows
    ]


def _first_stage(output: DinoOutput) -> Proposals:
    if output.proposals is None:
        raise ConfigError("this model has no first stage (model.queries = static), so there are no proposals to show")
    return output.proposals


def _best_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and index of each query's best class, in the only image of a batch."""
    return logits[0].float().cpu().sigmoid().max(-1)


def _distance(boxes_xyxy: Tensor, others: Tensor) -> Tensor:
    """The distance between the boxes' centres."""
    centers, other_centers = ((boxes[..., :2] + boxes[..., 2:]) / 2 for boxes in (boxes_xyxy, others))
    return (centers - other_centers).norm(dim=-1)


def score_maps(output: DinoOutput) -> list[np.ndarray]:
    """The probability of the best class, or of foreground, for every token of the only image, L x (H_l, W_l).

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    return [scores[0].float().cpu().sigmoid().numpy() for scores in _first_stage(output).maps]


def spread(scores: np.ndarray) -> dict[str, float | list[int]]:
    """A score map's size, median, 99th percentile and maximum."""
    values = torch.from_numpy(scores).flatten().double()
    p50, p99, best = values.quantile(torch.tensor([0.5, 0.99, 1.0], dtype=torch.float64)).tolist()
    return {"size": list(scores.shape), "median": p50, "p99": p99, "best": best}


class ImageObjects(NamedTuple):
    """The annotated objects of one image; boxes are x0 y0 x1 y1 in pixels."""

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
    """A query's boxes from the anchor to the last layer, x0 y0 x1 y1 in pixels."""

    query: int  # from 0; also the index of the proposal that it starts from
    label: str  # of the final box
    score: float
    boxes: list[list[float]]  # anchor, proposal, then one per decoder layer
    moved: list[float]  # pixels between the centres of consecutive `boxes`
    object: int | None  # the annotated object matched to it in the last layer (Hungarian matching)
    ious: list[float] | None  # of each of the boxes with that object


def journeys(
    output: DinoOutput, size: tuple[int, int], objects: ImageObjects | None, loss: LossConfig,
    categories: Sequence[Category], top: int,
) -> list[Journey]:  # fmt: skip
    """The boxes of the queries matched to objects or, without annotations, of the `top` most confident queries.

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
            object=index,
            ious=None if objects is None else iou(boxes[:, query], objects.boxes[index]).tolist(),
        )
        for query, index in pairs
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
        """For JSON, with the `top` best proposals."""
        return {
            "file": self.file,
            "proposals": [proposal._asdict() for proposal in self.proposals[:top]],
            "layers": [journey._asdict() for journey in self.journeys],
            "scores": [spread(scores) for scores in self.maps],
        }


def inspect_image(
    detector: Detector, image: Image.Image, name: str, objects: ImageObjects | None, top: int
) -> Inspected:  # fmt: skip
    """Run the model on an image and collect its proposals, score maps and boxes by layer.

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    output, size, categories = detector.forward(detector.batch(image)), (image.height, image.width), detector.categories
    by_layer = journeys(output, size, objects, detector.config.loss, categories, top)
    return Inspected(name, size, list_proposals(output, size, categories), score_maps(output), by_layer, objects)


class StageSummary(NamedTuple):
    """The effect of one stage, averaged over boxes."""

    name: str  # anchor, proposal, layer 0, ...
    moved: float | None  # pixels, since the previous stage
    iou: float | None
    gain: float | None  # of the IoU, since the previous stage


def average(items: Sequence[Journey]) -> list[StageSummary]:
    """The averages over boxes, one row per stage."""
    if not items:
        return []
    moved = [None, *torch.tensor([journey.moved for journey in items]).mean(0).tolist()]
    known = [journey.ious for journey in items if journey.ious is not None]
    ious, gains = [None] * len(moved), [None] * len(moved)
    if known:
        ious = torch.tensor(known).mean(0).tolist()
        gains = [None, *(after - before for before, after in pairwise(ious))]
    names = ["anchor", "proposal", *(f"layer {n}" for n in range(len(moved) - 2))]
    return [StageSummary(*row) for row in zip(names, moved, ious, gains, strict=True)]


class Recall(NamedTuple):
    """Recall@k: the fraction of objects of one size covered by one of an image's first k proposals of one level."""

    iou: float  # threshold from which a proposal covers an object
    level: int | None  # None: any level
    size: str | None  # None: any size
    objects: int  # number of objects of this size
    shares: dict[int, float]  # fraction of the objects covered, by k


def recalls(inspected: Sequence[Inspected]) -> list[Recall]:
    """Recall@k for each IoU threshold, level, and size that has objects.

    The largest k is the number of proposals, or the last of COUNTS if there are more. Images without annotations are
    skipped.
    """
    images = [(image.proposals, image.objects) for image in inspected if image.objects is not None]
    if not sum(len(objects.boxes) for _, objects in images):
        return []
    largest = min(COUNTS[-1], max(len(proposals) for proposals, _ in images))
    counts = [*(count for count in COUNTS if count < largest), largest]
    areas = torch.cat([objects.areas for _, objects in images])
    by_size: dict[str | None, Tensor] = {None: torch.ones_like(areas, dtype=torch.bool)}
    by_size |= {size: (areas >= low) & (areas < high) for size, (low, high) in SIZES.items()}
    levels: list[int | None] = [None, *sorted({p.level for proposals, _ in images for p in proposals})]
    rows = []
    for level in levels:
        best = torch.cat([_best_iou(*image, level, counts) for image in images])  # (all objects, counts)
        for threshold in IOUS:
            for size, chosen in by_size.items():
                if chosen.any():
                    covered = (best[chosen] >= threshold).double().mean(0).tolist()
                    by_count = dict(zip(counts, covered, strict=True))
                    rows.append(Recall(threshold, level, size, int(chosen.sum()), by_count))
    return rows


def _best_iou(proposals: Sequence[Proposal], objects: ImageObjects, level: int | None, counts: Sequence[int]) -> Tensor:
    """The best IoU of each object with those of the first k proposals that have this level, (T, counts)."""
    overlap = iou(objects.boxes[:, None], torch.tensor([p.proposal for p in proposals]).view(-1, 4))  # (T, N)
    if level is not None:
        overlap = overlap.masked_fill(torch.tensor([p.level for p in proposals]) != level, 0)
    best = overlap.cummax(dim=1).values if overlap.numel() else overlap
    return best[:, [min(count, len(proposals)) - 1 for count in counts]]
