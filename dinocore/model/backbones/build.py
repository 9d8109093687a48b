"""Build backbones by name. Batch norm is frozen."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models
from torchvision.models._utils import IntermediateLayerGetter

from ...errors import ConfigError
from ..layers import FrozenBatchNorm, checkpointed
from .swin import STRIDES, SWINS, Swin
from .timm import MapNorm, OutputNorms, TimmBackbone, feature_strides
from .vit import VITDETS, PlainViT, build_vit

STAGES = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}  # of a ResNet, by stride
# timm models with a norm on each map: timm's name, and the norms' epsilon
NORMED = {
    "convnext-t": ("convnext_tiny", 1e-6),
    "convnext-s": ("convnext_small", 1e-6),
    "convnext-b": ("convnext_base", 1e-6),
    "convnext-l": ("convnext_large", 1e-6),
    "focalnet-l-3": ("focalnet_large_fl3", 1e-5),  # three focal levels
    "focalnet-l-4": ("focalnet_large_fl4", 1e-5),
}


def build_backbone(
    name: str, strides: Sequence[int], frozen_stages: int, drop_path: float, layer_call: Callable[..., Tensor]
) -> "Backbone":
    """A backbone without trained weights.

    Args:
        drop_path: chance that the last block is skipped for an image in training; it rises linearly from the first.
        layer_call: how to call a block; see `layers.direct` and `layers.checkpointed`.

    Raises:
        ConfigError: there is no such backbone, or it has no features at these strides.
    """
    checkpointing = layer_call is checkpointed
    if name in SWINS:
        _check_strides(name, strides, STRIDES)
        return Swin(name, strides, frozen_stages, drop_path, layer_call)
    if name in NORMED:
        timm_name, eps = NORMED[name]
        body = TimmBackbone(timm_name, strides, frozen_stages, drop_path, checkpointing)
        if name.startswith("focalnet"):
            body.body["stem"].proj.padding = (3, 3)  # as in FocalNet's detectors; timm has 2, as in its classifiers
        return OutputNorms(body, partial(MapNorm, eps=eps), least=max(strides))
    if name in VITDETS:
        return build_vit(name, strides, frozen_stages, drop_path, checkpointing)
    if name.startswith("timm/"):
        name = name.removeprefix("timm/")
        build = build_vit if len(set(feature_strides(name))) == 1 else TimmBackbone
        return build(name, strides, frozen_stages, drop_path, checkpointing)
    return _build_resnet(name, strides, frozen_stages, drop_path)


def _build_resnet(name: str, strides: Sequence[int], frozen_stages: int, drop_path: float) -> "ResNet":
    resnets = list_models(torchvision.models, include="*resne*t*")  # without detection and segmentation models
    if name not in resnets:
        if name in list_models():
            raise ConfigError(f"`{name}` is a torchvision model but not a ResNet; choose {', '.join(resnets)}")
        known = [*SWINS, *NORMED, *VITDETS, *resnets]
        close = difflib.get_close_matches(name, known, n=3)
        shown = f"; did you mean {' or '.join(close)}?" if close else f"; known are {', '.join(known)} and timm/NAME"
        raise ConfigError(f"unknown backbone `{name}`{shown}")
    _check_strides(name, strides, STAGES)
    if drop_path:
        raise ConfigError(f"{name} cannot skip blocks; set model.drop_path = 0")
    return ResNet(name, strides, frozen_stages)


def _check_strides(name: str, strides: Sequence[int], possible: Sequence[int] | dict[int, str]) -> None:
    if missing := [stride for stride in strides if stride not in possible]:
        raise ConfigError(
            f"{name} has features at strides {list(possible)}, not at {missing}; set model.feature_strides"
        )


class ResNet(nn.Module):
    """A torchvision ResNet that returns features."""

    channels: list[int]  # one number per stride
    alignment = 1  # images may have any size

    def __init__(self, name: str, strides: Sequence[int], frozen_stages: int):
        super().__init__()
        resnet = get_model(name, weights=None, norm_layer=FrozenBatchNorm)
        self.body = IntermediateLayerGetter(resnet, {STAGES[stride]: str(stride) for stride in strides})
        num_last = resnet.get_parameter("fc.weight").shape[1]
        self.channels = [num_last * stride // 32 for stride in strides]  # channels grow with the stride
        for stage in ["conv1", *STAGES.values()][: frozen_stages + 1]:
            if stage in self.body:
                self.body[stage].requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, C_l, H_l, W_l)], finest first."""
        return list(self.body(images).values())


Backbone = ResNet | TimmBackbone | OutputNorms | Swin | PlainViT


@torch.no_grad()
def check_backbone(module: nn.Module, strides: Sequence[int]) -> Any:
    """Check that a user's module works as a backbone: (B, 3, H, W) -> [(B, C_l, H_l, W_l)], a map for each stride.

    Args:
        module: its list `channels` has the channels of each map; its optional `alignment` is like `ResNet`'s.

    Returns:
        the module; `alignment` is set to 1 if it was missing.

    Raises:
        ConfigError: its maps do not agree with `strides` and `channels`.
    """
    kind, channels = type(module).__name__, list(getattr(module, "channels", ()))
    if len(channels) != len(strides):
        raise ConfigError(
            f"{kind}.channels is {channels}, but model.feature_strides = {list(strides)} needs one number per stride"
        )
    side, training = 2 * max(strides), module.training
    first = next(module.parameters(), torch.zeros(1))
    maps = module.eval()(first.new_zeros(1, 3, side, side))
    module.train(training)
    shapes = [tuple(one.shape[1:]) for one in maps]
    expected = [(width, side // stride, side // stride) for width, stride in zip(channels, strides, strict=True)]
    if shapes != expected:
        raise ConfigError(
            f"for an image of {side} x {side}, {kind} returns maps {shapes}; its channels and strides mean {expected}"
        )
    if not hasattr(module, "alignment"):
        module.alignment = 1  # pyright: ignore[reportArgumentType]  modules take attributes of any type
    return module
