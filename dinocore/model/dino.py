"""DINO: DETR with Improved DeNoising Anchor Boxes (Zhang et al. 2022, https://arxiv.org/abs/2203.03605)."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..structures import DenoisingQueries, Match, Predictions, Proposals, Queries, Target
from .alignment import align, within
from .backbones.build import Backbone
from .decoder import Decoder
from .denoising import join
from .encoder import Encoder
from .neck import Neck
from .tokens import Tokenizer


class DinoOutput(NamedTuple):
    """Everything that the loss, a detector or an inspector needs."""

    stages: list[Predictions]  # one per decoder layer
    proposals: Proposals | None  # None with static queries
    queries: Queries  # the decoder's input, denoising queries first, and the mask between them
    denoising: list[Predictions] | None = None  # one per decoder layer, in training
    noise: DenoisingQueries | None = None
    extra: list[Predictions] | None = None  # for extra queries, one per decoder layer, in training

    @property
    def final(self) -> Predictions:
        """The last decoder layer's predictions."""
        return self.stages[-1]

    @property
    def denoising_match(self) -> Match | None:
        """The match of denoising queries with targets."""
        return None if self.noise is None else self.noise.match


class DINO(nn.Module):
    """The model of the paper's figure 2: each line of `forward` is one arrow."""

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        tokenizer: Tokenizer,
        encoder: Encoder,
        proposer: nn.Module,
        denoiser: nn.Module,
        decoder: Decoder,
        extra: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.proposer = proposer
        self.denoiser = denoiser
        self.decoder = decoder
        self.extra = extra
        # read now, because `for_inference` replaces the layer by one without `out_features`
        self.num_classes = cast(nn.Linear, decoder.class_heads[0]).out_features
        self.alignment = backbone.alignment * neck.downsampling if backbone.alignment > 1 else 1

    def forward(self, images: Tensor, padding: Tensor, targets: list[Target] | None = None) -> DinoOutput:
        """
        Args:
            images: (B, 3, H, W), normalised.
            padding: (B, H, W) bool, True outside the image.
            targets: the annotated objects of each image; with them, the output includes denoising.

        Raises:
            ValueError: the shapes do not match, or a label is not one of the model's classes.
        """
        check_inputs(images, padding, targets, self.num_classes)
        images, padding, extents = align(images, padding, self.alignment)
        with within(extents):
            features = self.backbone(images)  # [(B, C_l, H_l, W_l)]
        maps = self.neck(features, extents)  # L x (B, C, H_l, W_l)
        tokens = self.tokenizer(maps, padding)  # (B, S, C)
        memory = self.encoder(tokens)  # (B, S, C)
        proposals, queries = self.proposer(memory)  # (B, N, 4)
        noise = None if targets is None else self.denoiser(targets)
        extra = self.extra(queries) if self.extra and self.training and targets is not None else None
        if noise is None and extra is None:
            return DinoOutput(self.decoder(queries, memory), proposals, queries)

        first = 0 if noise is None else noise.content.shape[1]  # index of the first matching query
        end = first + queries.content.shape[1]
        queries = join(noise, queries, extra)
        stages = self.decoder(queries, memory)
        return DinoOutput(
            stages=_part(stages, first, end),
            proposals=proposals,
            queries=queries,
            denoising=None if noise is None else _part(stages, 0, first),
            noise=noise,
            extra=None if extra is None else _part(stages, end, None),
        )


def _part(stages: list[Predictions], first: int, end: int | None) -> list[Predictions]:
    """The predictions of each layer for a range of queries."""
    return [Predictions(*(x[:, first:end] for x in stage)) for stage in stages]


def check_inputs(images: Tensor, padding: Tensor, targets: list[Target] | None, num_classes: int) -> None:
    """Check for inputs that would give wrong results or an unclear error later.

    Raises:
        ValueError: shapes or dtypes are wrong, or a label is not one of the model's classes.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W); got {tuple(images.shape)}")
    expected = (images.shape[0], *images.shape[2:])
    if padding.dtype != torch.bool or padding.shape != expected:
        got = f"{padding.dtype} of {tuple(padding.shape)}"
        raise ValueError(f"padding must be bool of {expected}, True outside the image; got {got}")
    if targets is None:
        return
    if len(targets) != len(images):
        raise ValueError(f"{len(targets)} targets for {len(images)} images; give one Target per image")
    labels = torch.cat([target.labels for target in targets])
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(
            f"labels must be 0 to {num_classes - 1}, because the model has {num_classes} classes; got "
            f"{', '.join(map(str, labels.unique().tolist()))}"
        )
