"""Contrastive denoising (DINO, section 3.3): queries that start as noisy copies of the targets.

Each of G groups has every target twice: a positive, moved by less than half its size, which must predict the target,
and a negative, moved by more, which must predict "no object". In a group, positives come first:

    | + + + - - - | + + + - - - | m m m m m m |        T = 3, G = 2, N = 6 matching queries

Plain denoising (DN-DETR, https://arxiv.org/abs/2203.01305) has only the positives.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..boxes import to_cxcywh, to_xyxy
from ..structures import EXTRA, MATCHING, DenoisingQueries, Match, Queries, Target


class Denoiser(nn.Module):
    """Builds denoising queries from targets; used in training only.

    To limit the number of queries, at most `max_targets` objects of an image take part. If an image has more, they are
    sampled anew in every step, so that all are used over time; the others are still matched. (Official DINO uses one
    group of all objects, however many.)
    """

    def __init__(
        self,
        label_embed: nn.Embedding,
        num_classes: int,
        count_groups: Callable[[int], int],
        copies: int,
        max_targets: int,
        label_noise: float,
        box_noise: float,
    ):
        """
        Args:
            label_embed: one row per class; official weights have one more, which is never used.
            count_groups: the number of groups, given the largest number of targets of an image.
            copies: 2 for a positive and a negative per target and group, 1 for a positive only.
            label_noise: twice the probability of replacing a label by a random one.
            box_noise: 1 moves a corner of a positive by up to half the box's width and height.
        """
        super().__init__()
        self.label_embed = label_embed
        self.num_classes = num_classes
        self.count_groups = count_groups
        self.copies = copies
        self.max_targets = max_targets
        self.label_noise = label_noise
        self.box_noise = box_noise

    def forward(self, targets: list[Target]) -> DenoisingQueries:
        """
        Returns:
            G * copies * T queries, where T is the largest number of objects in an image, but at most `max_targets`.
        """
        device = targets[0].boxes.device
        num_targets = min(self.max_targets, max(len(t.labels) for t in targets))
        shape = (self.count_groups(num_targets), self.copies, num_targets)
        draws = [draw_noise(t, shape, self.num_classes, self.label_noise).padded(num_targets) for t in targets]
        chosen = [draw.chosen.to(device) for draw in draws]
        boxes = _pad([t.boxes[c] for t, c in zip(targets, chosen, strict=True)])  # (B, T, 4)
        labels = _pad([t.labels[c] for t, c in zip(targets, chosen, strict=True)])  # (B, T)
        counts = torch.tensor([len(c) for c in chosen], device=device)
        valid = (torch.arange(num_targets, device=device) < counts[:, None])[:, None, None]  # (B, 1, 1, T)

        flipped = torch.stack([draw.labels for draw in draws]).to(device)  # (B, G, copies, T)
        labels = torch.where(flipped >= 0, flipped, labels[:, None, None]).flatten(1)  # (B, Q)
        move = self.box_noise * torch.stack([draw.move for draw in draws]).to(boxes)  # (B, G, copies, T, 4)
        boxes = torch.where(valid[..., None], jitter(boxes[:, None, None], move), 0.5).flatten(1, 3)  # (B, Q, 4)
        valid = valid.expand(-1, *shape).flatten(1)  # (B, Q)
        target_index = _pad(chosen, fill=-1)[:, None, None].expand(-1, *shape)  # (B, G, copies, T)
        group, copy, _ = torch.meshgrid(*(torch.arange(n, device=device) for n in shape), indexing="ij")
        return DenoisingQueries(
            content=self.label_embed(labels) * valid[..., None],
            boxes=boxes,
            group=group.flatten(),
            negative=copy.flatten() == 1,
            valid=valid,
            match=positive_match(targets, chosen, shape),
            num_groups=shape[0],
            target_index=target_index.flatten(1),
            labels=labels,
        )


class NoDenoiser(nn.Module):
    """Training without denoising."""

    def forward(self, targets: list[Target]) -> None:
        """No denoising queries."""


class Draw(NamedTuple):
    """All random choices for one image."""

    chosen: Tensor  # (T_i,) int64, the targets that take part
    labels: Tensor  # (G, copies, T_i) int64, random labels; -1 keeps the true label
    move: Tensor  # (G, copies, T_i, 4), moves of the corners, in halves of the box's size

    def padded(self, num_targets: int) -> "Draw":
        """Padded to this number of targets."""
        more = num_targets - len(self.chosen)
        return self._replace(labels=F.pad(self.labels, (0, more), value=-1), move=F.pad(self.move, (0, 0, 0, more)))


def draw_noise(target: Target, limits: tuple[int, int, int], num_classes: int, label_noise: float) -> Draw:
    """Draw one image's noise from its own seed, independent of other images' objects.

    Args:
        limits: groups, copies, and the largest number of objects that may take part.
    """
    generator = None if target.seed is None else torch.Generator().manual_seed(target.seed)
    chosen = torch.arange(len(target.labels))
    if len(chosen) > limits[-1]:
        chosen = torch.randperm(len(chosen), generator=generator)[: limits[-1]].sort().values
    shape = (*limits[:2], len(chosen))
    replaced = torch.rand(shape, generator=generator) < label_noise / 2
    labels = torch.where(replaced, torch.randint(num_classes, shape, generator=generator), -1)
    negative = torch.arange(shape[1])[:, None, None]  # positives move by [0, 1), negatives by [1, 2)
    distance = torch.rand(*shape, 4, generator=generator) + negative
    sign = torch.randint(2, (*shape, 4), generator=generator) * 2 - 1
    return Draw(chosen, labels, sign * distance)


def jitter(boxes: Tensor, move: Tensor) -> Tensor:
    """Move each corner by a fraction of half the box's size; corners stay within the image, (..., 4) -> (..., 4)."""
    half = boxes[..., 2:].tile(2) / 2
    return to_cxcywh((to_xyxy(boxes) + move * half).clamp(0, 1))


def _pad(rows: list[Tensor], fill: float = 0) -> Tensor:
    """Stack tensors of different lengths with padding, B x (T_i, ...) -> (B, T, ...)."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


def join(noise: DenoisingQueries | None, matching: Queries, extra: Queries | None = None) -> Queries:
    """Join denoising, matching and extra queries, in this order, with the mask that separates them."""
    group = torch.full(matching.boxes.shape[1:2], MATCHING, device=matching.boxes.device)  # (N,)
    parts = [matching]
    if noise is not None:
        parts.insert(0, Queries(noise.content, noise.boxes))
        group = torch.cat([noise.group, group])
    if extra is not None:
        parts.append(extra)
        group = F.pad(group, (0, extra.boxes.shape[1]), value=EXTRA)
    return Queries(
        content=torch.cat([part.content for part in parts], dim=1),
        boxes=torch.cat([part.boxes for part in parts], dim=1),
        blocked=attention_mask(group),
    )


def attention_mask(group: Tensor) -> Tensor:
    """The attention mask, (N,) -> (N, N) bool, True if row must not attend to column.

    A denoising query contains its target, so only its own group may attend to it; it may attend to matching queries.
    Extra queries and all others do not attend to each other.
    """
    denoising_on_matching = (group[:, None] >= 0) & (group == MATCHING)
    return (group[:, None] != group) & ~denoising_on_matching


def positive_match(targets: list[Target], chosen: list[Tensor], shape: tuple[int, int, int]) -> Match:
    """The match of each target with its positive in every group."""
    num_groups, copies, num_targets = shape
    device = chosen[0].device
    counts = torch.tensor([len(t.labels) for t in targets])
    start = (counts.cumsum(0) - counts).tolist()  # an image's first target in the batch
    image = torch.cat([torch.full_like(c, i) for i, c in enumerate(chosen)])  # (sum T,)
    slot = torch.cat([torch.arange(len(c), device=device) for c in chosen])
    target = torch.cat([c + first for c, first in zip(chosen, start, strict=True)])
    offset = torch.arange(num_groups, device=device)[:, None] * (copies * num_targets)
    return Match(image.repeat(num_groups), (slot + offset).flatten(), target.repeat(num_groups))
