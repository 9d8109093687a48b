"""Convert our weights to the format of IDEA-Research/DINO."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import ModelConfig, check_section
from ...errors import CheckpointError
from ...system.files import write_atomically
from ..file import Weights
from .backbones import STRIDES, window_indices
from .tables import Sizes, inverted, official, renamed

HEADS = ("class_embed.", "bbox_embed.")
SWINS = {"swin-t-224": "swin_T_224_1k", "swin-b-224": "swin_B_224_22k", "swin-b-384": "swin_B_384_22k",
         "swin-l-224": "swin_L_224_22k", "swin-l-384": "swin_L_384_22k"}  # fmt: skip


def write_official(path: Path, weights: Weights) -> list[str]:
    """Write a .pth file for official DINO's `--resume` and `--pretrain_model_path`.

    Returns:
        settings for official DINO's `--options`, where they differ from `DINO_4scale.py`.

    Raises:
        CheckpointError: official DINO has no such model.
    """
    state = official_state(weights.tensors, weights.config.model)
    write_atomically(path, lambda temporary: torch.save({"model": state}, temporary))
    return official_options(weights.config.model)


def official_state(tensors: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """The tensors under official DINO's names, with copies of shared ones, as in its files.

    Raises:
        CheckpointError: official DINO has no such model.
        ConfigError: `model` is not a `model` section.
    """
    check_section(model, ModelConfig)
    if reasons := _foreign_to_official(model):
        raise CheckpointError(f"official DINO cannot represent this model: {'; '.join(reasons)}")
    tensors = {**tensors, **window_indices(tensors)}
    sizes = Sizes(len(model.feature_strides), model.num_levels, model.num_decoder_layers)
    names = renamed(tensors, inverted(official(sizes)))
    if unknown := [key for key in tensors if key not in names]:
        raise CheckpointError(f"official DINO has no {unknown[0]}, nor {len(unknown) - 1} more of these tensors")
    state = {names[key]: value.detach().cpu().contiguous() for key, value in tensors.items()}
    if not model.neck_bias:
        state |= {f"input_proj.{i}.0.bias": torch.zeros(model.hidden_dim) for i in range(sizes.levels)}
    heads = {key: value for key, value in state.items() if key.startswith(HEADS)}
    if model.heads == "shared":
        layers = range(model.num_decoder_layers)
        heads = {key.replace(".0.", f".{i}.", 1): value for key, value in heads.items() for i in layers}
    return state | heads | {f"transformer.decoder.{key}": value for key, value in heads.items()}


def official_options(model: ModelConfig) -> list[str]:
    """`key=value` for `--options`, where the model differs from `DINO_4scale.py`."""
    default = ModelConfig()
    options: list[tuple[str, Any, Any]] = [
        ("num_classes", model.num_classes, default.num_classes),
        ("dn_labelbook_size", model.num_classes + model.denoising.spare_labels - 1, default.num_classes),
        ("num_queries", model.num_queries, default.num_queries),
        ("num_feature_levels", model.num_levels, default.num_levels),
        ("enc_layers", model.num_encoder_layers, default.num_encoder_layers),
        ("dec_layers", model.num_decoder_layers, default.num_decoder_layers),
        ("dim_feedforward", model.ffn_dim, default.ffn_dim),
        ("backbone", SWINS.get(model.backbone, model.backbone), default.backbone),
        ("return_interm_indices", _indices(model.feature_strides), _indices(default.feature_strides)),
        ("pe_temperatureH", model.position_temperature, default.position_temperature),
        ("pe_temperatureW", model.position_temperature, default.position_temperature),
        ("dec_pred_class_embed_share", model.heads == "shared", True),
        ("dec_pred_bbox_embed_share", model.heads == "shared", True),
    ]
    return [f"{key}={value}" for key, value, usual in options if value != usual]


def _indices(strides: Sequence[int]) -> str:
    return ",".join(str(STRIDES.index(stride)) for stride in strides if stride in STRIDES)


def _foreign_to_official(model: ModelConfig) -> list[str]:
    return [
        reason
        for wrong, reason in (
            (model.position_offset != 0, f"it has no offset in the position encoding ({model.position_offset})"),
            (model.box_eps != 1e-3, f"its boxes have 1e-3 where these have model.box_eps = {model.box_eps}"),
            (model.first_stage != "classes", "its first stage predicts classes"),
            (model.queries != "mixed", "its queries are mixed"),
            (model.denoising.kind == "none" or model.denoising.num_groups == 0, "it has a label embedding"),
            (model.backbone not in SWINS and not model.backbone.startswith("resnet"), f"it has no {model.backbone}"),
        )
        if wrong
    ]
