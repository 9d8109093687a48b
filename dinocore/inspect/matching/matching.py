"""The query of each object at every stage, its cost and stability, and the denoising queries."""

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

COST_NAMES = {"label": "class", "box": "L1", "giou": "GIoU"}
STAGE_NAMES = {"proposals": "first stage"}  # the others by their layer, from 0
NOTHING = -1  # in place of an object: the query answers for none


class Thing(NamedTuple):
    """An annotated object; its box in pixels, x0 y0 x1 y1."""

    label: str
    box: list[float]


class MatchedQuery(NamedTuple):
    """The query matched to an object at one stage, and its cost; the parts are weighted as in matching."""

    object: int
    query: int
    costs: dict[str, float]  # by part, all that `dinocore.matching.Cost` has
    cost: float  # their sum
    probability: float  # of the object's class, or of foreground
    iou: float
    box: list[float]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: `costs` as `cost_class`, `cost_l1`, ..."""
        costs = {f"cost_{cost_name(part).lower()}": value for part, value in self.costs.items()}
        rest = {name: getattr(self, name) for name in ("cost", "probability", "iou", "box")}
        return {"object": self.object, "query": self.query} | costs | rest


class Stage(NamedTuple):
    """The match of one stage, and its difference from the previous one."""

    name: str
    answers: list[MatchedQuery]  # by object, at least one; more objects than queries leave some out
    kept: float | None  # share of the objects whose query took them in the stage before, too
    instability: int | None  # queries whose object, or lack of one, is another than in the stage before

    def mean_costs(self) -> dict[str, float]:
        """Each part of the cost, averaged over the answers."""
        count = len(self.answers)
        return {name: sum(answer.costs[name] for answer in self.answers) / count for name in self.answers[0].costs}

    def means(self) -> list[float]:
        """The parts, their sum, and the IoU, in the order of a table."""
        costs, overlap = self.mean_costs().values(), sum(answer.iou for answer in self.answers)
        return [*costs, sum(costs), overlap / len(self.answers)]


class Noisy(NamedTuple):
    """A denoising query: its input, its target, and the last layer's prediction."""

    query: int
    group: int
    positive: bool
    object: int  # that it was made from
    start_label: str
    start_box: list[float]
    told: str  # the class that it must answer, or "no object"
    told_box: list[float] | None
    probability: float  # of the object's class, in the last layer
    iou: float  # of the last layer's box and the object
    box: list[float]


class Matching(NamedTuple):
    """All of it for one image."""

    objects: list[Thing]
    stages: list[Stage]
    noisy: list[Noisy]
    num_queries: int
    num_groups: int

    @property
    def cost_names(self) -> list[str]:
        """The parts of the cost, for people."""
        return [cost_name(part) for part in self.stages[0].mean_costs()]

    def by_object(self) -> list[tuple[int, str, list[MatchedQuery | None]]]:
        """Number and class of each object, and its matched query at every stage."""
        columns = [{answer.object: answer for answer in stage.answers} for stage in self.stages]
        return [(t, thing.label, [column.get(t) for column in columns]) for t, thing in enumerate(self.objects)]

    def object_rows(self) -> list[list[Any]]:
        """Number, class, query at every stage, and the last stage's IoU and probability; None where there is none."""
        return [
            [t, label, *(answer and answer.query for answer in answers),
             *((last.iou, last.probability) if (last := answers[-1]) else (None, None))]
            for t, label, answers in self.by_object()
        ]  # fmt: skip

    def stage_rows(self) -> list[list[Any]]:
        """Name, means, kept and instability of every stage."""
        return [[stage.name, *stage.means(), stage.kept, stage.instability] for stage in self.stages]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "num_queries": self.num_queries,
            "num_groups": self.num_groups,
            "objects": [thing._asdict() for thing in self.objects],
            "stages": [s._asdict() | {"answers": [a.as_dict() for a in s.answers]} for s in self.stages],
            "denoising": [noisy._asdict() for noisy in self.noisy],
        }


def cost_name(part: str) -> str:
    """A part of the cost for people; one without a better name has its own."""
    return COST_NAMES.get(part, part)


def annotated_batch(annotations: Annotations, index: int, config: Config, seed: int) -> Batch:
    """One image as for evaluation, with its objects and the seed of its denoising noise.

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
    """Match the batch's only image as training does; denoising queries are there as in training, dropout is not."""
    output, target, matched = _matched(detector, batch)
    size, names = batch.sizes[0], [category.name for category in detector.categories]
    boxes = to_pixels(target.boxes, size).tolist()
    objects = [Thing(names[label], box) for label, box in zip(target.labels.tolist(), boxes, strict=True)]
    owners = [owner_of_queries(one) for one in matched]
    stages = [
        Stage(
            STAGE_NAMES.get(one.name, one.name.replace("stage", "layer ")),
            _answers(one, detector.config.loss, size),
            **changes(before, owner),
        )
        for one, before, owner in zip(matched, [None, *owners[:-1]], owners, strict=True)
    ]
    noise = output.noise
    noisy = [] if noise is None else _noisy(output, noise, target, size, names)
    return Matching(objects, stages, noisy, len(owners[-1]), noise.num_groups if noise else 0)


def final_owners(detector: Detector, batch: Batch) -> Tensor:
    """The object matched to each query of the last layer, (N,), to compare checkpoints."""
    return owner_of_queries(_matched(detector, batch)[-1][-1])


def _matched(detector: Detector, batch: Batch) -> tuple[DinoOutput, Target, list[Matched]]:
    """What the model answers, the only image's objects, and every stage's match.

    Where several queries answer for copies of an object, they all answer for the object itself.
    """
    output = detector.forward(batch, batch.targets)
    device = output.final.boxes.device
    (target,) = (t._replace(labels=t.labels.to(device), boxes=t.boxes.to(device)) for t in batch.targets)
    count, stages = len(target.labels), []
    for one in match_stages(output, [target], detector.config.loss):
        own = one.targets[0]._replace(labels=one.targets[0].labels[:count], boxes=target.boxes)
        stages.append(one._replace(targets=[own], match=one.match._replace(target=one.match.target % count)))
    return output, target, stages


def owner_of_queries(one: Matched) -> Tensor:
    """DN-DETR's index vector: the object of each query of the only image, or NOTHING, (N,) int64."""
    owner = torch.full((one.predictions.boxes.shape[1],), NOTHING)
    owner[one.match.query.cpu()] = one.match.target.cpu()
    return owner


def instability(before: Tensor, after: Tensor) -> int:
    """The number of queries matched to a different object than before, (N,), (N,).

    Source: DN-DETR (https://arxiv.org/abs/2203.01305), where it is taken between epochs.
    """
    return int((before != after).sum())


def share_kept(before: Tensor, after: Tensor) -> float:
    """The fraction of matched objects that keep their query."""
    taken = after != NOTHING
    return float((before == after)[taken].float().mean()) if taken.any() else 1.0


def changes(before: Tensor | None, after: Tensor) -> dict[str, Any]:
    """Both, of the queries' objects, (N,), (N,); None for the first match."""
    if before is None:
        return {"kept": None, "instability": None}
    return {"kept": share_kept(before, after), "instability": instability(before, after)}


def _answers(one: Matched, loss: LossConfig, size: tuple[int, int]) -> list[MatchedQuery]:
    logits, boxes, target = one.predictions.logits[0], one.predictions.boxes[0], one.targets[0]
    cost = matching_cost(logits, boxes, target, loss)
    order = one.match.target.argsort()
    query, wanted = one.match.query[order], one.match.target[order]  # (T,)
    costs = {name: part[query, wanted].tolist() for name, part in cost._asdict().items()}
    parts = [dict(zip(costs, values, strict=True)) for values in zip(*costs.values(), strict=True)]
    sure = logits[query, target.labels[wanted]].sigmoid()
    overlap = iou(to_xyxy(boxes[query]), to_xyxy(target.boxes[wanted]))
    columns = (cost.total[query, wanted], sure, overlap, to_pixels(boxes[query], size))
    rows = zip(wanted.tolist(), query.tolist(), parts, *(column.tolist() for column in columns), strict=True)
    return [MatchedQuery(*row) for row in rows]


def _noisy(
    output: DinoOutput, noise: DenoisingQueries, target: Target, size: tuple[int, int], names: list[str]
) -> list[Noisy]:
    """The denoising queries of the only image, which has no padding."""
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
        Noisy(query, group, positive, number, names[start], place, names[label] if positive else "no object",
              true if positive else None, sure, overlap, box)
        for query, (group, positive, number, start, place, label, true, sure, overlap, box) in rows
    ]  # fmt: skip
