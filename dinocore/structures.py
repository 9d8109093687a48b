"""The data structures of DINO, in the order of the data flow.

    images -> feature maps -> Tokens -> memory -> Proposals -> Queries -> Predictions -> loss

Letters used in every shape comment of this package:

    B images in the batch      H, W height and width of an image or a feature map
    L feature levels           S    tokens of all levels together, the sum of H_l * W_l
    C width of a token         M, P attention heads, sampling points per head and level
    N queries                  K    classes
    T targets of one image     G    denoising groups       Q    denoising queries

Boxes are (centre x, centre y, width, height) as fractions of the unpadded image, unless a name ends in _xyxy.
Masks are True where something is *excluded*: padding, a forbidden query pair.
"""

from typing import NamedTuple

from torch import Tensor

MATCHING = -1  # the group of queries that do not come from targets
EXTRA = -2  # the group of extra matching queries in training, several of which are matched to one target


class Target(NamedTuple):
    """The annotated objects of one image."""

    labels: Tensor  # (T,) int64
    boxes: Tensor  # (T, 4)
    seed: int | None = None  # for this image's denoising noise; None: torch's global generator


class Tokens(NamedTuple):
    """A feature pyramid flattened to one sequence."""

    content: Tensor  # (B, S, C)
    position: Tensor  # (B, S, C)
    padding: Tensor  # (B, S) bool
    shapes: list[tuple[int, int]]  # L x (H_l, W_l)
    valid_ratios: Tensor  # (B, L, 2) fraction of each map that shows the image, (width, height)


class Predictions(NamedTuple):
    """The predictions of one stage for every query."""

    logits: Tensor  # (B, N, K)
    boxes: Tensor  # (B, N, 4)


class Proposals(NamedTuple):
    """The first stage's predictions for the tokens it selected, best first."""

    logits: Tensor  # (B, N, K), or (B, N, 1) if it only separates foreground from background
    boxes: Tensor  # (B, N, 4)
    anchors: Tensor  # (B, N, 4) the boxes before the first stage moved them
    level: Tensor  # (B, N) int64, the feature level of each
    maps: list[Tensor]  # L x (B, H_l, W_l) the logit by which every token was ranked, for inspectors


class Queries(NamedTuple):
    """The decoder's input queries."""

    content: Tensor  # (B, N, C)
    boxes: Tensor  # (B, N, 4)
    blocked: Tensor | None = None  # (N, N) bool, True if row must not attend to column; None: nothing is blocked


class Match(NamedTuple):
    """The prediction matched to each target; targets are numbered across the whole batch."""

    image: Tensor  # (sum T,) int64
    query: Tensor  # (sum T,) int64
    target: Tensor  # (sum T,) int64


class DenoisingQueries(NamedTuple):
    """Denoising queries and their origin."""

    content: Tensor  # (B, Q, C)
    boxes: Tensor  # (B, Q, 4)
    group: Tensor  # (Q,) int64
    negative: Tensor  # (Q,) bool, must predict "no object"
    valid: Tensor  # (B, Q) bool, False on padding slots of images with fewer targets than the largest
    match: Match  # every positive with its target
    num_groups: int
    target_index: Tensor  # (B, Q) int64, the target of its image that each is a noisy copy of; -1 on padding
    labels: Tensor  # (B, Q) int64, the initial class of each, which noise may have changed
