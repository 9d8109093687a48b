"""From images to feature maps: ResNets of torchvision, or any timm model that gives features. Batch norm is frozen."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, list_models
from torchvision.models._utils import IntermediateLayerGetter

from ..errors import ConfigError
from .layers import FrozenBatchNorm, freeze_batch_norm

STAGES = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}  # of a ResNet, by stride
STEM = re.compile(r"(conv_stem|conv1|bn1|stem|patch_embed|layers?_0_)")
NUMBERED_STAGE = re.compile(r"(?:blocks|stages|layers?)[._]?(\d+)")


def build_backbone(name: str, strides: Sequence[int], frozen_stages: int) -> "Backbone":
    """A backbone without trained weights.

    Raises:
        ConfigError: there is no such backbone, or it has no features at these strides.
    """
    if name.startswith("timm/"):
        return TimmBackbone(name.removeprefix("timm/"), strides, frozen_stages)
    resnets = list_models(include="*resne*t*")
    if name not in resnets:
        raise ConfigError(f"there is no backbone `{name}`; known are {', '.join(resnets)} and timm/NAME")
    if missing := [stride for stride in strides if stride not in STAGES]:
        raise ConfigError(f"{name} has features at strides {list(STAGES)}, not at {missing}; set model.feature_strides")
    return ResNet(name, strides, frozen_stages)


class ResNet(nn.Module):
    """A torchvision ResNet that returns features."""

    channels: list[int]  # one number per stride
    slow_in_bf16 = False

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


class TimmBackbone(nn.Module):
    """A timm model that returns features."""

    channels: list[int]  # one number per stride

    def __init__(self, name: str, strides: Sequence[int], frozen_stages: int):
        super().__init__()
        self.indices = timm_feature_indices(name, strides)
        body = _feature_extractor(name, out_indices=self.indices)
        self.channels = body.feature_info.channels()
        self.body = freeze_batch_norm(body)
        _freeze_stages(self.body, name, frozen_stages)
        convolutions = [module for module in body.modules() if isinstance(module, nn.Conv2d)]
        self.slow_in_bf16 = any(conv.groups > 1 for conv in convolutions)  # on CPU: 1.6 times the time of float32

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, C_l, H_l, W_l)], finest first."""
        slow = self.slow_in_bf16 and images.device.type == "cpu"
        autocast = torch.is_autocast_enabled(images.device.type) and not slow
        with torch.autocast(images.device.type, enabled=autocast):
            return self.body(images)


Backbone = ResNet | TimmBackbone


def timm_feature_indices(name: str, strides: Sequence[int]) -> tuple[int, ...]:
    """Which of a timm model's features have these strides.

    Raises:
        ConfigError: no such model, no features, or none of that stride.
    """
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        hint = f"; similar are {', '.join(f'timm/{c}' for c in close)}" if close else ""
        raise ConfigError(f"timm {timm.__version__} has no model `{name}`{hint}")
    try:
        reductions = _feature_extractor(name).feature_info.reduction()
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"timm's `{name}` gives no feature maps: {error}") from error
    if missing := [stride for stride in strides if stride not in reductions]:
        raise ConfigError(
            f"timm's `{name}` has features at strides {reductions}, not at {missing}; "
            "set model.feature_strides to some of those"
        )
    return tuple(reductions.index(stride) for stride in strides)


def _feature_extractor(name: str, **options: Any) -> Any:
    """A timm model without trained weights, typed as Any because nn.Module declares no `feature_info`."""
    import timm

    return timm.create_model(name, pretrained=False, features_only=True, **options)


def _freeze_stages(body: nn.Module, name: str, frozen_stages: int) -> None:
    """Freeze the stem (0) and the first n stages of a timm model, told by the names that timm's families use."""
    frozen = 0
    for key, parameter in body.named_parameters():
        stage = NUMBERED_STAGE.match(key)
        if frozen_stages >= 0 and (STEM.match(key) or (stage and int(stage[1]) < frozen_stages)):
            parameter.requires_grad_(False)
            frozen += 1
    if frozen_stages >= 0 and not frozen:
        raise ConfigError(f"timm's `{name}` has no stem that could be frozen; set model.frozen_stages = -1")
