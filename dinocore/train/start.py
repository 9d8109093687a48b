"""Where a run starts from: fresh weights, a trained backbone, other weights, or a checkpoint of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoint import BUNDLED, carry_over, load_weights
from ..config import Config
from ..data.coco import Category
from ..device import pick_precision
from ..errors import CheckpointError, ConfigError
from ..model.build import build_model
from ..model.dino import DINO
from ..pretrained import load_backbone_weights
from .optim import Ema, NoEma, build_optimizer
from .state import TrainState, load_checkpoint


def fresh_state(config: Config, categories: Sequence[Category], device: torch.device) -> TrainState:
    """The state before the first step; the model's random weights come from the seed.

    Raises:
        CheckpointError, EnvironmentFault: the weights that the config asks for cannot be had.
    """
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    origin = load_starting_weights(model, config, categories)
    return _state_around(model.to(device), config, device, origin)


def resumed_state(checkpoint: Path, config: Config, device: torch.device) -> TrainState:
    """The state of a checkpoint.

    Raises:
        CheckpointError: it is damaged or belongs to another config.
    """
    state = _state_around(build_model(config.model).to(device), config, device, "")
    state = load_checkpoint(checkpoint, state)
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
    return f"{path.name}, whose classes {', '.join(known) or '(none)'} are carried over"


def _state_around(model: DINO, config: Config, device: torch.device, origin: str) -> TrainState:
    scaled = pick_precision(config.train.amp, device) is torch.float16
    return TrainState(
        model=model,
        ema=Ema(model, config.train.ema_decay) if config.train.ema_decay else NoEma(model),
        optimizer=build_optimizer(model, config.train),
        scaler=torch.amp.GradScaler(device.type, enabled=scaled),
        progress={"step": 0, "best_ap": -1.0, "best_step": 0, "due_evaluation": 0, "origin": origin},
    )
