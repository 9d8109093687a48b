"""What is to be trained, on what, where and with whom."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ..config import Config, TrainConfig
from ..data.annotations import Annotations
from ..data.dataset import DataSet
from ..evaluate.backends import choose_backend
from ..system.device import pick_precision
from ..system.processes import Alone
from ..words import counted
from .state import TrainState


class Job(NamedTuple):
    """What is to be trained, on what, where and with whom."""

    config: Config
    data: DataSet
    run: Path
    device: torch.device
    stop: Callable[[], int] = lambda: 0  # or the exit code of a signal that asked for an end
    group: Alone = Alone()

    @property
    def precision(self) -> torch.dtype | None:
        """Of the forward pass; None for float32."""
        return pick_precision(self.config.train.amp, self.device)

    @property
    def share(self) -> int:
        """How many pictures of a step's batch the first process has; the others have as many or one fewer."""
        return -(-self.config.train.batch_size // self.group.size)


def images_per_forward(job: Job) -> int:
    """How many pictures go through the model at once; the rest of a process's share is accumulated."""
    return micro_batch_size(job.config.train, job.device, job.share)


def micro_batch_size(train: TrainConfig, device: torch.device, share: int) -> int:
    """How many of a rank's `share` of a batch go through the model at once; "auto" is one on a CPU, else all."""
    wanted = train.images_per_forward
    if isinstance(wanted, int):
        return min(wanted, share)
    return 1 if device.type == "cpu" else share


def describe(job: Job, state: TrainState, per_epoch: int) -> dict[str, str]:
    """What will be done, for people to read before it begins."""
    config, train = job.config, job.data.train
    names = [category.name for category in train.categories]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    chunk = images_per_forward(job)
    rounds = counted(-(-job.share // chunk), "time")
    processes = f"{job.group.size} processes, " if job.group.size > 1 else ""
    return {
        "data": job.data.source,
        "pictures": f"{len(train.image_ids)} to train on, {len(job.data.val.image_ids)} to evaluate on",
        "classes": f"{len(names)}: {shown}",
        "model": f"{sum(p.numel() for p in state.model.parameters()) / 1e6:.1f} M parameters, {config.model.backbone}",
        "batch": f"{counted(config.train.batch_size, 'picture')} a step ({processes}{chunk} at a time, {rounds})",
        "steps": f"{per_epoch} an epoch, {counted(config.train.epochs, 'epoch')}",
        "device": f"{job.device}, {torch.get_num_threads()} threads, {str(job.precision or torch.float32)[6:]}",
        "weights": state.progress["origin"],
        "evaluation": f"COCO's, by {choose_backend(config.eval.backend)}",
        "run": str(job.run),
    }


def fingerprint(data: DataSet) -> str:
    """Of all annotations, and of their files; not of the pictures."""
    found = hashlib.sha256()
    for split in (data.train, data.val):
        if split.file.is_file():
            with split.file.open("rb") as content:
                found.update(hashlib.file_digest(content, "sha256").digest())
        found.update(repr(split.categories).encode())
        for array in _arrays(split):
            found.update(array.tobytes())
    return found.hexdigest()


def _arrays(split: Annotations) -> list:
    return [split.image_ids, split.file_names, split.sizes, split.starts, split.boxes, split.labels, split.crowd]
