"""Tables for renaming parameters of official DINO, detrex and mmdetection to our names.

A table maps a prefix of their name to a prefix of ours; the remainder, such as `weight`, is kept. `#` stands for a
number, which is kept, too. The first matching entry is used. An inverted table maps our names to theirs.

Source: names of the models built from IDEA-Research/DINO faa8520, detrex e244e6c and mmdet 3.3.0.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .backbones import Table, detrex_backbone, mmdet_backbone

ATTENTION = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value",
             "output_proj": "output"}  # fmt: skip
NORMS_IN_ORDER = ("self_norm", "cross_norm", "ffn.norm")  # of a decoder layer, as data flows


class Sizes(NamedTuple):
    """The sizes that names depend on."""

    projected: int  # number of backbone features that the neck projects; further levels are computed from the last one
    levels: int
    decoder_layers: int
    family: str = "resnet"  # of the backbone, see `backbones.family_of`


def official(sizes: Sizes) -> Table:
    """IDEA-Research/DINO. A decoder layer's norm1 follows cross-attention, its norm2 self-attention."""
    numbers = range(sizes.levels)
    theirs, ours = "transformer.decoder.layers.#.", "decoder.layers.#."
    return {
        "backbone.0.": "backbone.",
        **{f"input_proj.{i}.": f"neck.{_neck_part(i, sizes.projected)}." for i in numbers},
        "transformer.level_embed": "tokenizer.level_embed",
        **_encoder("transformer.encoder.layers.#.", "self_attn.", ("norm1.", "norm2."), ("linear1.", "linear2.")),
        f"{theirs}norm1.": f"{ours}cross_norm.",
        f"{theirs}norm2.": f"{ours}self_norm.",
        f"{theirs}norm3.": f"{ours}ffn.norm.",
        f"{theirs}linear1.": f"{ours}ffn.net.0.",
        f"{theirs}linear2.": f"{ours}ffn.net.3.",
        f"{theirs}self_attn.": f"{ours}self_attn.",
        **_attention(f"{theirs}cross_attn.", f"{ours}cross_attn."),
        **_decoder_norm_and_position("transformer.decoder."),
        **_first_stage("transformer.enc_output.", "transformer.enc_output_norm.", "transformer.tgt_embed.weight"),
        "transformer.enc_out_class_embed.": "proposer.class_head.",
        **_mlp("transformer.enc_out_bbox_embed.layers.", "proposer.box_head."),
        "class_embed.#.": "decoder.class_heads.#.",
        **_mlp("bbox_embed.#.layers.", "decoder.box_heads.#."),
        "label_enc.": "denoiser.label_embed.",
    }


def detrex(sizes: Sizes) -> Table:
    """IDEA-Research/detrex, projects/dino. The last head belongs to the first stage."""
    first_stage = sizes.decoder_layers
    theirs, ours = "transformer.decoder.layers.#.", "decoder.layers.#."
    return {
        **detrex_backbone(sizes.family, sizes.projected),
        **_neck("norm"),
        "transformer.level_embeds": "tokenizer.level_embed",
        **_encoder("transformer.encoder.layers.#.", "attentions.0.", ("norms.0.", "norms.1."), _mmcv_ffn("ffns.0.")),
        **{f"{theirs}norms.{i}.": f"{ours}{name}." for i, name in enumerate(NORMS_IN_ORDER)},
        f"{theirs}ffns.0.layers.0.0.": f"{ours}ffn.net.0.",
        f"{theirs}ffns.0.layers.1.": f"{ours}ffn.net.3.",
        f"{theirs}attentions.0.attn.": f"{ours}self_attn.",
        **_attention(f"{theirs}attentions.1.", f"{ours}cross_attn."),
        **_decoder_norm_and_position("transformer.decoder."),
        **_first_stage("transformer.enc_output.", "transformer.enc_output_norm.", "transformer.tgt_embed.weight"),
        f"class_embed.{first_stage}.": "proposer.class_head.",
        **_mlp(f"bbox_embed.{first_stage}.layers.", "proposer.box_head."),
        "class_embed.#.": "decoder.class_heads.#.",
        **_mlp("bbox_embed.#.layers.", "decoder.box_heads.#."),
        "label_enc.": "denoiser.label_embed.",
    }


def mmdet(sizes: Sizes) -> Table:
    """OpenMMLab mmdetection 3, configs/dino. The last branch belongs to the first stage."""
    first_stage = sizes.decoder_layers
    theirs, ours = "decoder.layers.#.", "decoder.layers.#."
    linears = {"0": "0", "2": "2", "4": "4"}  # their Sequential includes the activations, like ours
    return {
        **mmdet_backbone(sizes.family),
        **_neck("gn"),
        "level_embed": "tokenizer.level_embed",
        **_encoder("encoder.layers.#.", "self_attn.", ("norms.0.", "norms.1."), _mmcv_ffn("ffn.")),
        **{f"{theirs}norms.{i}.": f"{ours}{name}." for i, name in enumerate(NORMS_IN_ORDER)},
        f"{theirs}ffn.layers.0.0.": f"{ours}ffn.net.0.",
        f"{theirs}ffn.layers.1.": f"{ours}ffn.net.3.",
        f"{theirs}self_attn.attn.": f"{ours}self_attn.",
        **_attention(f"{theirs}cross_attn.", f"{ours}cross_attn."),
        **_decoder_norm_and_position("decoder."),
        **_first_stage("memory_trans_fc.", "memory_trans_norm.", "query_embedding.weight"),
        f"bbox_head.cls_branches.{first_stage}.": "proposer.class_head.",
        **_mlp(f"bbox_head.reg_branches.{first_stage}.", "proposer.box_head.", linears),
        "bbox_head.cls_branches.#.": "decoder.class_heads.#.",
        **_mlp("bbox_head.reg_branches.#.", "decoder.box_heads.#.", linears),
        "dn_query_generator.label_embedding.": "denoiser.label_embed.",
    }


def inverted(table: Mapping[str, str]) -> Table:
    """The table from our names to theirs."""
    return {ours: theirs for theirs, ours in table.items()}


def renamed(names: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    """The new name of every name with an entry in the table."""
    rules = [(re.compile(re.escape(old).replace(r"\#", r"(\d+)")), new) for old, new in table.items()]
    new_names = {}
    for name in names:
        matches = ((rule.match(name), new) for rule, new in rules)
        match, new = next(((match, new) for match, new in matches if match), (None, ""))
        if match is not None:
            for number in match.groups():
                new = new.replace("#", number, 1)
            new_names[name] = new + name[match.end() :]
    return new_names


def _mmcv_ffn(prefix: str) -> tuple[str, str]:
    """The two linear layers of mmcv's feed-forward block."""
    return f"{prefix}layers.0.0.", f"{prefix}layers.1."


def _neck_part(level: int, projected: int) -> str:
    return f"project.{level}" if level < projected else f"extra.{level - projected}"


def _neck(norm: str) -> Table:
    """The channel mapper, whose conv and norm are layers 0 and 1 of our Sequential."""
    parts = {"convs": "project", "extra_convs": "extra"}
    return {
        f"neck.{theirs}.#.{name}.": f"neck.{ours}.#.{i}."
        for theirs, ours in parts.items()
        for i, name in enumerate(("conv", norm))
    }


def _encoder(theirs: str, attention: str, norms: tuple[str, str], linears: tuple[str, str]) -> Table:
    ours = "encoder.layers.#."
    return {
        **_attention(f"{theirs}{attention}", f"{ours}attn."),
        f"{theirs}{norms[0]}": f"{ours}norm.",
        f"{theirs}{norms[1]}": f"{ours}ffn.norm.",
        f"{theirs}{linears[0]}": f"{ours}ffn.net.0.",
        f"{theirs}{linears[1]}": f"{ours}ffn.net.3.",
    }


def _attention(theirs: str, ours: str) -> Table:
    return {f"{theirs}{name}.": f"{ours}{new}." for name, new in ATTENTION.items()}


def _decoder_norm_and_position(prefix: str) -> Table:
    return {
        f"{prefix}norm.": "decoder.norm.",
        f"{prefix}ref_point_head.layers.0.": "decoder.position.0.",
        f"{prefix}ref_point_head.layers.1.": "decoder.position.2.",
    }


def _first_stage(linear: str, norm: str, content: str) -> Table:
    return {linear: "proposer.project.0.", norm: "proposer.project.1.", content: "proposer.content.content"}


def _mlp(theirs: str, ours: str, linears: Mapping[str, str] | None = None) -> Table:
    """The three linear layers of a box head; our Sequential includes the activations between them."""
    linears = linears or {"0": "0", "1": "2", "2": "4"}
    return {f"{theirs}{i}.": f"{ours}{j}." for i, j in linears.items()}
