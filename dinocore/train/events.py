"""Events that `train` yields: plain values, which the command displays and tests check."""

from pathlib import Path
from typing import NamedTuple

from ..evaluate.coco import Metrics
from .transfer import Transfer


class Started(NamedTuple):
    """The run is ready, before its first step."""

    run: Path
    facts: dict[str, str]  # a summary of the run, for display
    transfer: Transfer | None  # what was carried over from other weights, if any


class Step(NamedTuple):
    """One optimizer step is done."""

    step: int  # from 1
    epoch: int  # from 1
    total_steps: int
    numbers: dict[str, float]  # as in metrics.jsonl


class Evaluating(NamedTuple):
    """Images evaluated so far."""

    done: int
    total: int


class Evaluated(NamedTuple):
    """An evaluation is done."""

    step: int
    epoch: int
    epochs: int
    metrics: Metrics
    best: bool


class Saved(NamedTuple):
    """A checkpoint was saved."""

    path: Path
    step: int
    seconds: float  # time to save it


class Warned(NamedTuple):
    """A warning for the user; the run continues."""

    message: str


class Finished(NamedTuple):
    """The run is finished."""

    run: Path
    best_ap: float
    best_path: Path
    why: str  # why it ended early or had nothing to do; empty after the last step of the last epoch


Event = Started | Step | Evaluating | Evaluated | Saved | Warned | Finished
