"""Swin Transformer (Liu et al. 2021, https://arxiv.org/abs/2103.14030) for detectors.

Images may have any size, and every returned map has its own norm. Libraries treat borders differently (timm shifts
before it pads, torchvision does not shift maps of one window). Here, a map is padded with zeros at the right and bottom
and then shifted, as in the training of the published weights. Parameters have their published names.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

STRIDES = (4, 8, 16, 32)
BLOCKED = -100.0  # added to the score of two tokens that must not attend to each other; their weight becomes 0


class SwinSize(NamedTuple):
    """The dimensions of a Swin variant."""

    dim: int  # channels of the first stage; each stage doubles them
    depths: tuple[int, int, int, int]
    window: int  # side of the squares in which tokens attend to each other, in tokens

    def num_heads(self, stage: int) -> int:
        """The number of heads of a stage; each has 32 channels."""
        return self.dim * 2**stage // 32


# the number in a name is the side of the images in the first training
SWINS = {
    "swin-t-224": SwinSize(96, (2, 2, 6, 2), 7),
    "swin-s-224": SwinSize(96, (2, 2, 18, 2), 7),
    "swin-b-224": SwinSize(128, (2, 2, 18, 2), 7),
    "swin-b-384": SwinSize(128, (2, 2, 18, 2), 12),
    "swin-l-224": SwinSize(192, (2, 2, 18, 2), 7),
    "swin-l-384": SwinSize(192, (2, 2, 18, 2), 12),
}


class WindowAttention(nn.Module):
    """Every token attends to the tokens of its window, with a learned bias for their relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B * nW, N, C) -> (B * nW, N, C); the mask (nW, N, N) is added to the scores."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B * nW, M, N, C / M)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]  # (1, M, N, N)
        if mask is not None:
            bias = bias + mask[:, None].to(bias.dtype)  # (nW, M, N, N)
            bias = bias.repeat(x.shape[0] // mask.shape[0], 1, 1, 1)  # (B * nW, M, N, N)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(attended.transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Attention in windows, then two linear layers; both pre-norm."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path: float):
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.drop_path = StochasticDepth(drop_path, "row")
        self.norm2 = nn.LayerNorm(dim)
        fc1, fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); the mask (nW, N, N) is that of a shifted map."""
        x = x + self.drop_path(self.attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Split into windows, attend, and join the windows: (B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window)  # (B, H', W', C)
        rows = x.shape[1] // self.window
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(to_windows(x, self.window), mask if self.shift else None)  # (B * nW, N, C)
        x = from_windows(windows, self.window, x.shape[0], rows)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchEmbed(nn.Module):
    """Turn patches of 4 x 4 pixels into tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 4, W / 4, C), rounded up."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Merge 2 x 2 tokens into one with twice the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 2 C), rounded up."""
        x = pad_to_multiple(x, 2)
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H / 2, 2, W / 2, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H / 2, W / 2, 4 C): column by column of the four
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Blocks on maps of one stride, every second one with shifted windows; then optionally a merging of tokens."""

    def __init__(
        self, size: SwinSize, stage: int, rates: Sequence[float], merge: bool, layer_call: Callable[..., Tensor]
    ):
        super().__init__()
        self.layer_call = layer_call
        self.window = size.window
        dim, num_heads = size.dim * 2**stage, size.num_heads(stage)
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, size.window, size.window // 2 * (i % 2), rate) for i, rate in enumerate(rates)
        )
        self.downsample = PatchMerging(dim) if merge else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), before any merging."""
        mask = shifted_mask(x.shape[1], x.shape[2], self.window, x.device)  # (nW, N, N)
        for block in self.blocks:
            x = self.layer_call(block, x, mask)
        return x


class Swin(nn.Module):
    """Patches, up to four stages, and a norm for each returned map."""

    alignment = 1

    def __init__(
        self, name: str, strides: Sequence[int], frozen_stages: int, drop_path: float, layer_call: Callable[..., Tensor]
    ):
        """
        Args:
            strides: of the maps to return, from 4, 8, 16, 32; stages after the last one are omitted.
            drop_path: chance that the last block is skipped for an image in training; it rises linearly from the first.
            layer_call: how to call a block; see `layers.direct` and `layers.checkpointed`.
        """
        super().__init__()
        size = SWINS[name]
        returned = [STRIDES.index(stride) for stride in strides]
        rates = iter(torch.linspace(0, drop_path, sum(size.depths), device="cpu").tolist())
        self.patch_embed = PatchEmbed(size.dim)
        self.layers = nn.ModuleList(
            SwinStage(size, i, [next(rates) for _ in range(depth)], i < max(returned), layer_call)
            for i, depth in enumerate(size.depths[: max(returned) + 1])
        )
        self.channels = [size.dim * 2**i for i in returned]
        for i, channels in zip(returned, self.channels, strict=True):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
        linears = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for linear in linears:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for part in [self.patch_embed, *self.layers][: frozen_stages + 1]:
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, C_l, H_l, W_l)], finest first."""
        maps = []
        x = self.patch_embed(images)  # (B, H / 4, W / 4, C)
        norms = dict(self.named_children())
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if norm := norms.get(f"norm{i}"):
                maps.append(norm(x).permute(0, 3, 1, 2))  # (B, C_l, H_l, W_l)
            x = stage.get_submodule("downsample")(x)
        return maps


def pad_to_multiple(x: Tensor, size: int) -> Tensor:
    """Pad with zeros at right and bottom to multiples of `size`: (B, H, W, C) -> (B, H', W', C)."""
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -width % size, 0, -height % size))


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * nW, N, C), N = window x window."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B, rows, window, columns, window, C)
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(windows: Tensor, window: int, batch: int, rows: int) -> Tensor:
    """The inverse of `to_windows`: (B * nW, N, C) -> (B, H, W, C)."""
    x = windows.unflatten(1, (window, window)).unflatten(0, (batch, rows, -1))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shifted_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """The mask of a shifted map, (nW, N, N): 0 for tokens that were neighbours before the shift, else `BLOCKED`."""
    numbers = []
    for side in (height, width):
        positions = torch.arange(side + -side % window, device=device)
        size = len(positions)
        numbers.append((positions >= size - window).int() + (positions >= size - window // 2).int())  # 0, 1, 2
    region = 3 * numbers[0][:, None] + numbers[1]  # (H', W')
    region = to_windows(region[None, :, :, None], window)  # (nW, N, 1)
    return BLOCKED * (region != region.mT).float()


def relative_position_index(window: int) -> Tensor:
    """The row of the bias table for each pair of tokens in a window: (N, N)."""
    positions = torch.arange(window)
    offset = positions[:, None] - positions + window - 1  # (window, window), from 0
    index = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]  # (row, column, row, column)
    return index.flatten(2, 3).flatten(0, 1)
