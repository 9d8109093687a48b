"""Convert a file of another codebase to our format: read it, rename the tensors, check with a forward pass."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...config import Config
from ...data.annotations import Category
from ...errors import CheckpointError, ConfigError
from ...model.build import build_model
from ...presets import config_from_dict, load_config
from ...words import typed
from ..file import Weights, load_exactly, load_weights, names_note, unnamed
from ..untrusted import check_tensor, read_file
from . import coco
from .backbones import UNKNOWN
from .known import check_preset, choose_preset, read_facts, settings_in
from .state import Converted, by_part, convert_tensors, holds_last_step, moving_average_in

CONVERTER = 2  # version; increase it when results change, so that cached conversions are redone
ABOUT_EMA = "the file also has a moving average of the weights, under "
SIZE = (96, 128)  # height and width of the images for the self-check


class ConversionRequest(NamedTuple):
    """The user's options for a conversion."""

    source: str | None = None
    preset: str | None = None
    variant: str | None = None
    classes: int | None = None  # 80: drop official DINO's unused logits
    names: Sequence[str] = ()  # class names, if the file has none
    overrides: Sequence[str] = ()
    ema: bool = False  # use the moving average stored with the weights


class Conversion(NamedTuple):
    """A converted file, not yet written."""

    weights: Weights
    converted: Converted
    preset: str
    notes: list[str]


def convert_file(path: Path, request: ConversionRequest) -> Conversion:
    """Read a file of official DINO, detrex or mmdetection and convert it in memory.

    Raises:
        CheckpointError: the file cannot be used, or has another model.
        ConfigError: the file does not determine the preset; the message lists the choices.
    """
    content = by_part(read_file(path)[0])
    try:
        converted = convert_tensors(content, request.source, request.ema)
        settings, file_facts = settings_in(converted.tensors), read_facts(content)
        preset = request.preset or choose_preset(converted.source, settings, request.variant, file_facts)
        check_preset(preset, converted.source, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    config = load_config(preset, request.overrides)
    if file_facts.position and not (request.preset or request.variant or request.overrides):
        settings |= dict(zip(("position_temperature", "position_offset"), file_facts.position, strict=True))
    notes = _notes(content, settings, config)
    config = config_from_dict(with_settings(config, settings).model_dump())
    check_shapes(converted.tensors, config, path)
    notes += _average_notes(content, path, request.ema)
    tensors = {key: _as_float32(key, value, path) for key, value in converted.tensors.items()}
    if request.classes not in (None, config.model.num_classes):
        tensors, config = _fewer_classes(tensors, config, request.classes)
        notes.append(f"the {len(coco.UNUSED)} of official's {coco.NUM_IDS} logits that are not classes are dropped")
    categories = _categories(config.model.num_classes, request.names or file_facts.classes)
    notes += [note] if (note := names_note(categories)) else []
    facts = {"codebase": converted.source, "preset": preset, "epoch": file_facts.epoch} | fingerprint(path)
    weights = Weights(tensors, config, categories, {"converted_from": facts})
    self_check(weights, path)
    return Conversion(weights, converted, preset, notes)


def is_about_ema(note: str) -> bool:
    """Whether a conversion's note is about an unused moving average."""
    return note.startswith(ABOUT_EMA)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """A config with the `model` settings that were read from a file."""
    settings = {key: value for key, value in settings.items() if value != UNKNOWN}
    denoising = config.model.denoising.model_copy(update=settings["denoising"])
    model = config.model.model_copy(update={**settings, "denoising": denoising})
    return config.model_copy(update={"model": model})


def check_shapes(tensors: Mapping[str, Tensor], config: Config, where: Path) -> None:
    """Check that names and shapes match the model's, before anything is copied.

    Raises:
        CheckpointError: they differ.
    """
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in build_model(config.model).state_dict().items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    names = sorted(expected.keys() | given.keys())
    if differing := [key for key in names if expected.get(key) != given.get(key)]:
        key = differing[0]
        raise CheckpointError(
            f"{where} does not fit this model: {len(differing)} of {len(names)} tensors differ, such as "
            f"{key} ({given.get(key, 'missing')} in the file, {expected.get(key, 'none')} in the model)"
        )


@torch.no_grad()
def self_check(weights: Weights, where: Path) -> None:
    """Run the model once on two images of noise, one of them padded.

    Raises:
        CheckpointError: the output is not finite.
    """
    model = build_model(weights.config.model).eval()
    load_exactly(model, weights.tensors, where)
    height, width = SIZE
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[1, height * 3 // 4 :] = True
    images = images.masked_fill(padding[:, None], 0)
    for stage in model(images, padding).stages:
        if not (stage.logits.isfinite().all() and stage.boxes.isfinite().all()):
            raise CheckpointError(f"{where}: the model with these weights produces non-finite numbers")


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file."""
    with path.open("rb") as file:
        return {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def read_ours(path: Path) -> Weights:
    """Read and check our own weights, for conversion to another format.

    Raises:
        CheckpointError: the file is not in our format, or does not fit its config.
    """
    weights = load_weights(path)
    for key, value in weights.tensors.items():
        check_tensor(key, value, path)
    check_shapes(weights.tensors, weights.config, path)
    return weights


def _notes(content: Mapping[str, Any], settings: Mapping[str, Any], config: Config) -> list[str]:
    model = config.model
    notes = [
        f"model.{key} = {value}, as the file has it; the preset has {getattr(model, key)}"
        for key, value in settings.items()
        if key != "denoising" and value not in (UNKNOWN, getattr(model, key))
    ]
    own_note = moving_average_in(content)  # see `_average_notes`
    beside = [str(key) for key in content if key not in ("model", "state_dict", own_note)]
    if ("model" in content or "state_dict" in content) and beside:
        notes.append(f"not read, besides the model: {', '.join(beside[:8])}")
    return notes


def _average_notes(content: Mapping[str, Any], path: Path, ema: bool) -> list[str]:
    if not (key := moving_average_in(content)):
        return []
    if holds_last_step(content, key):
        return [
            f"mmengine saves the moving average as `state_dict`; it is used, and `{key}`, from the last step, is not"
        ]
    return [] if ema else [f"{ABOUT_EMA}{key}; `dino convert {typed(path)} --ema` uses it"]


def _as_float32(key: str, value: Tensor, where: Path) -> Tensor:
    check_tensor(key, value, where)
    if not value.is_floating_point():
        raise CheckpointError(f"{where}: {key} is {value.dtype}, not floating point")
    return value.detach().float()


def _fewer_classes(tensors: dict[str, Tensor], config: Config, classes: int | None) -> tuple[dict[str, Tensor], Config]:
    if classes != len(coco.CATEGORIES) or config.model.num_classes != coco.NUM_IDS:
        raise ConfigError(
            f"--classes {classes} is not possible for {config.model.num_classes} classes; only official DINO's "
            f"{coco.NUM_IDS} logits can become {len(coco.CATEGORIES)}"
        )
    return coco.without_unused(tensors), with_settings(config, {"num_classes": classes, "denoising": {}})


def _categories(num_classes: int, names: Sequence[str]) -> list[Category]:
    """COCO's categories if the names are COCO's or unknown, else categories with ids from 0."""
    if names and len(names) != num_classes:
        raise ConfigError(f"there are {len(names)} class names for {num_classes} classes")
    if num_classes == coco.NUM_IDS and not names:
        return coco.all_ids()
    if num_classes == len(coco.CATEGORIES) and (not names or list(names) == coco.NAMES):
        return coco.CATEGORIES
    return [Category(k, name) for k, name in enumerate(names)] if names else unnamed(num_classes)
