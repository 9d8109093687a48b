"""The training loss. A match is treated the same, whether from Hungarian matching or from denoising."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import generalized_iou, to_xyxy
from .config import LossConfig, check_section
from .matching import hungarian, negative_focal, positive_focal
from .model.dino import DinoOutput
from .structures import Match, Predictions, Target


def criterion(
    output: DinoOutput, targets: list[Target], num_boxes: float, loss: LossConfig, num_denoised: float | None = None
) -> dict[str, Tensor]:
    """Weighted loss terms by name, such as `stage0/box`; their sum is the training loss. In at least float32.

    Args:
        num_boxes: objects in the whole optimizer step, averaged over ranks; at least 1 is used.
        num_denoised: how many of them have denoising queries, whose number per image is limited; None: count those of
            this batch, for steps of a single batch. Official DINO divides by all objects, which is the same if all
            of them have denoising queries.

    Raises:
        ConfigError: `loss` is not a `loss` section.
    """
    check_section(loss, LossConfig)
    num_boxes = max(1.0, num_boxes)
    terms = {}
    for name, predictions, stage_targets, match in match_stages(output, targets, loss):
        repeats = loss.proposal_positives if name == "proposals" else 1
        terms |= _named(name, detection_loss(predictions, stage_targets, match, num_boxes * repeats, loss))
    if output.extra is not None:
        stage_targets = _repeated(targets, loss.extra_positives)
        stages = [_float(stage) for stage in output.extra]
        for i, (stage, match) in enumerate(zip(stages, hungarian(stages, stage_targets, loss), strict=True)):
            losses = detection_loss(stage, stage_targets, match, num_boxes * loss.extra_positives, loss)
            terms |= _named(f"extra{i}", losses)
    if output.noise is not None:
        if loss.denoising_label != "same":
            loss = loss.model_copy(update={"label": loss.denoising_label})
        num_groups = max(1, output.noise.num_groups)
        if num_denoised is None:
            num_denoised = len(output.noise.match.target) / num_groups
        divisor = max(1.0, num_denoised) * num_groups
        for i, stage in enumerate(output.denoising or []):
            losses = detection_loss(_float(stage), targets, output.noise.match, divisor, loss)
            terms |= _named(f"denoising{i}", losses)
    return terms


class Matched(NamedTuple):
    """A stage, its targets, and their match."""

    name: str  # "proposals" for the first stage, "stage0" for the first decoder layer
    predictions: Predictions  # in at least float32
    targets: list[Target]
    match: Match


def match_stages(output: DinoOutput, targets: list[Target], loss: LossConfig) -> Iterator[Matched]:
    """Every stage with Hungarian matching, in the model's order."""
    if output.proposals is not None:
        proposals = _float(Predictions(output.proposals.logits, output.proposals.boxes))
        stage_targets = _foreground(targets) if loss.proposal_labels == "foreground" else targets
        stage_targets = _repeated(stage_targets, loss.proposal_positives)
        (match,) = hungarian([proposals], stage_targets, loss)
        yield Matched("proposals", proposals, stage_targets, match)
    stages = [_float(stage) for stage in output.stages]
    for i, (stage, match) in enumerate(zip(stages, hungarian(stages, targets, loss), strict=True)):
        yield Matched(f"stage{i}", stage, targets, match)


def detection_loss(
    predictions: Predictions, targets: list[Target], match: Match, num_boxes: float, loss: LossConfig
) -> dict[str, Tensor]:
    """Focal loss on all queries; L1 and GIoU loss on the matched ones."""
    labels = torch.cat([t.labels for t in targets])  # (sum T,)
    boxes = torch.cat([t.boxes for t in targets])  # (sum T, 4)
    target_logits = predictions.logits[
        match.image, match.query, labels[match.target]
    ]  # of the true class of each match
    pred_boxes, target_boxes = predictions.boxes[match.image, match.query], boxes[match.target]
    alpha, gamma = loss.focal_alpha, loss.focal_gamma
    focal = negative_focal(predictions.logits, alpha, gamma).sum()
    focal = focal + (positive_focal(target_logits, alpha, gamma) - negative_focal(target_logits, alpha, gamma)).sum()
    return {
        "label": loss.label * focal / num_boxes,
        "box": loss.box * F.l1_loss(pred_boxes, target_boxes, reduction="sum") / num_boxes,
        "giou": loss.giou * (1 - generalized_iou(to_xyxy(pred_boxes), to_xyxy(target_boxes))).sum() / num_boxes,
    }


def _foreground(targets: list[Target]) -> list[Target]:
    """The same objects, all of class 0."""
    return [t._replace(labels=torch.zeros_like(t.labels)) for t in targets]


def _repeated(targets: list[Target], times: int) -> list[Target]:
    """The same objects several times, so that several queries are matched to each."""
    if times == 1:
        return targets
    return [t._replace(labels=t.labels.repeat(times), boxes=t.boxes.repeat(times, 1)) for t in targets]


def _float(predictions: Predictions) -> Predictions:
    """In at least float32."""
    return Predictions(*(x.to(torch.promote_types(x.dtype, torch.float32)) for x in predictions))


def _named(prefix: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in terms.items()}
