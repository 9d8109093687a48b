"""Backbones of other codebases: parameter names, channel orders, and how to identify a backbone.

Source: IDEA-Research/DINO faa8520, detrex e244e6c, detectron2 02b5c4e and mmdet 3.3.0.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ...model.backbones.swin import SWINS, relative_position_index
from ...model.backbones.vit import POSITION_GRID

Table = dict[str, str]

# linear layers of a FocalNet, which are 1x1 convolutions in timm
FOCAL_LINEAR = re.compile(r"backbone\.body\.body\.layers_\d\.blocks\.\d+\.(modulation\.(f|proj)|mlp\.fc\d)\.weight")
UNKNOWN = "unknown"
STRIDES = (4, 8, 16, 32)
VIT_STRIDES = (8, 16, 32, 64)
# number of blocks in the third stage, and whether blocks have three convolutions
RESNETS = {(6, True): "resnet50", (23, True): "resnet101", (36, True): "resnet152", (2, False): "resnet18",
           (6, False): "resnet34"}  # fmt: skip
# number of channels, and of blocks
CONVNEXTS = {(96, 9): "convnext-t", (96, 27): "convnext-s", (128, 27): "convnext-b", (192, 27): "convnext-l"}
VITDETS = {(768, 12): "vitdet-b", (1024, 24): "vitdet-l"}


def family_of(names: Iterable[str]) -> str:
    """The backbone family that parameter names of another codebase belong to."""
    signs = {"vitdet": "backbone.net.blocks.", "convnext": "backbone.downsample_layers.", "focalnet": ".modulation.",
             "swin": ".patch_embed."}  # fmt: skip
    names = [name for name in names if name.startswith("backbone.")]
    return next((family for family, sign in signs.items() if any(sign in name for name in names)), "resnet")


def detrex_backbone(family: str, projected: int) -> Table:
    """The table for backbones of detrex and detectron2; `projected` is the number of output maps."""
    tables = {
        "swin": {"backbone.": "backbone."},
        "convnext": _convnext(projected),
        "focalnet": _focalnet(projected),
        "vitdet": _vitdet(),
    }
    return tables.get(family, _detectron2_resnet())


def mmdet_backbone(family: str) -> Table:
    """The table for mmdetection's ResNet and Swin."""
    if family != "swin":
        return {"backbone.": "backbone.body."}
    theirs, ours = "backbone.stages.#.blocks.#.", "backbone.layers.#.blocks.#."
    return {
        "backbone.patch_embed.projection.": "backbone.patch_embed.proj.",
        f"{theirs}attn.w_msa.": f"{ours}attn.",
        f"{theirs}ffn.layers.0.0.": f"{ours}mlp.fc1.",
        f"{theirs}ffn.layers.1.": f"{ours}mlp.fc2.",
        "backbone.stages.#.": "backbone.layers.#.",
        "backbone.": "backbone.",
    }


def reordered(name: str, value: Tensor, source: str) -> Tensor:
    """A backbone's tensor with its elements in our order; `name` is our name."""
    if source == "mmdet" and re.match(r"backbone\.layers\.\d+\.downsample\.", name):
        return merging_from_mmdet(value)
    if name == "backbone.body.model.pos_drop.pos_embed":  # drop the class token's embedding, which ViTDet does not use
        return value[:, -(POSITION_GRID**2) :].unflatten(1, (POSITION_GRID, POSITION_GRID))
    if FOCAL_LINEAR.fullmatch(name) and value.dim() == 2:
        return value[:, :, None, None]
    return value


def merging_from_mmdet(value: Tensor) -> Tensor:
    """Reorder the input channels of a Swin's patch merging, (..., 4 C) -> (..., 4 C).

    mmdetection orders them by channel, then neighbour, row by row; we order them by neighbour, column by column.
    """
    by_neighbour = value.unflatten(-1, (-1, 4)).mT  # (..., 4, C)
    return by_neighbour[..., [0, 2, 1, 3], :].flatten(-2).contiguous()


def window_indices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The relative position indices that other codebases store for each window attention, under our names."""
    indices = {}
    for key, value in tensors.items():
        if key.endswith(".relative_position_bias_table"):
            window = (round(len(value) ** 0.5) + 1) // 2
            indices[key.replace("bias_table", "index")] = relative_position_index(window)
    return indices


def backbone_in(tensors: Mapping[str, Tensor]) -> str:
    """The name of the backbone with these tensors, which have our names, or `UNKNOWN`."""
    table = tensors.get("backbone.layers.0.blocks.0.attn.relative_position_bias_table")
    if table is not None:
        window, dim = (round(len(table) ** 0.5) + 1) // 2, len(tensors["backbone.patch_embed.norm.weight"])
        depth = count_numbers(tensors, r"backbone\.layers\.2\.blocks\.(\d+)\.norm1\.weight")
        same = [name for name, s in SWINS.items() if (s.dim, s.depths[2], s.window) == (dim, depth, window)]
        return same[0] if same else UNKNOWN
    if "backbone.body.body.stem_0.weight" in tensors:
        depth = count_numbers(tensors, r"backbone\.body\.body\.stages_2\.blocks\.(\d+)\.gamma")
        return CONVNEXTS.get((len(tensors["backbone.body.body.stem_0.weight"]), depth), UNKNOWN)
    if "backbone.body.body.stem.proj.weight" in tensors:
        levels = count_numbers(
            tensors, r"backbone\.body\.body\.layers_0\.blocks\.0\.modulation\.focal_layers\.(\d+)\..*"
        )
        large = len(tensors["backbone.body.body.stem.proj.weight"]) == 192 and levels in (3, 4)
        return f"focalnet-l-{levels}" if large else UNKNOWN
    if "backbone.body.model.patch_embed.proj.weight" in tensors:
        depth = count_numbers(tensors, r"backbone\.body\.model\.blocks\.(\d+)\.norm1\.weight")
        return VITDETS.get((len(tensors["backbone.body.model.patch_embed.proj.weight"]), depth), UNKNOWN)
    blocks = count_numbers(tensors, r"backbone\.body\.layer3\.(\d+)\.conv1\.weight")
    return RESNETS.get((blocks, "backbone.body.layer3.0.conv3.weight" in tensors), UNKNOWN)


def strides_in(backbone: str, projected: int) -> tuple[int, ...]:
    """The strides of the maps that the neck projects."""
    return VIT_STRIDES[:projected] if backbone.startswith("vitdet") else STRIDES[len(STRIDES) - projected :]


def count_numbers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """The number of distinct values of a pattern's group among the tensors' names."""
    return len({match[1] for match in (re.fullmatch(pattern, key) for key in tensors) if match})


def _detectron2_resnet() -> Table:
    """In detectron2, stage n is called res(n + 1), and a norm is part of its convolution."""
    table = {"backbone.stem.conv1.norm.": "backbone.body.bn1.", "backbone.stem.conv1.": "backbone.body.conv1."}
    for stage in range(1, 5):
        theirs, ours = f"backbone.res{stage + 1}.#.", f"backbone.body.layer{stage}.#."
        for i in range(1, 4):
            table |= {f"{theirs}conv{i}.norm.": f"{ours}bn{i}.", f"{theirs}conv{i}.": f"{ours}conv{i}."}
        table |= {f"{theirs}shortcut.norm.": f"{ours}downsample.1.", f"{theirs}shortcut.": f"{ours}downsample.0."}
    return table


def _convnext(projected: int) -> Table:
    theirs, ours = "backbone.stages.#.#.", "backbone.body.body.stages_#.blocks.#."
    return {
        "backbone.downsample_layers.0.#.": "backbone.body.body.stem_#.",
        "backbone.downsample_layers.#.#.": "backbone.body.body.stages_#.downsample.#.",
        f"{theirs}dwconv.": f"{ours}conv_dw.",
        f"{theirs}pwconv1.": f"{ours}mlp.fc1.",
        f"{theirs}pwconv2.": f"{ours}mlp.fc2.",
        theirs: ours,
        **_map_norms(projected),
    }


def _focalnet(projected: int) -> Table:
    """Norms follow the layers that they normalise; in timm, downsampling belongs to the following stage."""
    theirs, ours = "backbone.layers.#.blocks.#.", "backbone.body.body.layers_#.blocks.#."
    return {
        "backbone.patch_embed.": "backbone.body.body.stem.",
        **{f"backbone.layers.{i}.downsample.": f"backbone.body.body.layers_{i + 1}.downsample." for i in range(3)},
        **{f"{theirs}norm{i}.": f"{ours}norm{i}_post." for i in (1, 2)},
        **{f"{theirs}gamma_{i}": f"{ours}ls{i}.gamma" for i in (1, 2)},
        theirs: ours,
        **_map_norms(projected),
    }


def _vitdet() -> Table:
    """A pyramid level is numbered log2(stride); its resizing layer, if it has parameters, comes first."""
    table = {
        "backbone.net.pos_embed": "backbone.body.model.pos_drop.pos_embed",
        "backbone.net.": "backbone.body.model.",
    }
    for i, first in enumerate((1, 0, 1)):  # strides 8, 16, 32, of which only 16 is not resized
        theirs, ours = f"backbone.simfp_{i + 3}.", f"backbone.pyramid.{i}."
        for part in (1, 2):
            number = first + part - 1
            table |= {f"{theirs}{number}.norm.": f"{ours}{part}.1.", f"{theirs}{number}.": f"{ours}{part}.0."}
    return table | {"backbone.simfp_3.0.": "backbone.pyramid.0.0.0."}


def _map_norms(projected: int) -> Table:
    return {f"backbone.norm{4 - projected + i}.": f"backbone.norms.{i}." for i in range(projected)}
