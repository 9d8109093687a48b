"""Queries attend to each other and to the memory, and move their boxes layer by layer."""

from collections.abc import Callable, Sequence
from itertools import cycle

from torch import Tensor, nn

from ..boxes import refine
from ..structures import Predictions, Queries, Tokens
from .deform_attn import MSDeformAttn
from .layers import FeedForward, mlp
from .position import encode_boxes


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; all post-norm."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attn = MSDeformAttn(dim, num_heads, num_levels, num_points)
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, memory: Tokens, blocked: Tensor | None) -> Tensor:
        """(B, N, C), (B, N, C), (B, N, L, 4) -> (B, N, C)."""
        x = self.self_norm(x + self.dropout(self._attend_to_queries(x, position, blocked)))
        attended = self.cross_attn(x + position, reference, memory.content, memory.padding, memory.shapes)
        x = self.cross_norm(x + self.dropout(attended))
        return self.ffn(x)

    def _attend_to_queries(self, x: Tensor, position: Tensor, blocked: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, N, C). Queries first and contiguous: otherwise batched bf16 products are slow on a CPU."""
        q = k = (x + position).transpose(0, 1).contiguous()  # (N, B, C)
        v = x.transpose(0, 1).contiguous()
        return self.self_attn(q, k, v, attn_mask=blocked, need_weights=False)[0].transpose(0, 1)


class Decoder(nn.Module):
    """Iterative refinement: each layer moves the boxes of the previous layer (DINO, section 3.5)."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        class_heads: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        dim: int,
        look_forward: Callable[[Tensor], Tensor],
        layer_call: Callable[..., Tensor],
        box_eps: float,
        encode_canvas: bool = True,
    ):
        """
        Args:
            class_heads, box_heads: one for all layers, or one per layer.
            look_forward: whether a layer's loss reaches the previous layer: `look_twice` or `look_once`.
            layer_call: how to call a layer; see `layers.direct` and `layers.checkpointed`.
            box_eps: boxes are clamped to at least this distance from 0 and 1 before a layer's move is added; for the
                next layer's input, it is 1e-3 in all published models.
            encode_canvas: encode boxes as fractions of the padded canvas, as official DINO does, so that predictions
                depend slightly on the padding of a batch; False: as fractions of the image.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self.position = mlp(2 * dim, dim, dim)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.look_forward = look_forward
        self.layer_call = layer_call
        self.box_eps = box_eps
        self.encode_canvas = encode_canvas

    def forward(self, queries: Queries, memory: Tokens) -> list[Predictions]:
        """One prediction per layer, the last one final; (B, N, K) and (B, N, 4)."""
        x, boxes = queries.content, queries.boxes
        carried = boxes  # the same values as `boxes`, but gradients of the next layer's loss may flow through them
        stages = []
        for layer, class_head, box_head in zip(self.layers, cycle(self.class_heads), cycle(self.box_heads)):
            reference = boxes[:, :, None] * memory.valid_ratios.tile(2)[:, None]  # (B, N, L, 4)
            encoded = encode_boxes(reference[:, :, 0] if self.encode_canvas else boxes, x.shape[-1])
            position = self.position(encoded.to(x.dtype))
            x = self.layer_call(layer, x, position, reference, memory, queries.blocked)

            normed = self.norm(x)
            stages.append(Predictions(class_head(normed), refine(carried, box_head(normed), self.box_eps)))
            moved = refine(boxes, box_head(x))
            carried, boxes = self.look_forward(moved), moved.detach()
        return stages


def look_twice(boxes: Tensor) -> Tensor:
    """DINO: the loss of a layer trains this layer's move and the previous one."""
    return boxes


def look_once(boxes: Tensor) -> Tensor:
    """Deformable DETR: the loss of a layer trains only its own move."""
    return boxes.detach()
