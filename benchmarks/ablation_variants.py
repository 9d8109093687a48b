"""The variants compared in docs/look-forward-twice.md, docs/ablations.md and docs/tiny.md; see ablations.py."""

from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

from torch import nn

from dinocore.boxes import refine
from dinocore.model.decoder import Decoder
from dinocore.model.dino import DINO
from dinocore.model.position import encode_boxes
from dinocore.structures import Predictions, Queries, Tokens


class NotDetached(Decoder):
    """A decoder that never detaches boxes: gradients flow through the next reference, its encoding and the sampling."""

    def forward(self, queries: Queries, memory: Tokens) -> list[Predictions]:
        """Like `Decoder.forward`, without `detach`."""
        x, boxes = queries.content, queries.boxes
        stages = []
        for layer, class_head, box_head in zip(self.layers, cycle(self.class_heads), cycle(self.box_heads)):
            reference = boxes[:, :, None] * memory.valid_ratios.tile(2)[:, None]  # (B, N, L, 4)
            position = self.position(encode_boxes(reference[:, :, 0], x.shape[-1]).to(x.dtype))
            x = self.layer_call(layer, x, position, reference, memory, queries.blocked)
            answer = self.norm(x)
            stages.append(Predictions(class_head(answer), refine(boxes, box_head(answer), self.box_eps)))
            boxes = refine(boxes, box_head(x))
        return stages


def not_detached(model: DINO) -> None:
    """Replace the decoder by one with the same modules that never detaches boxes."""
    old = model.decoder
    dim = old.norm.normalized_shape[0]
    new = NotDetached(old.layers, old.class_heads, old.box_heads, dim, old.look_forward, old.layer_call, old.box_eps)
    new.position, new.norm = old.position, old.norm
    model.decoder = new


def without_norm(model: DINO) -> None:
    """Predict from a layer's output without the layer norm."""
    model.decoder.norm = nn.Identity()


class Variant(NamedTuple):
    """Settings that differ from the default, and a function that modifies the model."""

    settings: tuple[str, ...] = ()
    changes: tuple[Callable[[DINO], None], ...] = ()


DEFAULT = "twice"
ONCE = 'model.look_forward="once"'
LOOK_FORWARD = {
    DEFAULT: Variant(),
    "once": Variant((ONCE,)),
    "not detached": Variant((), (not_detached,)),
    "twice, no norm": Variant((), (without_norm,)),
    "once, no norm": Variant((ONCE,), (without_norm,)),
    "not detached, no norm": Variant((), (not_detached, without_norm)),
}
ABLATIONS = {
    DEFAULT: Variant(),
    "plain denoising": Variant(('model.denoising.kind="plain"',)),
    "no denoising": Variant(('model.denoising.kind="none"',)),
    "pure queries": Variant(('model.queries="pure"',)),
    "static queries": Variant(('model.queries="static"',)),  # one stage
    "heads per layer": Variant(('model.heads="per-layer"',)),
}
POSITIVES = {
    DEFAULT: Variant(),
    "extra queries": Variant(("model.extra_queries=60", "loss.extra_positives=5")),
    "more proposals": Variant(("loss.proposal_positives=4",)),
    "both": Variant(("model.extra_queries=60", "loss.extra_positives=5", "loss.proposal_positives=4")),
}
STUDIES = {"look-forward": LOOK_FORWARD, "ablations": ABLATIONS, "positives": POSITIVES}
