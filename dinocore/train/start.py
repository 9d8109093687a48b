"""Where a run starts from: fresh weights, a trained backbone, other weights, or a checkpoint of its own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import BUNDLED, Weights, carry_over, load_weights
from ..config import Config, ModelConfig
from ..convert.info import preset_of
from ..data.coco import Category
from ..data.dataset import DataSet
from ..device import pick_precision
from ..distributed import Alone
from ..errors import CheckpointError, ConfigError, DataError
from ..model.build import build_model
from ..model.dino import DINO
from ..presets import list_presets, load_config
from ..pretrained import load_backbone_weights
from .job import fingerprint
from .optim import Ema, NoEma, build_optimizer
from .state import BEGINNING, TrainState, begin_streams, load_checkpoint

SAME = (
    "backbone", "feature_strides", "num_levels", "neck_bias", "hidden_dim", "num_heads", "num_points", "ffn_dim",
    "num_encoder_layers", "num_decoder_layers", "num_queries", "position_temperature", "position_offset", "first_stage",
    "queries", "heads",
)  # fmt: skip  # settings in which weights and the model that starts from them must agree


def check_start(config: Config) -> None:
    """Refuse `train.weights` of another model, before any data is read.

    Raises:
        CheckpointError: naming the settings that differ, and the preset or the settings to use.
    """
    path = Path(config.train.weights)
    if config.train.weights in ("", "bundled"):
        return
    weights = load_weights(path)
    differing = _differences(weights.config.model, config.model)
    if differing:
        shown = ", ".join(f"model.{key} = {here} ({there} was asked for)" for key, (here, there) in differing.items())
        raise CheckpointError(f"{path} holds another model: {shown}; use {_way_out(weights, differing)}")


def _differences(here: ModelConfig, there: ModelConfig) -> dict[str, tuple]:
    pairs = {key: (getattr(here, key), getattr(there, key)) for key in SAME}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _way_out(weights: Weights, differing: Mapping[str, tuple]) -> str:
    """The preset of the weights, if it builds their model; else the settings one by one."""
    names = [(weights.facts.get("converted_from") or {}).get("preset"), preset_of(weights.config)]
    for name in filter(None, names):
        if name in list_presets() and not _differences(weights.config.model, load_config(name).model):
            return f"--preset {name}"
    values = {key: list(here) if isinstance(here, tuple) else here for key, (here, _) in differing.items()}
    return " ".join(f"--set model.{key}={json.dumps(value)}" for key, value in values.items())


def fresh_state(
    config: Config, categories: Sequence[Category], device: torch.device, group: Alone | None = None
) -> TrainState:
    """The state before the first step; the model's random weights come from the seed.

    Raises:
        CheckpointError, EnvironmentFault: the weights that the config asks for cannot be had.
    """
    group = group or Alone()
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    origin = group.main_first(lambda: load_starting_weights(model, config, categories))  # one of them downloads
    freeze(model, config.train.freeze)
    if not group.main:  # dropout of each process for itself
        begin_streams(config.train.seed, 0, group.rank)
    return _state_around(model.to(device), config, device, origin, group)


def resumed_state(checkpoint: Path, config: Config, device: torch.device, group: Alone | None = None) -> TrainState:
    """The state of a checkpoint that was verified.

    Raises:
        CheckpointError: it belongs to another config.
    """
    group = group or Alone()
    model = build_model(config.model).to(device)
    freeze(model, config.train.freeze)
    state = _state_around(model, config, device, "", group)
    load_checkpoint(checkpoint, state, group.rank, config.train.seed)
    state.progress["origin"] = f"continued from {checkpoint}"
    return state


def load_starting_weights(model: DINO, config: Config, categories: Sequence[Category]) -> str:
    """Fill a new model as `train.weights` or else `model.backbone_weights` says; returns that in words."""
    source = config.train.weights
    if not source:
        load_backbone_weights(model.backbone, config.model)
        return f"random, backbone: {config.model.backbone_weights}"
    path = BUNDLED if source == "bundled" else Path(source)
    try:
        origins = carry_over(model, load_weights(path), categories, path)
    except CheckpointError as error:
        if source != "bundled":
            raise
        raise ConfigError(
            f"the weights that come with the package don't fit the changed model ({error}); start without them: "
            "--set model.backbone_weights=none, or a FILE with trained weights of the backbone"
        ) from error
    known = [name for name, origin in origins.items() if origin != "new"]
    new = [name for name, origin in origins.items() if origin == "new"]
    said = f"{path.name}, whose classes {', '.join(known) or '(none)'} are carried over"
    return f"{said}; new: {', '.join(new)}" if new else said


def freeze(model: DINO, parts: Sequence[str]) -> None:
    """Keep parts of the model, such as `backbone`, as they are in training."""
    for part in parts:
        model.get_submodule(part).requires_grad_(False)


def _state_around(model: DINO, config: Config, device: torch.device, origin: str, group: Alone) -> TrainState:
    scaled = pick_precision(config.train.amp, device) is torch.float16
    return TrainState(
        model=model,
        parallel=group.parallel(model),
        ema=Ema(model, config.train.ema_decay) if config.train.ema_decay else NoEma(model),
        optimizer=build_optimizer(model, config.train),
        scaler=torch.amp.GradScaler(device.type, enabled=scaled),
        progress=BEGINNING | {"left_out": [], "origin": origin},
    )


def check_same_data(manifest: Mapping[str, Any], data: DataSet, allow_change: bool) -> None:
    """Refuse to continue a run on other data than it began with.

    Raises:
        CheckpointError: the classes are others.
        DataError: the annotations have changed.
    """
    classes = [[c.id, c.name] for c in data.train.categories]
    if manifest.get("classes", classes) != classes:
        names = ", ".join(str(name) for _, name in manifest["classes"])
        raise CheckpointError(
            f"the run knows the classes {names}, and {data.train.file} has others; start a new run from its weights: "
            "--weights RUN/best.safetensors"
        )
    if manifest.get("data", "") not in ("", fingerprint(data)) and not allow_change:
        raise DataError(
            f"the annotations {data.train.file} or {data.val.file} have changed since the checkpoint was written; "
            "put the old ones back, or go on with the new ones: --allow-data-change"
        )
