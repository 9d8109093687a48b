"""Describe a weights file, in our format or another codebase's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...config import Config
from ...errors import CheckpointError, ConfigError
from ...presets import list_presets, load_config
from ..file import Weights, load_weights
from ..untrusted import read_file
from . import coco
from .files import fingerprint
from .known import candidates, choose_preset, read_facts, settings_in
from .state import CODEBASES, by_part, convert_tensors


def describe(path: Path) -> dict[str, Any]:
    """Facts about a weights file: codebase, preset, classes, metrics, origin, size and hash.

    Raises:
        CheckpointError: it cannot be read, or is of an unknown codebase.
    """
    content, metadata = read_file(path)
    facts = _ours(load_weights(path), metadata) if "config" in metadata else _others(content, path)
    return fingerprint(path) | facts


def preset_of(config: Config) -> str | None:
    """The included preset with this model; if there are several, the one with these epochs; None if there is none."""
    fitting = [name for name in list_presets() if _model_only(load_config(name)) == _model_only(config)]
    same_length = [name for name in fitting if load_config(name).train.epochs == config.train.epochs]
    return next(iter(same_length + fitting), None)


def preset_of_weights(weights: Weights) -> str | None:
    """The preset that weights were converted with, or the included one with their model; None if there is none."""
    converted = weights.facts.get("converted_from") or {}
    return converted.get("preset") or preset_of(weights.config)


def _ours(weights: Weights, metadata: Mapping[str, str]) -> dict[str, Any]:
    facts = dict(weights.facts)
    converted = facts.pop("converted_from", None) or {}
    return {
        "codebase": "dino",
        "version": metadata.get("dino_version"),
        "preset": preset_of_weights(weights),
        "model": _model(weights.config.model.model_dump()),
        "num_classes": len(weights.categories),
        "classes": [category._asdict() for category in weights.categories],
        "metrics": facts.pop("metrics", {}),
        "epoch": facts.pop("epoch", converted.get("epoch")),
        "step": facts.pop("step", None),
        "converted_from": converted or None,
        "facts": facts,
    } | _count(weights.tensors)


def _others(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    try:
        converted = convert_tensors(content)
        settings = settings_in(converted.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    file_facts = read_facts(content)
    fitting = candidates(converted.source, settings)
    try:
        presets = [choose_preset(converted.source, settings, None, file_facts)]
    except ConfigError:
        presets = list(fitting.values())
    names = file_facts.classes or _coco_names(settings["num_classes"])
    return {
        "codebase": converted.source,
        "title": CODEBASES[converted.source].title,
        "preset": presets[0] if len(presets) == 1 else None,
        "preset_choices": presets,
        "model": _model(settings),
        "num_classes": settings["num_classes"],
        "classes": names,
        "metrics": {},
        "epoch": file_facts.epoch,
        "beside_the_model": [
            str(key)
            for key, value in by_part(content).items()
            if key not in ("model", "state_dict") and not isinstance(value, Tensor)
        ],
    } | _count(converted.tensors)


def _coco_names(num_classes: int) -> list[str]:
    """COCO's class names if the number of classes matches, which is a guess; otherwise empty."""
    guess = {coco.NUM_IDS: coco.all_ids(), len(coco.CATEGORIES): coco.CATEGORIES}
    return [category.name for category in guess.get(num_classes, [])]


def _model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that characterise a model."""
    shown = ("backbone", "num_levels", "num_queries", "heads", "num_encoder_layers", "num_decoder_layers", "hidden_dim")
    return {key: settings[key] for key in shown}


def _count(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values()})
    return {"tensors": len(tensors), "numbers": sum(value.numel() for value in tensors.values()), "dtypes": dtypes}


def _model_only(config: Config) -> dict[str, Any]:
    return config.model.model_dump(
        exclude={"num_classes", "backbone_weights", "drop_path", "checkpoint_activations", "denoising"}
    )
