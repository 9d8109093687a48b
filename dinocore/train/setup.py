"""Where a run starts from: new weights, a pretrained backbone, other weights, or its own checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import Config, ModelConfig, fixed_on_resume, fixed_settings
from ..data.annotations import Category
from ..data.dataset import DataSet
from ..errors import CheckpointError, ConfigError, DataError
from ..model.build import build_model
from ..model.dino import DINO
from ..presets import list_presets, load_config
from ..settings import flat_settings
from ..system.device import pick_precision
from ..system.processes import SingleProcess
from ..weights.backbone import load_backbone_weights
from ..weights.convert.info import preset_of
from ..weights.fetch.cache import cache_folder
from ..weights.fetch.locate import locate
from ..weights.fetch.watch import UNWATCHED, Watch
from ..weights.file import Weights, load_weights
from ..words import typed
from .context import fingerprint
from .ddp import wrap
from .optim import Ema, NoEma, build_optimizer
from .state import Progress, TrainState, load_checkpoint, seed_rank
from .transfer import Transfer, carry_over

# settings in which weights and the model that starts from them must agree
MUST_AGREE = (
    "backbone", "feature_strides", "num_levels", "neck_bias", "hidden_dim", "num_heads", "num_points", "ffn_dim",
    "num_encoder_layers", "num_decoder_layers", "position_temperature", "position_offset", "box_eps",
    "first_stage", "queries", "heads", "pixel_mean", "pixel_std",
)  # fmt: skip


def check_start(config: Config, watch: Watch = UNWATCHED) -> None:
    """Check, before any data is read, that `train.weights` are those of the same model; downloads them if necessary.

    Raises:
        CheckpointError: names the settings that differ, and the preset or settings to use.
        EnvironmentFault: the weights cannot be downloaded.
    """
    if not config.train.weights:
        return
    path = locate(config.train.weights, watch)
    weights = load_weights(path)
    differing = _differences(weights.config.model, config.model)
    if not differing:
        return
    shown = ", ".join(f"model.{key} = {here} (requested: {there})" for key, (here, there) in differing.items())
    if config.train.weights == "bundled":  # possibly set by the preset, not the user
        raise ConfigError(
            f"the bundled weights don't fit the changed model: {shown}; start without them:  "
            "--set model.backbone_weights=none, or a FILE with trained backbone weights"
        )
    raise CheckpointError(f"{path} contains a different model: {shown}; use {_matching_options(weights, differing)}")


def settings_of(name: str, watch: Watch = UNWATCHED) -> Config:
    """The config that weights were trained with, without settings that apply to that run only.

    Raises:
        CheckpointError, EnvironmentFault: as for `locate`.
    """
    config = load_weights(locate(name, watch)).config
    return config.replace("train.weights", "").replace("train.freeze", ()).replace("data.path", "")


def _differences(here: ModelConfig, there: ModelConfig) -> dict[str, tuple]:
    pairs = {key: (getattr(here, key), getattr(there, key)) for key in MUST_AGREE}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _matching_options(weights: Weights, differing: Mapping[str, tuple]) -> str:
    """The preset of the weights, if it builds their model; otherwise the single settings."""
    names = [(weights.facts.get("converted_from") or {}).get("preset"), preset_of(weights.config)]
    for name in filter(None, names):
        if name in list_presets() and not _differences(weights.config.model, load_config(name).model):
            return f"--preset {name}"
    values = {key: list(here) if isinstance(here, tuple) else here for key, (here, _) in differing.items()}
    return " ".join(f"--set model.{key}={json.dumps(value)}" for key, value in values.items())


def fresh_state(
    config: Config, categories: Sequence[Category], device: torch.device, group: SingleProcess | None = None
) -> TrainState:
    """The state before the first step; random weights come from the seed.

    Raises:
        CheckpointError, EnvironmentFault: the configured weights are not available.
    """
    group = group or SingleProcess()
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    # rank 0 first, so that only one rank downloads
    origin, transfer = group.main_first(lambda: load_starting_weights(model, config, categories))
    freeze(model, config.train.freeze)
    if not group.main:  # each rank has different dropout
        seed_rank(config.train.seed, 0, group.rank)
    state = _state_around(model.to(device), config, device, origin, group)
    state.transfer = transfer
    return state


def resumed_state(
    checkpoint: Path, config: Config, device: torch.device, group: SingleProcess | None = None
) -> TrainState:
    """Restore the state of a verified checkpoint.

    Raises:
        CheckpointError: it belongs to another config.
    """
    group = group or SingleProcess()
    model = build_model(config.model).to(device)
    freeze(model, config.train.freeze)
    state = _state_around(model, config, device, "", group)
    load_checkpoint(checkpoint, state, group.rank, config.train.seed)
    state.progress.origin = f"continued from {checkpoint}"
    return state


def load_starting_weights(model: DINO, config: Config, categories: Sequence[Category]) -> tuple[str, Transfer | None]:
    """Initialise a new model from `train.weights`, or else `model.backbone_weights`.

    Returns:
        a description of where its weights come from, and what was carried over from `train.weights`.
    """
    if not config.train.weights:
        return f"random, backbone: {load_backbone_weights(model.backbone, config.model)}", None
    path = locate(config.train.weights)
    transfer = carry_over(model, load_weights(path), categories, path)
    if cache_folder() in path.parents:  # the name the user typed is more helpful than the one in the cache
        transfer = transfer._replace(file=config.train.weights)
    return transfer.summary(), transfer


def freeze(model: DINO, parts: Sequence[str]) -> None:
    """Freeze parts of the model, such as `backbone`.

    Raises:
        ConfigError: nothing is left to train.
    """
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train.freeze = {list(parts)} leaves nothing to train; freeze fewer parts")


def _state_around(model: DINO, config: Config, device: torch.device, origin: str, group: SingleProcess) -> TrainState:
    scaled = pick_precision(config.train.amp, device) is torch.float16
    ema = Ema(model, config.train.ema_decay) if config.train.ema_decay else NoEma(model)
    return TrainState(
        model=model,
        wrapped=wrap(model, group),
        ema=ema,
        optimizer=build_optimizer(model, config.train),
        scaler=torch.amp.GradScaler(device.type, enabled=scaled),
        progress=Progress(origin=origin),
    )


def check_same_run(run: Path, manifest: Mapping[str, Any], config: Config, data: DataSet, allow_change: bool) -> None:
    """Refuse to continue from a checkpoint with different settings or data.

    Raises:
        CheckpointError: a setting that cannot change on resume, or the classes, differ.
        DataError: the annotations have changed.
    """
    old, new = dict(flat_settings(manifest.get("settings", {}))), dict(flat_settings(fixed_settings(config)))
    differing = [f"{key} = {new[key]!r} (it was {old[key]!r})" for key in old.keys() & new if old[key] != new[key]]
    if differing:
        shown = ", ".join(sorted(differing))
        raise CheckpointError(f"the run's config.toml does not match its checkpoint: {shown}; restore the original")
    check_same_data(run, manifest, data, allow_change)


def check_same_data(run: Path, manifest: Mapping[str, Any], data: DataSet, allow_change: bool) -> None:
    """Refuse to continue a run on different data than it started with.

    Raises:
        CheckpointError: the classes differ.
        DataError: the annotations have changed.
    """
    classes = [[c.id, c.name] for c in data.train.categories]
    if manifest.get("classes", classes) != classes:
        names = ", ".join(str(name) for _, name in manifest["classes"])
        raise CheckpointError(
            f"the run has the classes {names}, but {data.train.file} has others; start a new run from its weights: "
            f"--weights {typed(run)}"
        )
    if manifest.get("data", "") not in ("", fingerprint(data)) and not allow_change:
        raise DataError(
            f"the annotations {data.train.file} or {data.val.file} have changed since the checkpoint was written; "
            "restore the old ones, or continue with the new ones: --allow-data-change"
        )


def changed_settings(run: Path, before: Config, now: Config) -> list[str]:
    """The settings that a resumed run changes, as messages.

    Raises:
        ConfigError: one of them cannot change on resume; `config.py` marks these.
    """
    old, new = dict(flat_settings(before.model_dump())), dict(flat_settings(now.model_dump()))
    differing = [key for key in new if old[key] != new[key]]
    fixed = list(fixed_on_resume())
    refused = [key for key in differing if any(f"{key}.".startswith(f"{name}.") for name in fixed)]
    if refused:
        shown = ", ".join(f"{key} = {new[key]!r} (it is {old[key]!r})" for key in refused)
        raise ConfigError(
            f"a resumed run cannot change {shown}; all settings but those of {', '.join(fixed)} can be changed. "
            f"Start a new run from its weights: --weights {typed(run)}"
        )
    return [f"{key} from {old[key]!r} to {new[key]!r}" for key in differing]
