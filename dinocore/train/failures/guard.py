"""Guards around a step: an error on one rank becomes an error on all, where none waits for another."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ...data.batch import Batch
from ...errors import DinoError, DivergedError, EnvironmentFault, OutOfMemory
from ...system.processes import SingleProcess
from ..batches import StepBatches
from ..context import RunContext
from ..ddp import DDP
from ..run.checkpoint_folder import what_is_kept
from ..state import TrainState
from ..step import NonFinite, train_step
from .classify import check_is_deterministic, is_out_of_memory, out_of_memory_message
from .non_finite import diverged

MAX_OVERFLOWS = 20  # in a row, before fp16 is given up


def guarded_step(state: TrainState, batches: StepBatches, context: RunContext) -> dict[str, float]:
    """Do `train_step`. If it fails on one rank, all ranks raise, with weights and optimizer as before the step.

    Raises:
        DivergedError: a loss or a gradient is not finite.
        OutOfMemory: a forward or backward pass needs more memory than there is.
        EnvironmentFault: memory ran out while weights were changed, or an operation is not deterministic.
    """
    config, group, ddp = context.config, context.group, state.wrapped
    failure: DinoError | NonFinite | None = None
    numbers: dict[str, float] = {}
    if isinstance(ddp, DDP):
        ddp.reduced.clear()
    with update_started(state) as updating:
        try:
            numbers = train_step(state, batches.micro_batches, batches.num_boxes, config, group, batches.num_denoised)
        except NonFinite as error:  # which every rank raises
            failure = NonFinite(error.numbers)
        except (RuntimeError, MemoryError, DivergedError) as error:
            failure = translated(error, batches.micro_batches, group)
            if updating:
                kept = what_is_kept(context.folder / "checkpoints")
                raise EnvironmentFault(f"{failure}; {kept}") from error
            keep_up_with_the_others(ddp, group)
    if failure is None:
        if isinstance(ddp, DDP):
            ddp.rebuild_buckets()
        failure = too_many_overflows(state, numbers)
    if failure is not None:
        raise agreed(failure, state, batches, context)
    return numbers


@contextmanager
def update_started(state: TrainState) -> Iterator[list[bool]]:
    """Gives a list that is no longer empty once the optimizer has started to change weights."""
    started: list[bool] = []
    hook = state.optimizer.register_step_pre_hook(lambda *_: started.append(True))
    try:
        yield started
    finally:
        hook.remove()


def translated(error: Exception, batches: list[Batch], group: SingleProcess) -> DinoError:
    """What an error of a forward or backward pass means to a user; what the pass held in memory is freed.

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


def keep_up_with_the_others(ddp: object, group: SingleProcess) -> None:
    """Do this rank's part of what the others still wait for in `train_step`: gradients, then the finite check."""
    if isinstance(ddp, DDP):
        ddp.reduce_missing()
    group.all_true(False, False)


def too_many_overflows(state: TrainState, numbers: dict[str, float]) -> NonFinite | None:
    """Count steps in a row whose gradients overflowed fp16."""
    progress = state.progress
    overflowed = not -float("inf") < numbers["grad_norm"] < float("inf")
    progress.overflows = progress.overflows + 1 if overflowed else 0
    return NonFinite(numbers) if progress.overflows >= MAX_OVERFLOWS else None


def agreed(failure: DinoError | NonFinite, state: TrainState, batches: StepBatches, context: RunContext) -> DinoError:
    """The error that all ranks raise."""
    failures = context.group.gather(failure)
    for other in failures:
        if isinstance(other, OutOfMemory):
            return other
    unmatched = any(isinstance(other, DivergedError) for other in failures)
    numbers = {} if unmatched else _summed([other.numbers for other in failures if isinstance(other, NonFinite)])
    return diverged(state, batches, context, numbers)


def _summed(of_ranks: list[dict[str, float]]) -> dict[str, float]:
    """Loss terms over all ranks; the gradient norm is the same on each."""
    found = {key: sum(numbers[key] for numbers in of_ranks) for key in of_ranks[0]}
    return found | {"grad_norm": of_ranks[0]["grad_norm"]}
