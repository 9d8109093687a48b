"""Plain vision transformers, whose maps all have the same stride, with a feature pyramid for detection.

Source: Li et al. 2022, https://arxiv.org/abs/2203.16527
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from .timm import MapNorm, any_size, feature_extractor, feature_strides, freeze_stages, recompute_blocks

VITDETS = {"vitdet-b": "samvit_base_patch16", "vitdet-l": "samvit_large_patch16"}  # timm has the same blocks for SAM
POSITION_GRID = 14  # side of ViTDet's grid of position embeddings, as for images of 224 pixels
DIM = 256  # channels of the pyramid


class PlainViT(nn.Module):
    """A vision transformer at one stride, then a simple feature pyramid at several."""

    body: Any
    alignment = 1

    def __init__(self, extract: Callable[..., Any], strides: Sequence[int]):
        """
        Args:
            extract: builds a timm feature extractor whose features have the same stride; the last one is used.
        """
        super().__init__()
        self.extract = extract
        self.body = body = extract()
        self.patch = body.feature_info.reduction()[-1]
        dim = body.feature_info.channels()[-1]
        near = [stride for stride in strides if stride <= 2 * self.patch]
        self.pyramid = nn.ModuleList(pyramid_step(dim, self.patch / stride) for stride in near)
        self.num_far = len(strides) - len(near)  # coarser maps take every second position of the previous map
        self.channels = [DIM] * len(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, C, H_l, W_l)], finest first."""
        below, right = (max(-side % self.patch, 2 * self.patch - side) for side in images.shape[-2:])
        x = self.body(F.pad(images, (0, right, 0, below)))[-1]  # (B, C_vit, H / patch, W / patch)
        maps = [step(x) for step in self.pyramid]
        for _ in range(self.num_far):
            maps.append(maps[-1][..., ::2, ::2])
        return maps


class AddPosition(nn.Module):
    """A learned embedding for each position of a small grid, interpolated to the size of the map, as in ViTDet."""

    def __init__(self, dim: int):
        super().__init__()
        grid = torch.empty(1, POSITION_GRID, POSITION_GRID, dim)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(grid, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        grid = self.pos_embed.permute(0, 3, 1, 2)  # (1, C, 14, 14)
        embedding = F.interpolate(grid, size=x.shape[1:3], mode="bicubic", align_corners=False)
        return x + embedding.permute(0, 2, 3, 1).to(x.dtype)


def build_vit(
    name: str, strides: Sequence[int], frozen_stages: int, drop_path: float, checkpointing: bool = False
) -> PlainViT:
    """Build a ViTDet by name, or any timm model whose features all have the same stride.

    Raises:
        ConfigError: the pyramid cannot have these strides with the model's patch size.
    """
    if name in VITDETS:
        extract = partial(vitdet_extractor, VITDETS[name], drop_path)
    else:
        extract = partial(feature_extractor, name, drop_path, out_indices=(-1,), **any_size(name))
    _check_strides(name, strides, feature_strides(VITDETS.get(name, name))[-1])
    backbone = PlainViT(extract, strides)
    freeze_stages(backbone.body, name, frozen_stages)
    if checkpointing:
        recompute_blocks(backbone.body)
    return backbone


def vitdet_extractor(name: str, drop_path: float) -> Any:
    """timm's blocks with ViTDet's position embedding."""
    body = feature_extractor(name, drop_path, out_indices=(-1,), norm_layer=partial(nn.LayerNorm, eps=1e-6))
    body.model.pos_drop = AddPosition(body.model.pos_embed.shape[-1])
    body.model.pos_embed = None
    return body


def pyramid_step(dim: int, scale: float) -> nn.Sequential:
    """One map of the pyramid, (B, C_vit, H, W) -> (B, C, scale * H, scale * W): resize, then two convolutions."""
    resize: dict[float, list[nn.Module]] = {
        4: [_upsample(dim), MapNorm(dim // 2, eps=1e-6), nn.GELU(), _upsample(dim // 2)],
        2: [_upsample(dim)],
        1: [],
        0.5: [nn.MaxPool2d(2)],
    }
    out_dim = int(dim / max(1, scale))
    return nn.Sequential(
        nn.Sequential(*resize[scale]),
        nn.Sequential(nn.Conv2d(out_dim, DIM, 1, bias=False), MapNorm(DIM, eps=1e-6)),
        nn.Sequential(nn.Conv2d(DIM, DIM, 3, padding=1, bias=False), MapNorm(DIM, eps=1e-6)),
    )


def _upsample(dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)


def _check_strides(name: str, strides: Sequence[int], patch: int) -> None:
    possible = [patch // factor for factor in (4, 2) if patch % factor == 0] + [patch * 2**i for i in range(5)]
    doubling = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if not set(strides) <= set(possible) or not doubling or strides[0] > 2 * patch:
        raise ConfigError(
            f"{name} has patches of {patch} pixels: model.feature_strides = {list(strides)} must be neighbours in "
            f"{possible}, the first at most {2 * patch}"
        )
