"""Plain vision transformers, whose maps all have one stride, with the pyramid that detectors build on top.

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

VITDETS = {"vitdet-b": "samvit_base_patch16", "vitdet-l": "samvit_large_patch16"}  # the same blocks, in timm for SAM
FIRST_GRID = 14  # places in a row of ViTDet's position embedding, as of images of 224 pixels
DIM = 256  # channels of the pyramid


class PlainViT(nn.Module):
    """A vision transformer at one stride, then a simple feature pyramid at several."""

    body: Any
    alignment = 1

    def __init__(self, extract: Callable[..., Any], strides: Sequence[int]):
        """
        Args:
            extract: makes timm's extractor of features, all of one stride; the last is used.
        """
        super().__init__()
        self.extract = extract
        self.body = body = extract()
        self.patch = body.feature_info.reduction()[-1]
        dim = body.feature_info.channels()[-1]
        near = [stride for stride in strides if stride <= 2 * self.patch]
        self.pyramid = nn.ModuleList(pyramid_step(dim, self.patch / stride) for stride in near)
        self.num_far = len(strides) - len(near)  # maps coarser than that are every second place of the one before
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
    """A learned embedding for each place of a small grid, stretched over the map: what ViTDet does."""

    def __init__(self, dim: int):
        super().__init__()
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, FIRST_GRID, FIRST_GRID, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        grid = self.pos_embed.permute(0, 3, 1, 2)  # (1, C, 14, 14)
        stretched = F.interpolate(grid, size=x.shape[1:3], mode="bicubic", align_corners=False)
        return x + stretched.permute(0, 2, 3, 1).to(x.dtype)


def build_vit(
    name: str, strides: Sequence[int], frozen_stages: int, drop_path: float, checkpointing: bool = False
) -> PlainViT:
    """ViTDet by its name, or any timm model whose features all have one stride.

    Raises:
        ConfigError: the strides cannot be made from its patches.
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
        4: [_twice(dim), MapNorm(dim // 2, eps=1e-6), nn.GELU(), _twice(dim // 2)],
        2: [_twice(dim)],
        1: [],
        0.5: [nn.MaxPool2d(2)],
    }
    out_dim = int(dim / max(1, scale))
    return nn.Sequential(
        nn.Sequential(*resize[scale]),
        nn.Sequential(nn.Conv2d(out_dim, DIM, 1, bias=False), MapNorm(DIM, eps=1e-6)),
        nn.Sequential(nn.Conv2d(DIM, DIM, 3, padding=1, bias=False), MapNorm(DIM, eps=1e-6)),
    )


def _twice(dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)


def _check_strides(name: str, strides: Sequence[int], patch: int) -> None:
    possible = [patch // share for share in (4, 2) if patch % share == 0] + [patch * 2**i for i in range(5)]
    doubling = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if not set(strides) <= set(possible) or not doubling or strides[0] > 2 * patch:
        raise ConfigError(
            f"{name} has patches of {patch} pixels: model.feature_strides = {list(strides)} must be neighbours in "
            f"{possible}, the first at most {2 * patch}"
        )
