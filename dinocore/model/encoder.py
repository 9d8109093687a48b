"""The encoder: tokens attend to nearby tokens in every level."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..structures import Tokens
from .deform_attn import MSDeformAttn
from .layers import FeedForward
from .tokens import token_centers


class EncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward block; both post-norm."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.attn = MSDeformAttn(dim, num_heads, num_levels, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)

    def forward(self, x: Tensor, reference: Tensor, tokens: Tokens) -> Tensor:
        """(B, S, C), (B, S, L, 2) -> (B, S, C)."""
        attended = self.attn(x + tokens.position, reference, x, tokens.padding, tokens.shapes)
        x = self.norm(x + self.dropout(attended))
        return self.ffn(x)


class Encoder(nn.Module):
    """A stack of layers over the tokens of all levels."""

    def __init__(self, layers: Sequence[nn.Module], layer_call: Callable[..., Tensor]):
        """
        Args:
            layer_call: how to call a layer; see `layers.direct` and `layers.checkpointed`.
        """
        super().__init__()
        self.layer_call = layer_call
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the tokens with updated content (B, S, C)."""
        reference = token_centers(tokens)[:, :, None] * tokens.valid_ratios[:, None]  # (B, S, L, 2)
        x = tokens.content
        for layer in self.layers:
            x = self.layer_call(layer, x, reference, tokens)
        return tokens._replace(content=x)
