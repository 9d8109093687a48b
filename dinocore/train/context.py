"""The context of a run: config, data, folder, ranks and device."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ..config import Config
from ..data.annotations import Annotations
from ..data.check.fitness import check_fitness
from ..data.dataset import DataSet
from ..data.findings import Findings
from ..data.loaders import steps_per_epoch as steps_in_epoch
from ..evaluate.backends import choose_backend
from ..system.device import pick_precision
from ..system.processes import SingleProcess
from ..words import counted
from .batches import micro_batch_size, rank_batch_size
from .optim import describe_lr, drops_warning, warmup_warning
from .state import TrainState


class RunContext(NamedTuple):
    """The context of a run; only `config.train.micro_batch_size` ever changes."""

    config: Config
    data: DataSet
    folder: Path
    device: torch.device
    stop: Callable[[], int] = lambda: 0  # returns the exit code of a signal, or 0
    group: SingleProcess = SingleProcess()


def describe(context: RunContext, state: TrainState, steps_per_epoch: int) -> dict[str, str]:
    """A summary of the run, shown before it starts."""
    config, train, group = context.config, context.data.train, context.group
    names = [category.name for category in train.categories]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    rank_batch = rank_batch_size(config.train.batch_size, group.size)
    micro = micro_batch_size(config.train, context.device, group.size)
    ranks = f"{group.size} ranks, " if group.size > 1 else ""
    precision = pick_precision(config.train.amp, context.device) or torch.float32
    return {
        "data": context.data.source,
        "images": f"{len(train.image_ids)} for training, {len(context.data.val.image_ids)} for evaluation",
        "classes": f"{len(names)}: {shown}",
        "model": f"{sum(p.numel() for p in state.model.parameters()) / 1e6:.1f} M parameters, {config.model.backbone}",
        "batch": f"{counted(config.train.batch_size, 'image')} per step "
        f"({ranks}{counted(-(-rank_batch // micro), 'micro-batch', 'micro-batches')} of {micro})",
        "steps": f"{steps_per_epoch} per epoch, {counted(config.train.epochs, 'epoch')}",
        "rate": describe_lr(steps_per_epoch, config.train),
        "device": f"{context.device}, {counted(torch.get_num_threads(), 'thread')}, {str(precision)[6:]}",
        "weights": state.progress.origin,
        "evaluation": f"COCO's, by {choose_backend(config.eval.backend)}",
        "run": str(context.folder),
    }


LIMITS = ("MODEL-QUERIES", "MODEL-DETECTIONS", "MODEL-DENOISING")


def exceeded_limits(config: Config, data: DataSet) -> list[str]:
    """Warnings about limits that a run or its data exceed.

    The run may be too short for its warm-up or learning rate drops, or images may have more objects than the model has
    queries, detections or denoising slots.
    """
    steps = steps_in_epoch(len(data.train.image_ids), config.train.batch_size)
    limits = [text for text in (warmup_warning(steps, config.train), drops_warning(steps, config.train)) if text]
    splits = {"train": data.train} | ({} if data.val is data.train else {"val": data.val})
    for name, split in splits.items():
        findings = Findings(split.file)
        check_fitness(split, config, findings, trained_on=name == "train")
        limits += [f"{name}: {finding.text}; {finding.fix}" for finding in findings.found if finding.code in LIMITS]
    return limits


def fingerprint(data: DataSet) -> str:
    """A hash of all annotations and their files, but not of the images."""
    digest = hashlib.sha256()
    for split in (data.train, data.val):
        if split.file.is_file():
            with split.file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        digest.update(repr(split.categories).encode())
        for array in _arrays(split):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _arrays(split: Annotations) -> list:
    return [split.image_ids, split.file_names, split.sizes, split.starts, split.boxes, split.labels, split.crowd]
