"""timm backbones: any model that returns features, with frozen batch norm and output norms."""

import contextlib
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ..alignment import pads_by_size, respect_extents
from ..layers import FrozenBatchNorm, freeze_batch_norm
from ..ops.depthwise import DepthwiseConv, replace_depthwise_convs

STEM = re.compile(r"(model\.)?(conv_stem|conv1|bn1|stem|patch_embed|pos_embed|pos_drop|cls_token|layers?_0_)")
NUMBERED_STAGE = re.compile(r"(?:model\.)?(?:blocks|stages|layers?)[._]?(\d+)")


class TimmBackbone(nn.Module):
    """A timm model that returns features."""

    body: Any
    channels: list[int]  # one number per stride
    extract: Callable[..., Any]  # builds another body

    def __init__(
        self, name: str, strides: Sequence[int], frozen_stages: int, drop_path: float, checkpointing: bool = False
    ):
        super().__init__()
        options = any_size(name)
        self.extract = partial(
            feature_extractor, name, drop_path, out_indices=feature_indices(name, strides), **options
        )
        body = self.extract()
        self.order = (0, 3, 1, 2) if str(getattr(body, "output_fmt", "")).endswith("NHWC") else (0, 1, 2, 3)
        self.multiple = min(feature_strides(name)) if options else 1  # transformers do not accept partial patches
        self.channels = body.feature_info.channels()
        self.body = freeze_batch_norm(body)
        freeze_stages(self.body, name, frozen_stages)
        # the minimum side of images, and the number that sides must be multiples of
        self.least, self.alignment = 1, max(strides)
        if not pads_by_size(body):
            self.least, self.alignment = self._find_sizes(name, max(strides))
        replace_depthwise_convs(self.body)
        self.loses_in_bf16 = is_mobile(self.body)
        if self.alignment > 1:
            respect_extents(self.body)
        elif checkpointing:  # not with `respect_extents`, whose extents are not set when blocks are recomputed
            recompute_blocks(self.body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, C_l, H_l, W_l)], finest first."""
        if self.least > 1:
            below, right = (max(0, self.least - side) for side in images.shape[-2:])
            images = F.pad(images, (0, right, 0, below))
        below, right = (-side % self.multiple for side in images.shape[-2:])
        images = F.pad(images, (0, right, 0, below))
        return [x.permute(self.order) for x in self.body(images)]

    def _find_sizes(self, name: str, stride: int) -> tuple[int, int]:
        """Find the minimum side of images, and the number that sides must be multiples of, by trying.

        Inception needs 75 pixels, HRNet multiples of its stride, and attention in blocks multiples of a few strides.

        Raises:
            ConfigError: none of the sizes works.
        """
        training = self.training
        self.eval()
        least = next((side for side in (1, *(n * stride for n in (1, 2, 3, 4, 8))) if self._takes(side, side)), 0)
        base = max(least, 2 * stride)
        multiples = (1, *(n * stride for n in (1, 2, 4, 8)))
        multiple = next((n for n in multiples if least and self._takes(base + n, base + 3 * n)), 0)
        self.train(training)
        if not multiple:
            raise ConfigError(
                f"timm's `{name}` takes only images of certain sizes, not of multiples of {stride} pixels"
            )
        return least, multiple

    @torch.no_grad()
    def _takes(self, height: int, width: int) -> bool:
        try:
            self(next(self.body.parameters()).new_zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError) as error:
            return "meta tensors" in str(error)  # these have no data to try with
        return True


class OutputNorms(nn.Module):
    """A timm model with a layer norm on each of its maps, as in detectors."""

    alignment = 1

    def __init__(self, body: TimmBackbone, norm: Callable[[int], nn.Module], least: int):
        """
        Args:
            least: minimum side of images in pixels, for one token in the coarsest map.
        """
        super().__init__()
        self.least = least
        self.body = body
        self.norms = nn.ModuleList(map(norm, body.channels))
        self.channels = body.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, C_l, H_l, W_l)], finest first."""
        below, right = (max(0, self.least - side) for side in images.shape[-2:])
        maps = self.body(F.pad(images, (0, right, 0, below)))
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def is_mobile(body: nn.Module) -> bool:
    """Whether a network has depthwise convolutions and batch norm, like MobileNet and its successors.

    They lose AP if batch norm is folded and weights are rounded to bfloat16: the bundled model loses 0.3 points on 581
    photographs. Training in bfloat16, where nothing is folded, is not affected, and is twice as fast for them.
    """
    kinds = {type(module) for module in body.modules()}
    return DepthwiseConv in kinds and FrozenBatchNorm in kinds


def recompute_blocks(body: nn.Module) -> None:
    """Enable timm's activation checkpointing, if the model supports it."""
    for module in (body, getattr(body, "model", None)):
        if turn_on := getattr(module, "set_grad_checkpointing", None):
            turn_on(True)


def feature_strides(name: str) -> list[int]:
    """The strides of a timm model's features; see `_features`."""
    return _features(name)[0]


@cache
def _features(name: str) -> tuple[list[int], list[int]]:
    """The strides of the features that a timm model returns by default, and their indices among all features.

    Raises:
        ConfigError: there is no such model, or it has no features.
    """
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        hint = f"; similar are {', '.join(f'timm/{c}' for c in close)}" if close else ""
        raise ConfigError(f"timm {timm.__version__} has no model `{name}`{hint}")
    try:
        with torch.device("meta"):
            info = feature_extractor(name).feature_info
            return info.reduction(), list(info.out_indices)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"timm's `{name}` returns no feature maps: {error}") from error


def feature_indices(name: str, strides: Sequence[int]) -> tuple[int, ...]:
    """The indices of a timm model's features with given strides.

    Raises:
        ConfigError: there is no such model, or it has no features at these strides.
    """
    reductions, numbers = _features(name)
    if missing := [stride for stride in strides if stride not in reductions]:
        raise ConfigError(
            f"timm's `{name}` has features at strides {reductions}, not at {missing}; "
            "set model.feature_strides to some of those"
        )
    return tuple(numbers[reductions.index(stride)] for stride in strides)


def feature_extractor(name: str, drop_path: float = 0.0, **options: Any) -> Any:
    """A timm model without trained weights; typed as Any, because nn.Module does not declare `feature_info`.

    Raises:
        ConfigError: `drop_path` is set, but the model cannot skip blocks.
    """
    import timm

    if not drop_path:
        return timm.create_model(name, features_only=True, **options)
    try:
        return timm.create_model(name, features_only=True, drop_path_rate=drop_path, **options)
    except TypeError as error:
        if "drop_path" not in str(error):
            raise
        raise ConfigError(f"timm's `{name}` cannot skip blocks; set model.drop_path = 0") from error


@cache
def any_size(name: str) -> dict[str, bool]:
    """Options with which a timm model accepts images of any size; empty for most models.

    Raises:
        ConfigError: the model accepts only images of one size.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:
        return {}
    for option in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        with contextlib.suppress(TypeError), torch.device("meta"):
            feature_extractor(name, **option)
            return option
    raise ConfigError(f"timm's `{name}` takes only images of {config.input_size[1]} x {config.input_size[2]} pixels")


def freeze_stages(body: Any, name: str, frozen_stages: int) -> None:
    """Freeze the stem (0) and the first n stages of a timm model.

    Stages are recognized by their names if these count from 0. Otherwise, the first n stages are all layers up to the
    map of stride 2 * 2^n, as in our ResNets: timm's ResNets count from 1, and RegNets and ReXNets have other names.

    Raises:
        ConfigError: there is nothing to freeze.
    """
    frozen, keys = 0, [key for key, _ in body.named_parameters()]
    by_stride = frozen_stages > 0 and _is_not_numbered_from_0(keys)
    within = set(_up_to_stride(body, keys, 2 * 2**frozen_stages)) if by_stride else set()
    for key, parameter in body.named_parameters():
        stage = None if within else NUMBERED_STAGE.match(key)
        if frozen_stages >= 0 and (STEM.match(key) or key in within or (stage and int(stage[1]) < frozen_stages)):
            parameter.requires_grad_(False)
            frozen += 1
    if frozen_stages >= 0 and not frozen:
        raise ConfigError(f"timm's `{name}` has no stem to freeze; set model.frozen_stages = -1")


def _is_not_numbered_from_0(keys: Sequence[str]) -> bool:
    """Whether a model's stages are not numbered from 0."""
    numbers = {int(match[1]) for match in map(NUMBERED_STAGE.match, keys) if match}
    return not numbers or min(numbers) > 0


def _up_to_stride(body: Any, keys: Sequence[str], stride: int) -> list[str]:
    """The parameters up to the map of a stride, in the order of registration; empty if there is no such map."""
    modules = [entry["module"] for entry in body.feature_info.info if entry["reduction"] == stride]
    if not modules:
        return []
    last = modules[-1].replace(".", "_") + "_"
    inside = [n for n, key in enumerate(keys) if key.replace(".", "_").startswith(last)]
    return list(keys[: inside[-1] + 1]) if inside else []
