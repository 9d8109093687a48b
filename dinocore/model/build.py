"""Build a DINO from a ModelConfig, in the order of the data flow."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ..config import DenoisingConfig, ModelConfig, check_section
from .backbones.build import build_backbone, check_backbone
from .decoder import Decoder, DecoderLayer, look_once, look_twice
from .deform_attn import MSDeformAttn
from .denoising import Denoiser, NoDenoiser
from .dino import DINO
from .encoder import Encoder, EncoderLayer
from .layers import box_head, checkpointed, class_head, direct, train_affine
from .neck import Neck
from .proposals import ExtraQueries, MixedContent, Proposer, PureContent, StaticQueries
from .tokens import Tokenizer


def build_model(config: ModelConfig, backbone: nn.Module | None = None) -> DINO:
    """Build a DINO with fresh weights (see `init_weights`) in float32, whatever PyTorch's default dtype is.

    Args:
        backbone: your own module instead of `config.backbone`, used unchanged; see `check_backbone`.

    Raises:
        ConfigError: `config` is not a `model` section, the backbone is unknown, or yours returns wrong feature maps.
    """
    check_section(config, ModelConfig)
    dim = config.hidden_dim
    attention = (dim, config.num_heads, config.num_levels, config.num_points, config.ffn_dim, config.dropout)
    layer_call = checkpointed if config.checkpoint_activations else direct
    untrained = config.backbone_weights == "none"  # if so, all layers and norms must be trained
    frozen = -1 if untrained else config.frozen_stages
    if backbone is None:
        features = build_backbone(config.backbone, config.feature_strides, frozen, config.drop_path, layer_call)
        if untrained:
            train_affine(features)
    else:
        features = check_backbone(backbone, config.feature_strides)
    model = DINO(
        backbone=features,
        neck=Neck(features.channels, dim, config.num_levels, partial(nn.Conv2d, bias=config.neck_bias)),
        tokenizer=Tokenizer(dim, config.num_levels, config.position_temperature, config.position_offset),
        encoder=Encoder([EncoderLayer(*attention) for _ in range(config.num_encoder_layers)], layer_call),
        proposer=build_proposer(config),
        denoiser=build_denoiser(config),
        decoder=build_decoder(
            config,
            [DecoderLayer(*attention) for _ in range(config.num_decoder_layers)],
            encode_canvas=features.alignment == 1,
        ),
        extra=ExtraQueries(config.extra_queries, dim) if config.extra_queries else None,
    )
    init_weights(model)
    return model.float().to(memory_format=torch.channels_last)  # faster convolutions


def build_proposer(config: ModelConfig) -> nn.Module:
    """The first stage, or the learned queries that replace it."""
    if config.queries == "static":
        return StaticQueries(config.hidden_dim, config.num_queries)
    content = MixedContent(config.num_queries, config.hidden_dim) if config.queries == "mixed" else PureContent()
    num_logits = config.num_classes if config.first_stage == "classes" else 1
    return Proposer(config.hidden_dim, num_logits, config.num_queries, content)


def build_denoiser(config: ModelConfig) -> nn.Module:
    """Contrastive or plain denoising, with a fixed or a derived number of groups, or none."""
    denoising = config.denoising
    if not denoising.max_targets:
        return NoDenoiser()
    return Denoiser(
        label_embed=nn.Embedding(config.num_classes + denoising.spare_labels, config.hidden_dim),
        num_classes=config.num_classes,
        count_groups=_group_counter(denoising),
        copies=denoising.copies,
        max_targets=denoising.max_targets,
        label_noise=denoising.label_noise,
        box_noise=denoising.box_noise,
    )


def _group_counter(denoising: DenoisingConfig) -> Callable[[int], int]:
    if denoising.num_groups == "auto":
        return partial(derived_groups, denoising.num_pairs)
    return partial(fixed_groups, denoising.num_groups)


def derived_groups(num_pairs: int, num_targets: int) -> int:
    """The number of groups for which an image has at most `num_pairs` noisy positives, but at least one."""
    return max(1, num_pairs // max(1, num_targets))


def fixed_groups(num_groups: int, num_targets: int) -> int:
    """The same number of groups for any number of targets."""
    return num_groups


def build_decoder(config: ModelConfig, layers: list[DecoderLayer], encode_canvas: bool = True) -> Decoder:
    """The decoder, with one pair of heads for all layers or one per layer."""
    num_heads = 1 if config.heads == "shared" else len(layers)
    return Decoder(
        layers=layers,
        class_heads=[class_head(config.hidden_dim, config.num_classes) for _ in range(num_heads)],
        box_heads=[box_head(config.hidden_dim) for _ in range(num_heads)],
        dim=config.hidden_dim,
        look_forward=look_twice if config.look_forward == "twice" else look_once,
        layer_call=checkpointed if config.checkpoint_activations else direct,
        box_eps=config.box_eps,
        encode_canvas=encode_canvas,
    )


@torch.no_grad()
def init_weights(model: DINO) -> None:
    """Initialize all weights that differ from a layer's default.

    encoder, decoder, proposer.project, learned content     Xavier uniform (matrices only)
    deformable attention                                    a ring of sampling points, equal weights
    class and box heads                                     prior 0.01, and no change of the box
    """
    drawn = [*model.encoder.layers, *model.decoder.layers, model.decoder.position]
    drawn += [module for name, module in model.proposer.named_children() if name in ("project", "content")]
    matrices = [p for module in drawn for p in module.parameters() if p.dim() > 1]
    if isinstance(model.proposer, StaticQueries):
        matrices.append(model.proposer.content)
    if model.extra is not None:
        matrices += model.extra.parameters()
    for parameter in matrices:
        nn.init.xavier_uniform_(parameter)
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.reset_parameters()
