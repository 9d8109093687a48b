"""Weights of other codebases under our names. Every tensor is used once or dropped for a stated reason."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from .errors import CheckpointError

ALIASES = re.compile(
    r"^(class_embed|bbox_embed)\.[1-9]|^transformer\.decoder\.(class|bbox)_embed"
)  # one head, saved often
Rule = tuple[str, str | Callable[[re.Match], str]]


def _doubled(prefix: str) -> Callable[[re.Match], str]:
    """Linear i of official's MLP is entry 2i of our Sequential, which counts the activations."""
    return lambda match: f"{prefix}.{2 * int(match[1])}."


OFFICIAL: list[Rule] = [
    (r"^backbone\.0\.body\.", "backbone.body."),
    (r"^transformer\.level_embed$", "tokenizer.level_embed"),
    (r"^transformer\.enc_output\.", "proposer.project.0."),
    (r"^transformer\.enc_output_norm\.", "proposer.project.1."),
    (r"^transformer\.enc_out_class_embed\.", "proposer.class_head."),
    (r"^transformer\.enc_out_bbox_embed\.layers\.(\d)\.", _doubled("proposer.box_head")),
    (r"^transformer\.tgt_embed\.weight$", "proposer.content.content"),
    (r"^transformer\.decoder\.ref_point_head\.layers\.(\d)\.", _doubled("decoder.position")),
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^class_embed\.0\.", "decoder.class_heads.0."),
    (r"^bbox_embed\.0\.layers\.(\d)\.", _doubled("decoder.box_heads.0")),
    (r"^label_enc\.", "denoiser.label_embed."),
    (r"(encoder.*)\.self_attn\.", r"\1.attn."),
    (r"\.sampling_offsets\.", ".offsets."),
    (r"\.attention_weights\.", ".weights."),
    (r"\.value_proj\.", ".value."),
    (r"(attn)\.output_proj\.", r"\1.output."),
    (r"\.linear1\.", ".ffn.net.0."),
    (r"\.linear2\.", ".ffn.net.3."),
    (r"(encoder.layers.\d+)\.norm1\.", r"\1.norm."),
    (r"(encoder.layers.\d+)\.norm2\.", r"\1.ffn.norm."),
    (r"(decoder.layers.\d+)\.norm1\.", r"\1.cross_norm."),
    (r"(decoder.layers.\d+)\.norm2\.", r"\1.self_norm."),
    (r"(decoder.layers.\d+)\.norm3\.", r"\1.ffn.norm."),
]


def convert_state_dict(state: Mapping[str, Tensor], source: str | None = None) -> dict[str, Tensor]:
    """Rename the tensors of another codebase's model to ours.

    Args:
        state: tensors by name, or a checkpoint that holds them under `model`.
        source: `official` (IDEA-Research/DINO); None tells it by the names.

    Raises:
        CheckpointError: the names are not those of a codebase that we read.
    """
    state = state.get("model", state)  # type: ignore[assignment]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    found = source or _tell_source(state)
    if found != "official":
        raise CheckpointError(f"weights from `{found}` can't be converted; known is `official` (IDEA-Research/DINO)")
    num_projected = sum(
        re.fullmatch(r"input_proj\.\d+\.0\.weight", k) is not None and _is_1x1(v) for k, v in state.items()
    )
    return {_rename(key, num_projected): value for key, value in state.items() if not ALIASES.match(key)}


def _tell_source(state: Mapping[str, Tensor]) -> str:
    if any(key.startswith(("transformer.enc_out_class_embed", "input_proj.")) for key in state):
        return "official"
    if not state:
        raise CheckpointError("there are no weights in it: the dictionary is empty")
    shown = ", ".join(list(state)[:3])
    raise CheckpointError(f"these are not the weights of official DINO: the first of {len(state)} names are {shown}")


def _is_1x1(weight: Tensor) -> bool:
    return tuple(weight.shape[-2:]) == (1, 1)


def _rename(key: str, num_projected: int) -> str:
    if match := re.match(r"^input_proj\.(\d+)\.", key):  # the first project backbone features, the others add levels
        level = int(match[1])
        name = f"project.{level}" if level < num_projected else f"extra.{level - num_projected}"
        return f"neck.{name}.{key[match.end() :]}"
    for pattern, replacement in OFFICIAL:
        key = re.sub(pattern, replacement, key)
    return key
