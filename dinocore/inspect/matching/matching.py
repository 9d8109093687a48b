"""The query matched to each object at every stage, its cost and stability, and the denoising queries."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...boxes import iou, to_pixels, to_xyxy
from ...config import Config, LossConfig
from ...data.annotations import Annotations
from ...data.batch import Batch, Sample, collate
from ...data.loaders import EvaluationImages
from ...errors import DataError
from ...losses import Matched, match_stages
from ...matching import matching_cost
from ...model.dino import DinoOutput
from ...predict import Detector
from ...structures import DenoisingQueries, Target
from ...words import STAGE_NAMES

COST_NAMES = {"label": "class", "box": "L1", "giou": "GIoU"}
UNMATCHED = -1  # in place of an object index


class AnnotatedObject(NamedTuple):
    """An annotated object; its box in pixels, x0 y0 x1 y1."""

    label: str
    box: list[float]


class MatchedQuery(NamedTuple):
    """The query matched to an object at one stage, and its cost, whose parts are weighted as in matching."""

    object: int
    query: int
    costs: dict[str, float]  # by part, the fields of `dinocore.matching.Cost`
    cost: float  # sum of the parts
    probability: float  # of the object's class, or of foreground
    iou: float  # of the predicted box and the object
    box: list[float]  # the predicted box, x0 y0 x1 y1 in pixels

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `costs` becomes `cost_class`, `cost_l1`, ..."""
        costs = {f"cost_{cost_name(part).lower()}": value for part, value in self.costs.items()}
        totals = {name: getattr(self, name) for name in ("cost", "probability", "iou", "box")}
        return {"object": self.object, "query": self.query} | costs | totals


class Stage(NamedTuple):
    """The matching of one stage, and how it differs from the previous stage."""

    name: str
    answers: list[MatchedQuery]  # ordered by object, at least one; fewer than objects if there are too few queries
    kept: float | None  # fraction of matched objects with the same query as in the previous stage
    instability: int | None  # number of queries whose object, or lack of one, differs from the previous stage

    def mean_costs(self) -> dict[str, float]:
        """Each part of the cost, averaged over the matched queries."""
        count = len(self.answers)
        return {name: sum(answer.costs[name] for answer in self.answers) / count for name in self.answers[0].costs}

    def means(self) -> list[float]:
        """The mean of each part of the cost, of their sum, and of the IoU, in the order of the table's columns."""
        costs, overlap = self.mean_costs().values(), sum(answer.iou for answer in self.answers)
        return [*costs, sum(costs), overlap / len(self.answers)]


class NoisyQuery(NamedTuple):
    """A denoising query: its input, its target, and the last layer's prediction; boxes are x0 y0 x1 y1 in pixels."""

    query: int
    group: int
    positive: bool
    object: int  # the object that it is a noisy copy of
    start_label: str
    start_box: list[float]
    target_label: str  # the class that it must predict, or "no object"
    target_box: list[float] | None
    probability: float  # of the object's class, in the last layer
    iou: float  # of the last layer's box and the object
    box: list[float]  # the last layer's box

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the target is called `told` and `told_box`."""
        names = {"target_label": "told", "target_box": "told_box"}
        return {names.get(name, name): value for name, value in self._asdict().items()}


class Matching(NamedTuple):
    """The matching of one image at every stage, and its denoising queries."""

    objects: list[AnnotatedObject]
    stages: list[Stage]
    noisy: list[NoisyQuery]
    num_queries: int
    num_groups: int

    @property
    def cost_names(self) -> list[str]:
        """Display names of the parts of the cost."""
        return [cost_name(part) for part in self.stages[0].mean_costs()]

    def by_object(self) -> list[tuple[int, str, list[MatchedQuery | None]]]:
        """Index and class of each object, and its matched query at every stage, None if unmatched."""
        columns = [{answer.object: answer for answer in stage.answers} for stage in self.stages]
        return [(t, one.label, [column.get(t) for column in columns]) for t, one in enumerate(self.objects)]

    def object_rows(self) -> list[list[Any]]:
        """Index, class, query at every stage, and the last stage's IoU and probability; None where unmatched."""
        return [
            [t, label, *(answer and answer.query for answer in answers),
             *((last.iou, last.probability) if (last := answers[-1]) else (None, None))]
            for t, label, answers in self.by_object()
        ]  # fmt: skip

    def stage_rows(self) -> list[list[Any]]:
        """Name, means, `kept` and `instability` of every stage."""
        return [[stage.name, *stage.means(), stage.kept, stage.instability] for stage in self.stages]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_queries": self.num_queries,
            "num_groups": self.num_groups,
            "objects": [one._asdict() for one in self.objects],
            "stages": [s._asdict() | {"answers": [a.as_dict() for a in s.answers]} for s in self.stages],
            "denoising": [query.as_dict() for query in self.noisy],
        }


def cost_name(part: str) -> str:
    """The display name of a part of the cost; the part's own name by default."""
    return COST_NAMES.get(part, part)


def annotated_batch(annotations: Annotations, index: int, config: Config, seed: int) -> Batch:
    """A batch of one image, resized as for evaluation, with its objects and the seed of its denoising noise.

    Raises:
        DataError: the image cannot be read, or has no objects to match.
    """
    sample = EvaluationImages(annotations, config.data)[index]
    if not isinstance(sample, Sample):
        raise DataError(sample)
    if not len(sample.target.labels):
        raise DataError(f"{annotations.path(index)} has no objects to match; choose an image that has some")
    return collate([sample._replace(target=sample.target._replace(seed=seed))])


def look_at_matching(detector: Detector, batch: Batch) -> Matching:
    """Match a batch of one image as in training, with denoising queries but without dropout."""
    output, target, matched = _matched(detector, batch)
    size, names = batch.sizes[0], [category.name for category in detector.categories]
    boxes = to_pixels(target.boxes, size).tolist()
    objects = [AnnotatedObject(names[label], box) for label, box in zip(target.labels.tolist(), boxes, strict=True)]
    matched_objects = [object_of_queries(one) for one in matched]
    stages = [
        Stage(
            STAGE_NAMES.get(one.name, one.name.replace("stage", "layer ")),
            _answers(one, detector.config.loss, size),
            **changes(before, after),
        )
        for one, before, after in zip(matched, [None, *matched_objects[:-1]], matched_objects, strict=True)
    ]
    noise = output.noise
    noisy = [] if noise is None else _noisy(output, noise, target, size, names)
    return Matching(objects, stages, noisy, len(matched_objects[-1]), noise.num_groups if noise else 0)


def final_objects(detector: Detector, batch: Batch) -> Tensor:
    """The object matched to each query in the last layer, (N,) int64, to compare checkpoints."""
    return object_of_queries(_matched(detector, batch)[-1][-1])


def _matched(detector: Detector, batch: Batch) -> tuple[DinoOutput, Target, list[Matched]]:
    """The model's output, the objects of the batch's only image, and the matching of every stage.

    If a stage matches several queries to copies of an object, all of them get the object's own index.
    """
    output = detector.forward(batch, batch.targets)
    device = output.final.boxes.device
    (target,) = (t._replace(labels=t.labels.to(device), boxes=t.boxes.to(device)) for t in batch.targets)
    count, stages = len(target.labels), []
    for one in match_stages(output, [target], detector.config.loss):
        own = one.targets[0]._replace(labels=one.targets[0].labels[:count], boxes=target.boxes)
        stages.append(one._replace(targets=[own], match=one.match._replace(target=one.match.target % count)))
    return output, target, stages


def object_of_queries(one: Matched) -> Tensor:
    """DN-DETR's index vector: the object of each query of the only image, or UNMATCHED, (N,) int64."""
    objects = torch.full((one.predictions.boxes.shape[1],), UNMATCHED)
    objects[one.match.query.cpu()] = one.match.target.cpu()
    return objects


def instability(before: Tensor, after: Tensor) -> int:
    """The number of queries matched to a different object than before; both index vectors are (N,).

    Source: DN-DETR (https://arxiv.org/abs/2203.01305), which compares epochs.
    """
    return int((before != after).sum())


def fraction_kept(before: Tensor, after: Tensor) -> float:
    """The fraction of matched objects that keep their query; both index vectors are (N,)."""
    matched = after != UNMATCHED
    return float((before == after)[matched].float().mean()) if matched.any() else 1.0


def changes(before: Tensor | None, after: Tensor) -> dict[str, Any]:
    """`kept` and `instability` between two index vectors (N,); both None if there is nothing to compare with."""
    if before is None:
        return {"kept": None, "instability": None}
    return {"kept": fraction_kept(before, after), "instability": instability(before, after)}


def _answers(one: Matched, loss: LossConfig, size: tuple[int, int]) -> list[MatchedQuery]:
    logits, boxes, target = one.predictions.logits[0], one.predictions.boxes[0], one.targets[0]
    cost = matching_cost(logits, boxes, target, loss)
    order = one.match.target.argsort()
    query, matched = one.match.query[order], one.match.target[order]  # (T,)
    costs = {name: part[query, matched].tolist() for name, part in cost._asdict().items()}
    parts = [dict(zip(costs, values, strict=True)) for values in zip(*costs.values(), strict=True)]
    probability = logits[query, target.labels[matched]].sigmoid()
    overlap = iou(to_xyxy(boxes[query]), to_xyxy(target.boxes[matched]))
    columns = (cost.total[query, matched], probability, overlap, to_pixels(boxes[query], size))
    rows = zip(matched.tolist(), query.tolist(), parts, *(column.tolist() for column in columns), strict=True)
    return [MatchedQuery(*row) for row in rows]


def _noisy(
    output: DinoOutput, noise: DenoisingQueries, target: Target, size: tuple[int, int], names: list[str]
) -> list[NoisyQuery]:
    """The denoising queries of a batch of one image, in which no slot is padding."""
    last = (output.denoising or [])[-1]
    logits, boxes, objects = last.logits[0].float(), last.boxes[0].float(), noise.target_index[0]  # (Q,)
    labels = target.labels[objects]
    columns = (
        noise.group, ~noise.negative, objects, noise.labels[0], to_pixels(noise.boxes[0], size), labels,
        to_pixels(target.boxes[objects], size), logits.gather(1, labels[:, None])[:, 0].sigmoid(),
        iou(to_xyxy(boxes), to_xyxy(target.boxes[objects])), to_pixels(boxes, size),
    )  # fmt: skip
    rows = enumerate(zip(*(column.tolist() for column in columns), strict=True))
    return [
        NoisyQuery(query, group, positive, index, names[start], start_box, names[label] if positive else "no object",
                   target_box if positive else None, probability, overlap, box)
        for query, (group, positive, index, start, start_box, label, target_box, probability, overlap, box) in rows
    ]  # fmt: skip
