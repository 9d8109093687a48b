"""All that a run needs to go on, and how it gets into a checkpoint and out of it."""

import os
import pickle
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.annotations import Category
from ..errors import CheckpointError
from ..model.dino import DINO
from ..system.files import sync
from ..weights.file import load_exactly, load_weights, save_weights
from .ddp import Single
from .optim import Ema, NoEma
from .run.checkpoint_folder import manifest_of, publish
from .transfer import Transfer

WEIGHTS, AVERAGE, REST = "model.safetensors", "ema.safetensors", "state.pt"
BEGINNING: dict[str, Any] = {
    "step": 0,
    "best_ap": -1.0,
    "best_step": 0,  # 0: nothing was evaluated yet
    "worse": 0,  # evaluations since the best one
    "due_evaluation": 0,  # the epoch whose evaluation was begun and not finished
    "log_bytes": 0,  # place in metrics.jsonl
    "overflows": 0,  # steps in a row that the scaler of fp16 left out
    "left_out": [],  # steps that rollbacks leave out
    "failed_evaluations": 0,
}


class TrainState(NamedTuple):
    """The living objects of a run. `progress` holds the plain values, as `BEGINNING` names them."""

    model: DINO
    parallel: Single  # how the processes share the model
    ema: Ema | NoEma
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: dict[str, Any]
    transfer: Transfer | None = None  # what the weights were started from, if from others


def random_streams() -> dict[str, Any]:
    """The state of every global random generator of this process, as plain values."""
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()  # weights_only lets no array in
    streams = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy}
    if torch.cuda.is_available():
        streams["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        streams["mps"] = torch.mps.get_rng_state()
    return streams


def begin_streams(seed: int, step: int, rank: int) -> None:
    """New random streams, other ones for every process."""
    drawn = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn[0]) % 2**63)


def restore_streams(streams: dict[str, Any]) -> None:
    """Undo what was drawn since; streams of devices that are not here are left out."""
    torch.set_rng_state(streams["torch"])
    random.setstate(streams["python"])
    state = streams["numpy"]
    np.random.set_state(state | {"state": state["state"] | {"key": np.array(state["state"]["key"], np.uint32)}})
    if "cuda" in streams and torch.cuda.is_available():
        torch.cuda.set_rng_state(streams["cuda"])
    if "mps" in streams and torch.backends.mps.is_available():
        torch.mps.set_rng_state(streams["mps"])


class Large(NamedTuple):
    """What is large in a checkpoint."""

    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None  # None without one
    write_optimizer: Callable[[Path], None]


def collected(folder: Path, state: TrainState) -> Large | None:
    """What is large in the next checkpoint, of all processes, which must all ask; None if it is on the disk already.

    Raises:
        EnvironmentFault: a process cannot write its part.
    """
    parallel = state.parallel
    if parallel.group.on_main(lambda: bool(_large_files(_place(folder, state)))):
        return None
    average = parallel.weights(state.ema.model) if isinstance(state.ema, Ema) else None
    return Large(parallel.weights(state.model), average, parallel.optimizer_writer(state.optimizer, folder))


def _place(folder: Path, state: TrainState) -> Path:
    return folder / f"step-{state.progress['step']:08d}"


def save_checkpoint(
    folder: Path,
    state: TrainState,
    config: Config,
    categories: Sequence[Category],
    streams: list[dict[str, Any]],
    large: Large | None,
) -> Path:
    """Write `folder`/step-XXXXXXXX whole or not at all. Saved again after the same step, its large files stay.

    Args:
        streams: random streams of all processes, by rank.
        large: see `collected`.

    Raises:
        EnvironmentFault: there is no room, or it cannot be written; earlier checkpoints stay.
    """
    step = state.progress["step"]
    facts = {
        "epochs": config.train.epochs,
        "processes": len(streams),
        "data": state.progress.get("data", ""),
        "classes": [[c.id, c.name] for c in categories],
        "torch_version": str(torch.__version__),
    }
    before = _place(folder, state)
    linked = {} if large else _large_files(before)

    def write(temporary: Path) -> dict[str, Any]:
        for name in linked:
            _link(before / name, temporary / name)
        if large:
            _write_large_files(temporary, large, state.progress, config, categories)
        _save(temporary / REST, {
            "progress": state.progress,
            "scaler": state.scaler.state_dict(),
            "ema_updates": state.ema.updates,
            "streams": streams,
        })  # fmt: skip
        return linked

    return publish(folder, step, 10**6 + (0 if linked else size_in_bytes(state)), write, facts)


def _large_files(before: Path) -> dict[str, Any]:
    """Fingerprints of the weights that were saved after the same step; none if it was not."""
    try:
        files = manifest_of(before)["files"]
    except CheckpointError:
        return {}
    return {name: value for name, value in files.items() if name != REST}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
        sync(target)


def _write_large_files(
    folder: Path, large: Large, progress: dict[str, Any], config: Config, categories: Sequence[Category]
) -> None:
    facts = {"step": progress["step"], "origin": progress["origin"]}
    save_weights(folder / WEIGHTS, large.weights, config, categories, facts)
    if large.average is not None:
        save_weights(folder / AVERAGE, large.average, config, categories, facts)
    large.write_optimizer(folder)


def _save(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    sync(path)


def size_in_bytes(state: TrainState) -> int:
    """Of a checkpoint, nearly."""
    tensors = [*state.model.state_dict().values()]
    tensors += state.ema.model.state_dict().values() if isinstance(state.ema, Ema) else []
    tensors += [x for one in state.optimizer.state.values() for x in one.values() if isinstance(x, torch.Tensor)]
    return int(1.02 * sum(x.numel() * x.element_size() for x in tensors))


def load_checkpoint(path: Path, state: TrainState, rank: int, seed: int) -> None:
    """Fill the state from a checkpoint folder that was verified.

    A process that the run did not have before begins random streams of its own. Learning rates and weight decay are
    those of the present config, not of the checkpoint's.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    _fill(state, state.model, path / WEIGHTS)
    if isinstance(state.ema, Ema):
        if not (path / AVERAGE).is_file():
            raise CheckpointError(f"{path} has no moving average, but train.ema_decay asks for one; set it to 0")
        _fill(state, state.ema.model, path / AVERAGE)
    asked = [{key: group[key] for key in ("peak_lr", "weight_decay")} for group in state.optimizer.param_groups]
    try:
        rest = torch.load(path / REST, map_location="cpu", weights_only=True)
        state.parallel.read_optimizer(state.optimizer, path)
        state.scaler.load_state_dict(rest["scaler"])
        state.ema.updates = rest["ema_updates"]
        streams = rest["streams"]
        progress = BEGINNING | rest["progress"]
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} does not fit this run: {error}") from error
    for group, values in zip(state.optimizer.param_groups, asked, strict=True):
        group |= values
    state.progress.clear()
    state.progress.update(progress)
    if rank < len(streams):
        restore_streams(streams[rank])
    else:
        begin_streams(seed, progress["step"], rank)


def _fill(state: TrainState, model: DINO, file: Path) -> None:
    load_exactly(model, state.parallel.parts(model, load_weights(file).tensors), file.parent)
