"""The state that a run needs to continue, and how checkpoints save and restore it."""

import os
import pickle
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..config import Config, fixed_settings
from ..data.annotations import Category
from ..errors import CheckpointError
from ..model.dino import DINO
from ..system.files import sync
from ..weights.file import load_exactly, load_weights, save_weights
from ..words import typed
from .optim import Ema, NoEma
from .run.checkpoint_folder import manifest_of, publish
from .transfer import Transfer

WEIGHTS, AVERAGE, OPTIMIZER, STATE_FILE = "model.safetensors", "ema.safetensors", "optimizer.pt", "state.pt"
SHARDED_OPTIMIZER = ".metadata"  # of checkpoints that FSDP2 wrote before 0.2.0
OLD_NAMES = {"worse": "evals_since_best", "left_out": "skipped_steps"}  # in state.pt before 0.2.0


@dataclass
class Progress:
    """The progress of a run, stored in every checkpoint."""

    step: int = 0
    best_ap: float = -1.0
    best_step: int = 0  # 0: not evaluated yet
    evals_since_best: int = 0
    due_evaluation: int = 0  # the epoch whose evaluation was started but not finished
    log_bytes: int = 0  # position in metrics.jsonl
    overflows: int = 0  # consecutive steps skipped by the fp16 scaler
    skipped_steps: list[int] = field(default_factory=list)  # by rollbacks
    failed_evaluations: int = 0
    origin: str = ""  # a description of where the weights come from
    data: str = ""  # fingerprint of the annotations

    def restore(self, values: dict[str, Any]) -> None:
        """Restore progress from a checkpoint of this or an older version; missing values get defaults."""
        values = {OLD_NAMES.get(key, key): value for key, value in values.items()}
        for name, value in vars(Progress()).items():
            setattr(self, name, values.get(name, value))


@dataclass
class TrainState:
    """The live objects of a run."""

    model: DINO
    wrapped: nn.Module  # the model as training calls it: wrapped in DDP if there are several ranks
    ema: Ema | NoEma
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    transfer: Transfer | None = None  # what was carried over from other weights, if any


def rng_state() -> dict[str, Any]:
    """The state of every global random generator in this process, as plain values."""
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()  # weights_only does not allow arrays
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Seed new random numbers, different on every rank."""
    drawn = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn[0]) % 2**63)


def restore_rng_state(states: dict[str, Any]) -> None:
    """Restore random states; those of missing devices are skipped."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    numpy = states["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": np.array(numpy["state"]["key"], np.uint32)}})
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def save_checkpoint(
    folder: Path,
    state: TrainState,
    config: Config,
    categories: Sequence[Category],
    rng_states: list[dict[str, Any]],
) -> Path:
    """Write `folder`/step-XXXXXXXX atomically. Saving again after the same step hard-links its large files.

    Args:
        rng_states: of all ranks, in order.

    Raises:
        EnvironmentFault: the disk is full or not writable; earlier checkpoints are kept.
    """
    progress = state.progress
    facts = {
        "epochs": config.train.epochs,
        "processes": len(rng_states),
        "data": progress.data,
        "settings": fixed_settings(config),
        "classes": [[c.id, c.name] for c in categories],
        "torch_version": str(torch.__version__),
    }
    before = folder / f"step-{progress.step:08d}"
    linked = _large_files(before)

    def write(temporary: Path) -> dict[str, Any]:
        for name in linked:
            _link(before / name, temporary / name)
        if not linked:
            _write_large_files(temporary, state, config, categories)
        _save(temporary / STATE_FILE, {
            "progress": asdict(progress),
            "scaler": state.scaler.state_dict(),
            "ema_updates": state.ema.updates,
            "streams": rng_states,
        })  # fmt: skip
        return linked

    return publish(folder, progress.step, 10**6 + (0 if linked else size_in_bytes(state)), write, facts)


def _large_files(before: Path) -> dict[str, Any]:
    """Fingerprints of weights already saved after the same step, if any."""
    try:
        files = manifest_of(before)["files"]
    except CheckpointError:
        return {}
    return {name: value for name, value in files.items() if name != STATE_FILE}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
        sync(target)


def _write_large_files(folder: Path, state: TrainState, config: Config, categories: Sequence[Category]) -> None:
    facts = {"step": state.progress.step, "origin": state.progress.origin}
    save_weights(folder / WEIGHTS, state.model.state_dict(), config, categories, facts)
    if isinstance(state.ema, Ema):
        save_weights(folder / AVERAGE, state.ema.model.state_dict(), config, categories, facts)
    _save(folder / OPTIMIZER, state.optimizer.state_dict())


def _save(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    sync(path)


def size_in_bytes(state: TrainState) -> int:
    """The approximate size of a checkpoint."""
    tensors = [*state.model.state_dict().values()]
    tensors += state.ema.model.state_dict().values() if isinstance(state.ema, Ema) else []
    tensors += [x for one in state.optimizer.state.values() for x in one.values() if isinstance(x, torch.Tensor)]
    return int(1.02 * sum(x.numel() * x.element_size() for x in tensors))


def expected_size(state: TrainState) -> int:
    """The approximate size of a checkpoint after the first step, when the optimizer has a state."""
    if state.optimizer.state:
        return size_in_bytes(state)
    trained = sum(x.numel() * x.element_size() for x in state.model.parameters() if x.requires_grad)
    return size_in_bytes(state) + 2 * trained  # AdamW's two averages


def load_checkpoint(path: Path, state: TrainState, rank: int, seed: int) -> None:
    """Restore the state from a verified checkpoint folder.

    A new rank gets its own random numbers. Learning rates and weight decay are those
    of the current config, not the checkpoint's.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    if (path / SHARDED_OPTIMIZER).is_file():
        raise CheckpointError(
            f"{path} was written with train.sharding = fsdp2, which dino no longer has; start a new run from its "
            f"weights: --weights {typed(path / WEIGHTS)}"
        )
    load_exactly(state.model, load_weights(path / WEIGHTS).tensors, path)
    if isinstance(state.ema, Ema):
        if not (path / AVERAGE).is_file():
            raise CheckpointError(f"{path} has no moving average, but train.ema_decay needs one; set it to 0")
        load_exactly(state.ema.model, load_weights(path / AVERAGE).tensors, path)
    configured = [{key: group[key] for key in ("peak_lr", "weight_decay")} for group in state.optimizer.param_groups]
    try:
        content = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))
        state.scaler.load_state_dict(content["scaler"])
        state.ema.updates = content["ema_updates"]
        rng_states = content["streams"]
        state.progress.restore(content["progress"])
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} does not fit this run: {error}") from error
    for group, values in zip(state.optimizer.param_groups, configured, strict=True):
        group |= values
    if rank < len(rng_states):
        restore_rng_state(rng_states[rank])
    else:
        seed_rank(seed, state.progress.step, rank)
