"""Events that `train` yields. Plain values: the command draws them, a test reads them."""

from pathlib import Path
from typing import NamedTuple

from ..evaluate.coco import Metrics
from .transfer import Transfer


class Started(NamedTuple):
    """The run is ready; nothing has been learned yet."""

    run: Path
    facts: dict[str, str]  # what will be done, for people
    transfer: Transfer | None  # what comes from other weights


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
    """A checkpoint is on the disk."""

    path: Path
    step: int
    seconds: float  # that it took


class Warned(NamedTuple):
    """Something that a user should know, which does not stop the run."""

    message: str


class Finished(NamedTuple):
    """There is nothing left to do."""

    run: Path
    best_ap: float
    best_path: Path
    why: str  # empty after the last step of the last epoch


Event = Started | Step | Evaluating | Evaluated | Saved | Warned | Finished
