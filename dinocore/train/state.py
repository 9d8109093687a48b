"""All that a run needs to go on: kept in one folder per checkpoint, published by a rename."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import __version__
from ..checkpoint import SCHEMA, load_exactly, load_weights, save_weights
from ..config import Config
from ..data.coco import Category
from ..errors import CheckpointError, EnvironmentFault
from ..files import sync
from ..model.dino import DINO
from .optim import Ema, NoEma
from .transfer import Transfer


class TrainState(NamedTuple):
    """The living objects of a run. `progress` holds the plain numbers: step, best_ap, best_step."""

    model: DINO
    ema: Ema | NoEma
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: dict[str, Any]
    transfer: Transfer | None = None  # what the weights were started from, if from others


def save_checkpoint(folder: Path, state: TrainState, config: Config, categories: list[Category]) -> Path:
    """Write `folder`/step-XXXXXXXX whole or not at all.

    Raises:
        EnvironmentFault: it cannot be written; earlier checkpoints stay.
    """
    target = folder / f"step-{state.progress['step']:08d}"
    temporary = folder / f".tmp-{target.name}-{os.getpid()}"
    replaced = folder / f".tmp-old-{target.name}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_files(temporary, state, config, categories)
        sync(temporary)
        if target.exists():  # the same step, saved again
            os.rename(target, replaced)
        os.rename(temporary, target)
        sync(folder)
    except (OSError, RuntimeError) as error:
        raise EnvironmentFault(f"the checkpoint {target} cannot be written: {error}; earlier ones are whole") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return target


def _write_files(folder: Path, state: TrainState, config: Config, categories: list[Category]) -> None:
    facts = dict(state.progress)
    save_weights(folder / "model.safetensors", state.model.state_dict(), config, categories, facts)
    if isinstance(state.ema, Ema):
        save_weights(folder / "ema.safetensors", state.ema.model.state_dict(), config, categories, facts)
    rest = {
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ema_updates": state.ema.updates,
        "progress": state.progress,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(rest, folder / "state.pt")
    sync(folder / "state.pt")
    files = {file.name: _fingerprint(file) for file in sorted(folder.iterdir())}
    manifest = {"schema": SCHEMA, "dino_version": __version__, "step": state.progress["step"], "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    sync(folder / "manifest.json")


def load_checkpoint(path: Path, state: TrainState) -> TrainState:
    """Fill the state from a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
    """
    verify_checkpoint(path)
    load_exactly(state.model, load_weights(path / "model.safetensors").tensors, path)
    if isinstance(state.ema, Ema):
        if not (path / "ema.safetensors").is_file():
            raise CheckpointError(f"{path} has no moving average, but train.ema_decay asks for one; set it to 0")
        load_exactly(state.ema.model, load_weights(path / "ema.safetensors").tensors, path)
    rest = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    state.optimizer.load_state_dict(rest["optimizer"])
    state.scaler.load_state_dict(rest["scaler"])
    state.ema.updates = rest["ema_updates"]
    torch.set_rng_state(rest["random"])
    if torch.cuda.is_available() and len(rest["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(rest["random_cuda"])
    return state._replace(progress=rest["progress"])


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["schema"] > SCHEMA:
            raise CheckpointError(f"{path} was made by dino {manifest['dino_version']}, this is {__version__}")
        damaged = [name for name, value in manifest["files"].items() if _fingerprint(path / name) != value]
    except (OSError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {', '.join(damaged)} differ from what was written")


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "manifest.json").is_file())


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`, and what a killed run left half-written."""
    for path in [*list_checkpoints(folder)[:-keep], *folder.glob(".tmp-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _fingerprint(file: Path) -> list[Any]:
    """Size and sha256."""
    with file.open("rb") as content:
        return [file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()]
