"""Continue a run after a failed step: from a checkpoint, or with smaller micro-batches."""

import gc
from collections.abc import Iterator
from pathlib import Path

import torch

from ...errors import DivergedError, OutOfMemory
from ...system.memory import release_memory
from ..batches import micro_batch_size
from ..checkpointer import Checkpointer
from ..context import RunContext
from ..ddp import wrap
from ..events import Saved, Warned
from ..run.folder import NEWEST, branch_off, find_checkpoint
from ..run.metrics_log import MetricsLogger, NoLogger
from ..state import TrainState, load_checkpoint


def roll_back(context: RunContext, state: TrainState, logger: MetricsLogger | NoLogger, error: DivergedError) -> Warned:
    """Load the newest checkpoint; the step that diverged will be skipped.

    Raises:
        DivergedError: rolling back is disabled, impossible, or was done too often.
    """
    config, group, progress = context.config.train, context.group, state.progress
    skipped = [*progress.skipped_steps, progress.step + 1]
    if config.on_nan == "stop" or progress.due_evaluation:
        raise group.on_all_ranks(error)
    path = group.on_main(lambda: _newest(context.folder))
    if path is None or len(skipped) > config.max_rollbacks:
        why = "no checkpoint to roll back to" if path is None else f"rolled back {len(skipped) - 1} times"
        raise group.on_all_ranks(DivergedError(f"{why}, and now {error}"))
    load_checkpoint(path, state, group.rank, config.seed)
    progress.skipped_steps = skipped
    logger.rewind(progress)
    return Warned(f"{error}; rolled back to {path.name}; step {skipped[-1]} will be skipped")


def _newest(folder: Path) -> Path | None:
    path, _ = find_checkpoint(folder, NEWEST)
    branch_off(folder, path)
    return path


def handle_out_of_memory(
    context: RunContext, checkpointer: Checkpointer, error: OutOfMemory
) -> Iterator[Saved | Warned]:
    """Save a checkpoint and stop, or announce that the step will be repeated with smaller micro-batches.

    Raises:
        OutOfMemory: halving is disabled, or a micro-batch already has a single image.
    """
    size = micro_batch_size(context.config.train, context.device, context.group.size)
    if context.config.train.on_out_of_memory == "stop" or size == 1:
        yield from checkpointer.save()
        raise context.group.on_all_ranks(error)
    step = checkpointer.state.progress.step + 1
    yield Warned(f"{error.what}. Repeating step {step} with train.micro_batch_size = {size // 2}, from now on")


def halve_micro_batch(context: RunContext) -> RunContext:
    """The context with micro-batches of half the size; the batch stays the same."""
    size = micro_batch_size(context.config.train, context.device, context.group.size)
    return context._replace(config=context.config.replace("train.micro_batch_size", size // 2))


def reset_after_failure(context: RunContext, state: TrainState) -> None:
    """Clear what a failed step left behind: gradients, scaler state, and hooks on the parameters."""
    scaler = torch.amp.GradScaler(context.device.type, enabled=state.scaler.is_enabled())
    scaler.load_state_dict(state.scaler.state_dict())
    state.optimizer.zero_grad(set_to_none=True)
    del state.wrapped
    gc.collect()  # the hooks that a failed backward pass left on the parameters go with the old wrapper
    release_memory(context.device)
    state.scaler, state.wrapped = scaler, wrap(state.model, context.group)
