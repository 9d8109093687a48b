"""Who answers for whom: each object's query at every stage, its cost, how stable that is, and the denoising queries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...boxes import iou, to_pixels, to_xyxy
from ...config import Config, LossConfig
from ...data.annotations import Annotations, Category
from ...data.batch import Batch, Sample, collate
from ...data.loaders import EvaluationImages
from ...errors import DataError
from ...losses import Matched, match_stages
from ...matching import Cost, matching_cost
from ...model.dino import DinoOutput
from ...predict import Detector
from ...structures import DenoisingQueries, Target

COST_NAMES = {"label": "class", "box": "L1", "giou": "GIoU"}
NOTHING = -1  # in place of an object: the query answers for none


class Thing(NamedTuple):
    """An annotated object; its box in pixels, x0 y0 x1 y1."""

    label: str
    box: list[float]


class MatchedQuery(NamedTuple):
    """The query that took an object at one stage, and what that cost; the parts are weighted as in the match."""

    object: int
    query: int
    costs: dict[str, float]  # by part, all that `dinocore.matching.Cost` has
    cost: float  # their sum
    probability: float  # of the object's class, or of foreground
    iou: float
    box: list[float]


class Stage(NamedTuple):
    """The match of one stage and how it differs from the one before it."""

    name: str
    answers: list[MatchedQuery]  # by object; more objects than queries leave some out
    kept: float | None  # share of the objects whose query took them in the stage before, too
    instability: int | None  # queries whose object, or lack of one, is another than in the stage before

    def mean_costs(self) -> dict[str, float]:
        """Each part of the cost, averaged over the answers."""
        count = max(1, len(self.answers))
        names = self.answers[0].costs if self.answers else Cost._fields
        return {name: sum(answer.costs[name] for answer in self.answers) / count for name in names}

    def means(self) -> list[float]:
        """The parts, their sum, and the IoU, in the order of a table."""
        costs, count = self.mean_costs(), max(1, len(self.answers))
        return [*costs.values(), sum(costs.values()), sum(answer.iou for answer in self.answers) / count]


class Noisy(NamedTuple):
    """A denoising query: what it starts from, what it must answer, and what the last layer does answer."""

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

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "num_queries": self.num_queries,
            "num_groups": self.num_groups,
            "objects": [thing._asdict() for thing in self.objects],
            "stages": [s._asdict() | {"answers": [_answer_json(a) for a in s.answers]} for s in self.stages],
            "denoising": [noisy._asdict() for noisy in self.noisy],
        }


def cost_name(part: str) -> str:
    """A part of the cost for people; one without a better name has its own."""
    return COST_NAMES.get(part, part)


def _answer_json(answer: MatchedQuery) -> dict[str, Any]:
    """`costs` as `cost_class`, `cost_l1`, ..."""
    rest = {name: value for name, value in answer._asdict().items() if name not in ("object", "query", "costs")}
    costs = {f"cost_{cost_name(part).lower()}": value for part, value in answer.costs.items()}
    return {"object": answer.object, "query": answer.query} | costs | rest


def annotated_batch(annotations: Annotations, index: int, config: Config, seed: int) -> Batch:
    """One image as for evaluation, with its objects and the seed of its denoising noise.

    Raises:
        DataError: the image cannot be read, or has no object to match.
    """
    sample = EvaluationImages(annotations, config.data)[index]
    if not isinstance(sample, Sample):
        raise DataError(sample)
    if not len(sample.target.labels):
        raise DataError(f"{annotations.path(index)} has no object to match; name an image that has one")
    return collate([sample._replace(target=sample.target._replace(seed=seed))])


def look_at_matching(detector: Detector, batch: Batch) -> Matching:
    """Match the batch's only image as training does; denoising queries are there as in training, dropout is not."""
    output, targets = _answered(detector, batch)
    size, categories = batch.sizes[0], detector.categories
    target = targets[0]
    boxes = to_pixels(target.boxes, size)
    objects = [Thing(categories[k].name, box) for k, box in zip(target.labels.tolist(), boxes.tolist(), strict=True)]
    matched = [_once(one, len(objects)) for one in match_stages(output, targets, detector.config.loss)]
    owners = [owner_of_queries(one) for one in matched]
    stages = []
    for n, (one, owner) in enumerate(zip(matched, owners, strict=True)):
        before = owners[n - 1] if n else None
        changes = (None, None) if before is None else (share_kept(before, owner), instability(before, owner))
        stages.append(Stage(_title(one.name), _answers(one, detector.config.loss, size), *changes))
    noise = output.noise
    noisy = [] if noise is None else _noisy(output, noise, target, size, categories)
    return Matching(objects, stages, noisy, len(owners[-1]), noise.num_groups if noise else 0)


def final_owners(detector: Detector, batch: Batch) -> Tensor:
    """Which object each query of the last layer answers for, (N,); to compare checkpoints."""
    output, targets = _answered(detector, batch)
    return owner_of_queries(list(match_stages(output, targets, detector.config.loss))[-1])


def _once(one: Matched, count: int) -> Matched:
    """The stage with each of the only image's `count` objects once, where several queries answered for a copy each."""
    (target,) = one.targets
    target = target._replace(labels=target.labels[:count], boxes=target.boxes[:count])
    return one._replace(targets=[target], match=one.match._replace(target=one.match.target % count))


def owner_of_queries(one: Matched) -> Tensor:
    """DN-DETR's index vector: the object of each query of the only image, or NOTHING, (N,) int64."""
    owner = torch.full((one.predictions.boxes.shape[1],), NOTHING)
    owner[one.match.query.cpu()] = one.match.target.cpu()
    return owner


def instability(before: Tensor, after: Tensor) -> int:
    """How many queries answer for something else than before, (N,), (N,).

    Source: DN-DETR (https://arxiv.org/abs/2203.01305), where it is taken between epochs.
    """
    return int((before != after).sum())


def share_kept(before: Tensor, after: Tensor) -> float:
    """The share of matched objects whose query is the same as before."""
    taken = after != NOTHING
    return float((before == after)[taken].float().mean()) if taken.any() else 1.0


def _answered(detector: Detector, batch: Batch) -> tuple[DinoOutput, list[Target]]:
    output = detector.forward(batch, batch.targets)
    device = output.final.boxes.device
    return output, [t._replace(labels=t.labels.to(device), boxes=t.boxes.to(device)) for t in batch.targets]


def _answers(one: Matched, loss: LossConfig, size: tuple[int, int]) -> list[MatchedQuery]:
    logits, boxes, target = one.predictions.logits[0], one.predictions.boxes[0], one.targets[0]
    cost = matching_cost(logits, boxes, target, loss)
    order = one.match.target.argsort()
    query, wanted = one.match.query[order], one.match.target[order]  # (T,)
    costs = {name: part[query, wanted].tolist() for name, part in cost._asdict().items()}
    parts = [dict(zip(costs, values, strict=True)) for values in zip(*costs.values(), strict=True)]
    sure = logits[query, target.labels[wanted]].sigmoid()
    overlap = iou(to_xyxy(boxes[query]), to_xyxy(target.boxes[wanted]))
    columns = (wanted, query, parts, cost.total[query, wanted], sure, overlap, to_pixels(boxes[query], size))
    rows = zip(*(x if isinstance(x, list) else x.tolist() for x in columns), strict=True)
    return [MatchedQuery(*row) for row in rows]


def _noisy(
    output: DinoOutput, noise: DenoisingQueries, target: Target, size: tuple[int, int], categories: Sequence[Category]
) -> list[Noisy]:
    """The denoising queries of the only image; a negative belongs to the positive at its place in the group."""
    last = (output.denoising or [])[-1]
    targets = dict(zip(noise.match.query.tolist(), noise.match.target.tolist(), strict=True))
    copies = 2 if bool(noise.negative.any()) else 1
    slots = len(noise.group) // (noise.num_groups * copies)
    negative, group, labels = noise.negative.tolist(), noise.group.tolist(), noise.labels[0].tolist()
    start, answer = to_pixels(noise.boxes[0], size).tolist(), to_pixels(last.boxes[0], size).tolist()
    true = to_pixels(target.boxes, size).tolist()
    rows = []
    for q, bad in enumerate(negative):
        t = targets[q - slots if bad else q]
        name = categories[int(target.labels[t])].name
        sure = float(last.logits[0, q, target.labels[t]].float().sigmoid())
        overlap = float(iou(to_xyxy(last.boxes[0, q].float()), to_xyxy(target.boxes[t])))
        expected = ("no object", None) if q not in targets else (name, true[t])
        given = categories[labels[q]].name
        rows.append(Noisy(q, group[q], not bad, t, given, start[q], *expected, sure, overlap, answer[q]))
    return rows


def _title(name: str) -> str:
    """The loss's name of a stage, for people; layers are numbered from 0 as everywhere."""
    return "first stage" if name == "proposals" else name.replace("stage", "layer ")
