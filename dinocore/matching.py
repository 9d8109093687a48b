"""Match predictions to objects: the two sides of the focal loss, matching costs, the Hungarian method."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import generalized_iou, to_xyxy
from .config import LossConfig
from .errors import DivergedError
from .structures import Match, Predictions, Target


def positive_focal(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of logits that should be high, unreduced. Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002"""
    return alpha * (-logits).sigmoid() ** gamma * F.softplus(-logits)


def negative_focal(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of logits that should be low, unreduced."""
    return (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)


@torch.no_grad()
def hungarian(stages: Sequence[Predictions], targets: list[Target], loss: LossConfig) -> list[Match]:
    """For each stage, match each target to one query with the lowest total cost.

    If an image has more targets than queries, those with the highest cost are not matched. All costs go to the host
    in one transfer.

    Raises:
        DivergedError: a cost is not finite, because predictions are not.
        ValueError: the number of targets differs from the number of images.
    """
    if len(targets) != len(stages[0].logits):
        raise ValueError(f"{len(targets)} targets for {len(stages[0].logits)} images; give one Target per image")
    device = targets[0].boxes.device
    starts = np.cumsum([0, *(len(t.labels) for t in targets)]).tolist()
    costs = []  # of every image, (stages, N, T_i)
    for i, target in enumerate(targets):
        logits = torch.stack([stage.logits[i] for stage in stages])
        boxes = torch.stack([stage.boxes[i] for stage in stages])
        costs.append(matching_cost(logits, boxes, target, loss).total)
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()  # the only transfer
    if not np.isfinite(flat).all():
        raise DivergedError("the model's predictions are not finite, so they cannot be matched with the objects")
    ends = np.cumsum([cost.numel() for cost in costs])[:-1]
    costs = [part.reshape(cost.shape) for part, cost in zip(np.split(flat, ends), costs, strict=True)]
    pairs = [[linear_sum_assignment(cost[s]) for cost in costs] for s in range(len(stages))]
    matches = []
    for stage in pairs:
        image = np.concatenate([np.full(len(rows), i) for i, (rows, _) in enumerate(stage)])
        query = np.concatenate([rows for rows, _ in stage])
        target = np.concatenate([starts[i] + columns for i, (_, columns) in enumerate(stage)])
        matches.append(Match(*(torch.from_numpy(x.astype(np.int64)).to(device) for x in (image, query, target))))
    return matches


class Cost(NamedTuple):
    """The cost of matching query n to target t, as weighted parts, each (..., N, T)."""

    label: Tensor
    box: Tensor  # L1 distance
    giou: Tensor

    @property
    def total(self) -> Tensor:
        """The input of the Hungarian method."""
        return self.label + self.box + self.giou


def matching_cost(logits: Tensor, boxes: Tensor, target: Target, loss: LossConfig) -> Cost:
    """The cost of every (query, target) pair, (..., N, K), (..., N, 4) -> parts of (..., N, T)."""
    target_logits = logits[..., target.labels]  # (..., N, T)
    alpha, gamma = loss.focal_alpha, loss.focal_gamma
    label = positive_focal(target_logits, alpha, gamma) - negative_focal(target_logits, alpha, gamma)
    distance = (boxes[..., None, :] - target.boxes).abs().sum(-1)
    giou = generalized_iou(to_xyxy(boxes)[..., None, :], to_xyxy(target.boxes))
    return Cost(loss.cost_label * label, loss.cost_box * distance, -loss.cost_giou * giou)
