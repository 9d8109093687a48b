"""The first stage: every token of the memory proposes a box; the best N become queries."""

import torch
from torch import Tensor, nn

from ..boxes import inverse_sigmoid
from ..structures import Proposals, Queries, Tokens
from .layers import box_head, class_head
from .tokens import token_centers

EDGE = 0.01 + 1e-6  # excludes a token at exactly 1 %, as in a map of 50, regardless of a runtime's rounding


class MixedContent(nn.Module):
    """Mixed query selection (DINO, section 3.4): boxes come from the image, content is learned."""

    def __init__(self, num_queries: int, dim: int):
        super().__init__()
        self.content = nn.Parameter(torch.randn(num_queries, dim))

    def forward(self, chosen: Tensor) -> Tensor:
        """Content for as many queries as selected tokens, (B, N, C) -> (B, N, C)."""
        return self.content[: chosen.shape[1]].expand_as(chosen)


class PureContent(nn.Module):
    """Pure query selection (DINO, section 3.4): content also comes from the selected tokens, without their gradient."""

    def forward(self, chosen: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return chosen.detach()


class ExtraQueries(nn.Module):
    """Extra queries in training: the boxes of the best proposals again, with their own learned content.

    Several of them are matched to each object, so that more decoder predictions are trained on objects; they are
    not used afterwards. Source: Jia et al. 2022, H-DETR, https://arxiv.org/abs/2207.13080, section 3.3
    """

    def __init__(self, num_queries: int, dim: int):
        super().__init__()
        self.content = nn.Parameter(torch.randn(num_queries, dim))

    def forward(self, queries: Queries) -> Queries:
        """The extra queries: one per learned content, but no more than there are matching queries."""
        content = self.content[: queries.boxes.shape[1]]
        boxes = queries.boxes[:, : len(content)]
        return Queries(content.expand(len(boxes), -1, -1), boxes)


class Proposer(nn.Module):
    """One anchor per token; its class score decides whether it is selected, and only selected ones get a box."""

    def __init__(self, dim: int, num_logits: int, num_queries: int, content: nn.Module):
        """
        Args:
            num_logits: the number of classes, or 1 to separate foreground from background only.
            content: builds the queries' content from the selected tokens.
        """
        super().__init__()
        self.num_queries = num_queries
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.class_head = class_head(dim, num_logits)
        self.box_head = box_head(dim)
        self.content = content

    def forward(self, memory: Tokens) -> tuple[Proposals, Queries]:
        """
        Returns:
            the N best proposals, which the loss trains, and the queries made from them, whose boxes have no gradient.
            N is smaller if an image has fewer tokens.
        """
        anchors, usable = token_anchors(memory)
        x = self.project(memory.content.masked_fill(~usable[..., None], 0))  # (B, S, C)
        logits = self.class_head(x)  # (B, S, K)
        num_tokens = x.shape[1]  # symbolic in a graph for several canvas sizes, which all have enough tokens
        num_chosen = self.num_queries if isinstance(num_tokens, torch.SymInt) else min(self.num_queries, num_tokens)
        rank = logits.detach().amax(-1).float()  # (B, S)
        best = rank.topk(num_chosen, dim=1).indices  # (B, N)

        chosen, anchors = take(x, best), take(anchors, best)  # (B, N, C), (B, N, 4)
        start = inverse_sigmoid(anchors).masked_fill(~take(usable[..., None], best), torch.inf)
        boxes = (start + self.box_head(chosen)).sigmoid()  # (B, N, 4)
        proposals = Proposals(take(logits, best), boxes, anchors, token_levels(memory)[best], as_maps(rank, memory))
        return proposals, Queries(self.content(chosen), boxes.detach())


class StaticQueries(nn.Module):
    """No first stage: content and boxes are learned, and the same for every image."""

    def __init__(self, dim: int, num_queries: int):
        super().__init__()
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.boxes = nn.Parameter(spread_boxes(num_queries))  # in logit space

    def forward(self, memory: Tokens) -> tuple[None, Queries]:
        """
        Returns:
            None, because there are no proposals, and the queries.
        """
        batch = memory.content.shape[0]  # not len(), which fixes the batch of an exported graph
        return None, Queries(self.content.expand(batch, -1, -1), self.boxes.sigmoid().expand(batch, -1, -1))


def spread_boxes(num_boxes: int) -> Tensor:
    """Random boxes within the image, in logit space, (N, 4)."""
    size = torch.rand(num_boxes, 2) * 0.4 + 0.05
    center = size / 2 + torch.rand(num_boxes, 2) * (1 - size)
    return inverse_sigmoid(torch.cat([center, size], dim=-1))


def token_anchors(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """One square anchor per token: 5 % of the image at the first level, twice that at each next one.

    Returns:
        anchors (B, S, 4), and whether each is usable, (B, S) bool: not on padding, and with centre and size more than
        1 % away from 0 and 1.
    """
    centers = token_centers(tokens)  # (B, S, 2)
    size = 0.05 * 2.0 ** token_levels(tokens).float()  # (S,)
    anchors = torch.cat([centers, size[None, :, None].expand_as(centers)], dim=-1)
    usable = ((anchors > EDGE) & (anchors < 1 - EDGE)).all(-1) & ~tokens.padding
    return anchors, usable


def token_levels(tokens: Tokens) -> Tensor:
    """The feature level of every token, (S,) int64."""
    device = tokens.valid_ratios.device
    parts = [torch.full((h * w,), level, device=device) for level, (h, w) in enumerate(tokens.shapes)]
    return torch.cat(parts)  # not repeat_interleave, which ONNX export does not support


def as_maps(x: Tensor, tokens: Tokens) -> list[Tensor]:
    """Reshape one number per token to feature maps, views of (B, S) -> L x (B, H_l, W_l)."""
    parts = x.split([height * width for height, width in tokens.shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, tokens.shapes, strict=True)]


def take(x: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each image, (B, S, C), (B, N) -> (B, N, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
