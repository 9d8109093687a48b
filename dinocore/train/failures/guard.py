"""Run a step so that an error on one rank becomes an error on all, and no rank hangs waiting for another."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ...data.batch import Batch
from ...errors import DinoError, DivergedError, EnvironmentFault, OutOfMemory
from ...system.processes import SingleProcess
from ..batches import StepBatches
from ..context import RunContext
from ..ddp import DDP
from ..run.checkpoint_folder import checkpoint_status
from ..state import TrainState
from ..step import NonFinite, train_step
from .classify import check_is_deterministic, is_out_of_memory, out_of_memory_message
from .non_finite import diverged

MAX_OVERFLOWS = 20  # consecutive overflows in fp16 that count as divergence


def guarded_step(state: TrainState, batches: StepBatches, context: RunContext) -> dict[str, float]:
    """Run `train_step`. If it fails on one rank, all ranks raise, with weights and optimizer as before the step.

    Raises:
        DivergedError: a loss or a gradient is not finite.
        OutOfMemory: a forward or backward pass needs more memory than there is.
        EnvironmentFault: memory ran out during the optimizer update, or an operation is not deterministic.
    """
    config, group, ddp = context.config, context.group, state.wrapped
    failure: DinoError | NonFinite | None = None
    numbers: dict[str, float] = {}
    if isinstance(ddp, DDP):
        ddp.reduced.clear()
    with update_started(state) as updating:
        try:
            numbers = train_step(state, batches.micro_batches, batches.num_boxes, config, group, batches.num_denoised)
        except NonFinite as error:  # raised on every rank
            failure = NonFinite(error.numbers)
        except (RuntimeError, MemoryError, DivergedError) as error:
            failure = translate_error(error, batches.micro_batches, group)
            if updating:
                kept = checkpoint_status(context.folder / "checkpoints")
                raise EnvironmentFault(f"{failure}; {kept}") from error
            complete_collectives(ddp, group)
    if failure is None:
        if isinstance(ddp, DDP):
            ddp.rebuild_buckets()
        failure = too_many_overflows(state, numbers)
    if failure is not None:
        raise agree_on_error(failure, state, batches, context)
    return numbers


@contextmanager
def update_started(state: TrainState) -> Iterator[list[bool]]:
    """Yields a list that becomes non-empty once the optimizer has started to change weights."""
    started: list[bool] = []
    hook = state.optimizer.register_step_pre_hook(lambda *_: started.append(True))
    try:
        yield started
    finally:
        hook.remove()


def translate_error(error: Exception, batches: list[Batch], group: SingleProcess) -> DinoError:
    """The error to show to the user for an error in a forward or backward pass; frees the memory held by the pass.

    Raises:
        Exception: the error itself, if it is a bug.
    """
    if isinstance(error, DivergedError):
        return error.with_traceback(None)
    check_is_deterministic(error)
    if not is_out_of_memory(error):
        raise error
    traceback.clear_frames(error.__traceback__)
    return OutOfMemory(out_of_memory_message(batches, group))


def complete_collectives(ddp: object, group: SingleProcess) -> None:
    """Take part in the collectives of `train_step` that the other ranks still wait for: gradients and finite check."""
    if isinstance(ddp, DDP):
        ddp.reduce_missing()
    group.all_true(False, False)


def too_many_overflows(state: TrainState, numbers: dict[str, float]) -> NonFinite | None:
    """Count consecutive steps whose gradients overflowed in fp16; an error if there are too many."""
    progress = state.progress
    overflowed = not -float("inf") < numbers["grad_norm"] < float("inf")
    progress.overflows = progress.overflows + 1 if overflowed else 0
    return NonFinite(numbers) if progress.overflows >= MAX_OVERFLOWS else None


def agree_on_error(
    failure: DinoError | NonFinite, state: TrainState, batches: StepBatches, context: RunContext
) -> DinoError:
    """The error that all ranks raise."""
    failures = context.group.gather(failure)
    for other in failures:
        if isinstance(other, OutOfMemory):
            return other
    unmatched = any(isinstance(other, DivergedError) for other in failures)
    numbers = (
        {} if unmatched else _sum_over_ranks([other.numbers for other in failures if isinstance(other, NonFinite)])
    )
    return diverged(state, batches, context, numbers)


def _sum_over_ranks(per_rank: list[dict[str, float]]) -> dict[str, float]:
    """Sum the loss terms over all ranks; the gradient norm is the same on each."""
    total = {key: sum(numbers[key] for numbers in per_rank) for key in per_rank[0]}
    return total | {"grad_norm": per_rank[0]["grad_norm"]}
