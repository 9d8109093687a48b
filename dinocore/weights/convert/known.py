"""Find the preset of a converted model, from its tensors and other facts in its file."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...config import ModelConfig
from ...errors import CheckpointError, ConfigError
from ...presets import list_presets, load_config
from .backbones import backbone_in, count_numbers, strides_in

# (codebase, backbone, levels) -> variant -> preset; tensor names and shapes do not determine the variant
PUBLISHED: dict[tuple[str, str, int], dict[str, str]] = {
    ("official", "resnet50", 4): {"": "r50-4scale"},
    ("official", "resnet50", 5): {"": "r50-5scale"},
    ("detrex", "resnet50", 4): {"12e": "detrex-r50-4scale-12e", "24e": "detrex-r50-4scale-24e"},
    ("detrex", "resnet50", 5): {"": "detrex-r50-5scale-12e"},
    ("detrex", "resnet101", 4): {"": "detrex-r101-4scale-12e"},
    ("official", "swin-l-384", 4): {"": "swin-l-4scale"},
    ("official", "swin-l-384", 5): {"": "swin-l-5scale"},
    ("detrex", "swin-t-224", 4): {"": "detrex-swin-t-224-4scale-12e"},
    ("detrex", "swin-s-224", 4): {"": "detrex-swin-s-224-4scale-12e"},
    ("detrex", "swin-b-384", 4): {"": "detrex-swin-b-384-4scale-12e"},
    ("detrex", "swin-l-224", 4): {"": "detrex-swin-l-224-4scale-12e"},
    ("detrex", "swin-l-384", 4): {"": "detrex-swin-l-384-4scale-12e"},
    ("detrex", "swin-l-384", 5): {"": "detrex-swin-l-384-5scale-12e"},
    ("detrex", "convnext-t", 4): {"": "detrex-convnext-t-4scale-12e"},
    ("detrex", "convnext-s", 4): {"": "detrex-convnext-s-4scale-12e"},
    ("detrex", "convnext-b", 4): {"": "detrex-convnext-b-4scale-12e"},
    ("detrex", "convnext-l", 4): {"": "detrex-convnext-l-4scale-12e"},
    ("detrex", "focalnet-l-3", 4): {"": "detrex-focalnet-l-3-4scale-12e"},
    ("detrex", "focalnet-l-4", 4): {"": "detrex-focalnet-l-4-4scale-12e"},
    ("detrex", "focalnet-l-4", 5): {"": "detrex-focalnet-l-4-5scale-12e"},
    ("detrex", "vitdet-b", 4): {"": "detrex-vitdet-b-4scale-12e"},
    ("detrex", "vitdet-l", 4): {"": "detrex-vitdet-l-4scale-12e"},
    ("mmdet", "swin-l-384", 5): {"": "mmdet-swin-l-5scale-12e"},
    ("mmdet", "resnet50", 4): {"base": "mmdet-r50-4scale-12e", "improved": "mmdet-r50-4scale-improved-12e"},
}


class FileFacts(NamedTuple):
    """What a file contains about its model besides the tensors; None or empty if unknown."""

    position: tuple[float, float] | None  # temperature and offset of the position encoding
    classes: list[str]
    epoch: int | None


def settings_in(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of `model` that can be read from the tensors' names and shapes.

    Raises:
        CheckpointError: a part of the model is missing.
    """
    try:
        classes, width = tensors["proposer.class_head.weight"].shape
        levels, projected = (
            len(tensors["tokenizer.level_embed"]),
            count_numbers(tensors, r"neck\.project\.(\d+)\.0\.weight"),
        )
        backbone = backbone_in(tensors)
        decoder_layers = count_numbers(tensors, r"decoder\.layers\.(\d+)\.self_norm\.weight")
        spare = len(tensors["denoiser.label_embed.weight"]) - classes
        if spare < 0:
            raise CheckpointError(f"the label embedding has {classes + spare} rows for {classes} classes")
        return {
            "num_classes": classes,
            "backbone": backbone,
            "feature_strides": strides_in(backbone, projected),
            "neck_bias": "neck.project.0.0.bias" in tensors,
            "num_levels": levels,
            "hidden_dim": width,
            "ffn_dim": len(tensors["encoder.layers.0.ffn.net.0.weight"]),
            "num_encoder_layers": count_numbers(tensors, r"encoder\.layers\.(\d+)\.norm\.weight"),
            "num_decoder_layers": decoder_layers,
            "num_queries": len(tensors["proposer.content.content"]),
            "heads": "per-layer" if "decoder.class_heads.1.weight" in tensors else "shared",
            "denoising": {"spare_labels": spare},
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights are not a complete DINO; they lack {str(error)[:80]}") from None


def candidates(source: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """The presets that match, by variant."""
    return PUBLISHED.get((source, settings["backbone"], settings["num_levels"]), {})


def choose_preset(source: str, settings: Mapping[str, Any], variant: str | None, file_facts: FileFacts) -> str:
    """The preset of these weights.

    Raises:
        ConfigError: it is ambiguous or unknown, or there is no such variant.
    """
    fitting = candidates(source, settings)
    if not fitting:
        what = f"{settings['backbone']}, {settings['num_levels']} levels"
        raise ConfigError(f"{source} published no such model ({what}); give its config with --preset")
    if variant is not None and variant not in fitting:
        known = ", ".join(name for name in fitting if name) or "none"
        raise ConfigError(f"no variant `{variant}` of these weights; choose from: {known}")
    if variant is None and len(fitting) > 1 and file_facts.position:
        matching = [name for name, preset in fitting.items() if _position(preset) == file_facts.position]
        variant = matching[0] if len(matching) == 1 else None
    if variant is None and len(fitting) > 1:
        choices = " or ".join(
            f"--variant {name} ({preset}, {_format_position(preset)})" for name, preset in fitting.items()
        )
        raise ConfigError(f"the tensor names of {source} do not determine the position encoding; add {choices}")
    return fitting[variant or ""]


def check_preset(name: str, source: str, settings: Mapping[str, Any]) -> None:
    """Check that an included preset matches these weights; other presets are not checked.

    Raises:
        CheckpointError: it is of another codebase or model; the message names the presets that match.
    """
    if name not in list_presets():
        return
    model, fitting = load_config(name).model, list(candidates(source, settings).values())
    owner = next((codebase for codebase in ("mmdet", "detrex") if name.startswith(f"{codebase}-")), "official")
    shape = {key: getattr(model, key) for key in ("backbone", "num_levels", "feature_strides")}
    if owner != source or shape != {key: settings[key] for key in shape}:
        use = f"; use --preset {' or '.join(fitting)}" if fitting else ""
        found = f"{source}, {settings['backbone']}, {settings['num_levels']} levels"
        raise CheckpointError(f"the preset {name} does not match these weights ({found}){use}")


def read_facts(content: Mapping[str, Any]) -> FileFacts:
    """Facts from the checkpoint entries besides the tensors: official DINO's arguments, mmdetection's `meta`."""
    meta, arguments = content.get("meta"), vars(content["args"]) if hasattr(content.get("args"), "__dict__") else {}
    meta = meta if isinstance(meta, Mapping) else {}
    position = None
    if isinstance(arguments.get("pe_temperatureH"), int | float):
        position = (float(arguments["pe_temperatureH"]), 0.0)
    elif found := re.search(r"positional_encoding=dict\(([^)]*)\)", str(meta.get("cfg", ""))):
        values = dict(re.findall(r"(temperature|offset)=(-?[\d.]+)", found[1]))
        if "temperature" in values:
            position = (float(values["temperature"]), float(values.get("offset", 0)))
    dataset = meta.get("dataset_meta")
    names = dataset.get("classes", dataset.get("CLASSES", ())) if isinstance(dataset, Mapping) else ()
    epoch = next((value for value in (content.get("epoch"), meta.get("epoch")) if isinstance(value, int)), None)
    return FileFacts(position, [str(name) for name in names], epoch)


def _position(preset: str) -> tuple[float, float]:
    model: ModelConfig = load_config(preset).model
    return model.position_temperature, model.position_offset


def _format_position(preset: str) -> str:
    return "temperature {:g}, offset {:g}".format(*_position(preset))
