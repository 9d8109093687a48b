"""Convert a state dict to our names: each tensor is used once, or dropped for a recorded reason."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..untrusted import is_counter, without_prefixes
from . import tables
from .backbones import family_of, reordered
from .tables import Sizes, Table

ALIASES = re.compile(r"^(class_embed|bbox_embed)\.[1-9]|^transformer\.decoder\.(class|bbox)_embed")
TWIN = re.compile(r"^transformer\.decoder\.((?:class|bbox)_embed\..*)")
COUNTER = re.compile(r"^backbone\..*\.num_batches_tracked$")
WINDOW_INDEX = re.compile(r"^backbone\..*\.relative_position_index$")


class Codebase(NamedTuple):
    """The parameter names of a codebase."""

    title: str
    table: Callable[[Sizes], Table]
    projection: str  # pattern of the neck's convolutions, by level
    levels: str  # the level embedding
    heads: str  # pattern of class heads
    own_first_stage: bool  # whether the first stage's head is not numbered with the decoder's


CODEBASES = {
    "official": Codebase("IDEA-Research/DINO", tables.official, r"input_proj\.\d+\.0\.weight",
                         "transformer.level_embed", r"class_embed\.(\d+)\.weight", True),
    "detrex": Codebase("IDEA-Research/detrex", tables.detrex, r"neck\.convs\.\d+\.conv\.weight",
                       "transformer.level_embeds", r"class_embed\.(\d+)\.weight", False),
    "mmdet": Codebase("OpenMMLab mmdetection", tables.mmdet, r"neck\.convs\.\d+\.conv\.weight",
                      "level_embed", r"bbox_head\.cls_branches\.(\d+)\.weight", False),
}  # fmt: skip
AVERAGES = ("ema_model", "ema_state", "ema_state_dict", "model_ema", "state_dict_ema", "ema")
WRAPPERS = (
    "model",
    "state_dict",
    "module",
    "shadow",
)  # keys of a checkpoint, or of an average, under which tensors are stored
MODEL_PARTS = ("model", "module", "_orig_mod")  # prefixes of the model, next to other parts such as the criterion
# a tensor name -> what the file probably is instead
OTHERS = {
    "tokenizer.level_embed": "dino's own weights, without their settings and classes; "
    "save them with dinocore.weights.file.save_weights",
    "cls_token": "a vision transformer's, such as Meta's self-supervised DINO, which is unrelated",
    "fc.weight": "those of a classifier; use them with --set model.backbone_weights=FILE",
    "head.weight": "those of a classifier; use them with --set model.backbone_weights=FILE",
    "0.conv.weight": "those of YOLO, a different detector",
    "query_embed.weight": "those of another kind of DETR",
    "reference_points.weight": "those of another kind of DETR",
}


class Converted(NamedTuple):
    """Tensors under our names, and what happened to the original ones."""

    source: str  # official, detrex or mmdet
    tensors: dict[str, Tensor]
    renamed: dict[str, str]  # original name -> our name
    dropped: dict[str, str]  # original name -> reason


def convert_state_dict(state: Mapping[str, Any], source: str | None = None) -> dict[str, Tensor]:
    """Rename the tensors of another codebase's model to ours.

    Args:
        state: tensors by name, or a checkpoint that holds them under `model` or `state_dict`.
        source: `official` (IDEA-Research/DINO), `detrex` or `mmdet`; None: detect it by the names.

    Raises:
        CheckpointError: the names belong to no supported codebase, or a tensor is unknown.
    """
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise CheckpointError(f"a state dict is needed, not an object of type {kind}; torch.load(FILE) gives one")
    return convert_tensors(state, source).tensors


def convert_tensors(state: Mapping[str, Any], source: str | None = None, ema: bool = False) -> Converted:
    """Like `convert_state_dict`, with a report of what happened to each tensor."""
    state = unwrapped(state, ema)
    state = {key if TWIN.sub(r"\1", key) in state else TWIN.sub(r"\1", key): value for key, value in state.items()}
    source = source or detect_source(state)
    if source not in CODEBASES:
        raise CheckpointError(f"weights from `{source}` can't be converted; choose from {', '.join(CODEBASES)}")
    dropped = dropped_tensors(state, source)
    kept = [key for key in state if key not in dropped]
    names = tables.renamed(kept, CODEBASES[source].table(sizes_in(state, source)))
    if unknown := [key for key in kept if key not in names]:
        raise CheckpointError(
            f"{len(unknown)} of {len(state)} tensors do not occur in {CODEBASES[source].title}'s DINO, such as "
            f"{', '.join(unknown[:3])}"
        )
    if duplicates := [key for key, count in Counter(names.values()).items() if count > 1]:
        raise CheckpointError(f"two tensors would both become {duplicates[0]}")
    tensors = {names[key]: reordered(names[key], state[key], source) for key in kept}
    return Converted(source, tensors, names, dropped)


def by_part(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Split a checkpoint whose single dictionary holds the tensors of several parts, as Lightning saves it.

    `model.…`, `model_ema.…` and `criterion.…` become `state_dict`, `model_ema` and `criterion`, as other tools save
    them. Any other checkpoint is returned unchanged.
    """
    wrapper = next((key for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), None)
    parts: dict[str, dict[str, Any]] = {}
    for name, value in without_prefixes(content if wrapper is None else content[wrapper]).items():
        part, _, inner_name = name.partition(".") if isinstance(value, Tensor) else ("", "", name)
        parts.setdefault(part if inner_name else "", {})[inner_name or name] = value
    model = next((part for part in MODEL_PARTS if part in parts), None)
    if len(parts) == 1 or not (model or parts.keys() & set(AVERAGES)):
        return content
    averages = {part: parts.pop(part) for part in AVERAGES if part in parts}
    if model is None:  # only the average has a prefix
        plain = {f"{part}.{name}" if part else name: v for part, inner in parts.items() for name, v in inner.items()}
        parts = {}
    else:
        plain = parts.pop(model)
    alone = parts.pop("", {})
    beside = {key: value for key, value in content.items() if wrapper is not None and key != wrapper}
    return {"state_dict": plain} | averages | parts | alone | beside


def moving_average_in(content: Mapping[str, Any]) -> str:
    """The key under which a checkpoint has a moving average besides its weights; empty without one."""
    return next((key for key in AVERAGES if isinstance(content.get(key), Mapping) and content[key]), "")


def holds_last_step(content: Mapping[str, Any], key: str) -> bool:
    """Whether the average's key holds the weights of the last step, and `state_dict` holds the average.

    mmengine's EMAHook swaps the two when it saves (`_swap_ema_state_dict`); its average counts `steps`.
    """
    return key == "ema_state_dict" and "steps" in content[key] and isinstance(content.get("state_dict"), Mapping)


def unwrapped(content: Mapping[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the prefixes that training tools add.

    Args:
        ema: use the moving average in the checkpoint. Backbone tensors that the average lacks (frozen layers,
            statistics) are taken from the weights.

    Raises:
        CheckpointError: there are no named tensors, or no moving average.
    """
    content = by_part(content)
    if not ema:
        return _tensors_in(content)
    if not (key := moving_average_in(content)):
        raise CheckpointError("it has no moving average; drop --ema")
    if holds_last_step(content, key):
        return _tensors_in(content)
    beside = {name: value for name, value in content.items() if name not in AVERAGES}
    plain = _tensors_in(beside) if any(isinstance(beside.get(wrapper), Mapping) for wrapper in WRAPPERS) else {}
    average = _tensors_in(content[key])
    return {name: value for name, value in plain.items() if name.startswith("backbone.")} | average


def _tensors_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        content = inner if isinstance(inner, Mapping) else content
    content = {str(key): value for key, value in content.items() if not is_counter(str(key), value)}
    if not content:
        raise CheckpointError("it has no weights: the dictionary is empty")
    if other := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"it contains something other than tensors, such as `{other[0]}`")
    return without_prefixes(content)


def detect_source(state: Mapping[str, Tensor]) -> str:
    """The codebase that tensor names belong to.

    Raises:
        CheckpointError: they belong to no supported codebase.
    """
    signs = {
        "official": ("transformer.enc_out_class_embed.", "input_proj."),
        "detrex": ("transformer.level_embeds", "transformer.encoder.layers.0.attentions.0."),
        "mmdet": ("bbox_head.cls_branches.", "dn_query_generator."),
    }
    for source, begin in signs.items():
        if any(key.startswith(begin) for key in state):
            return source
    shown = ", ".join(list(state)[:3])
    hint = next((f"; they look like {what}" for sign, what in OTHERS.items() if sign in state), "")
    more = f" and {len(state) - 3} more" if len(state) > 3 else ""
    raise CheckpointError(
        f"the tensor names are not those of official DINO, detrex or mmdetection: {shown}{more}{hint}"
    )


def sizes_in(state: Mapping[str, Tensor], source: str) -> Sizes:
    """The sizes that names depend on, read from the names and shapes."""
    codebase = CODEBASES[source]
    neck = [value for key, value in state.items() if re.fullmatch(codebase.projection, key)]
    heads = {int(match[1]) for match in (re.fullmatch(codebase.heads, key) for key in state) if match}
    levels = state.get(codebase.levels)
    if levels is None or not heads:
        raise CheckpointError(
            f"these weights of {codebase.title} are not a complete DINO: {codebase.levels} is missing"
        )
    return Sizes(
        projected=sum(tuple(weight.shape[-2:]) == (1, 1) for weight in neck),
        levels=len(levels),
        decoder_layers=max(heads) + codebase.own_first_stage,
        family=family_of(state),
    )


def dropped_tensors(state: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Redundant tensors, with the reasons why they are dropped.

    Raises:
        CheckpointError: two tensors that are shared in the model differ.
    """
    dropped = {}
    for key, value in state.items():
        if COUNTER.match(key):
            dropped[key] = "a counter of training steps, which frozen batch norm does not use"
        elif WINDOW_INDEX.match(key):
            dropped[key] = "computed from the window size"
        elif source != "mmdet" and (match := TWIN.match(key)) and match[1] in state:
            if not same(value, state[match[1]]):
                raise CheckpointError(f"{key} and {match[1]} differ, although they are one tensor in the model")
            dropped[key] = f"the same tensor as {match[1]}"
    if source == "official":
        dropped |= _shared_heads(state)
    return dropped


def _shared_heads(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Copies of official DINO's heads, which layers share unless `dec_pred_*_embed_share` is off."""
    firsts = {key: re.sub(r"^(\w+)\.\d+\.", r"\1.0.", key) for key in state if re.match(r"(class|bbox)_embed\.", key)}
    copies = {key: first for key, first in firsts.items() if key != first and first in state}
    if all(same(state[key], state[first]) for key, first in copies.items()):
        return {key: f"the same tensor as {first}" for key, first in copies.items()}
    return {}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same object, or equal bit for bit."""
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
