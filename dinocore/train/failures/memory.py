"""Find how many images fit into memory, using the largest batch that data and settings can produce."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...config import Config, DataConfig
from ...data.annotations import Annotations
from ...data.batch import Batch
from ...data.transforms import largest_size
from ...errors import DivergedError, EnvironmentFault
from ...losses import criterion
from ...structures import Target
from ...system.device import float32_throughout
from ...system.memory import peak_memory_mb, release_memory
from ..batches import count_boxes, rank_batch_size
from ..context import RunContext
from ..state import TrainState, restore_rng_state, rng_state
from ..step import forward
from .classify import check_is_deterministic, deterministic, is_out_of_memory, out_of_memory_message

DEVICE_FRACTION, HOST_FRACTION = 0.95, 0.85  # of the available memory; other processes need some on the host


def with_probed_size(context: RunContext, state: TrainState) -> RunContext:
    """The context with the largest micro-batches that fit, if `train.micro_batch_size` is "probe"; the batch stays.

    Raises:
        EnvironmentFault: not even one image fits, or an operation is not deterministic.
    """
    if context.config.train.micro_batch_size != "probe":
        return context
    before, settings = rng_state(), context.config.train
    rank_batch = rank_batch_size(settings.batch_size, context.group.size)
    with deterministic(settings.deterministic, context.device), float32_throughout(settings.amp == "off"):
        # with the same algorithms as in training
        size = min(context.group.gather(largest_micro_batch(context, state, rank_batch)))
    restore_rng_state(before)
    return context._replace(config=context.config.replace("train.micro_batch_size", size))


def largest_micro_batch(context: RunContext, state: TrainState, rank_batch: int) -> int:
    """The largest number of images with which a forward and backward pass succeeds on this rank.

    The number doubles from 1 up to the rank's part of the batch. Because the system kills a process that runs out of
    host memory, a number is tried only if it should fit, extrapolating from the previous ones.
    """
    limit = memory_limit_mb(context.device) - _optimizer_mb(state)
    fitting, peaks = 0, [peak_memory_mb(context.device)]
    for size in [*(2**i for i in range(rank_batch.bit_length()) if 2**i < rank_batch), rank_batch]:
        growth = (peaks[-1] - peaks[-2]) / (fitting - fitting // 2) if fitting > 1 else 0.0  # MB per image
        if peaks[-1] + growth * (size - fitting) > limit:
            break
        try:
            largest_pass(state.model, largest_batch(context.data.train, context.config.data, size), context.config)
        except (RuntimeError, MemoryError) as error:
            check_is_deterministic(error)
            if not is_out_of_memory(error):
                raise
            break
        finally:
            state.optimizer.zero_grad(set_to_none=True)
            release_memory(context.device)
        peaks.append(peak_memory_mb(context.device))
        if peaks[-1] > limit and size > 1:
            break
        fitting = size
    if not fitting:
        batch = largest_batch(context.data.train, context.config.data, 1)
        raise EnvironmentFault(out_of_memory_message([batch], context.group))
    return fitting


def largest_pass(model: nn.Module, batch: Batch, config: Config) -> None:
    """A forward and a backward pass; gradients are left in the parameters.

    Raises:
        DivergedError: predictions are not finite.
    """
    output, targets = forward(model, batch, config)
    try:
        terms = criterion(output, targets, float(count_boxes([batch])), config.loss)
    except DivergedError as error:
        message = "the model's predictions are not finite before the first step; check its weights"
        raise DivergedError(message) from error
    torch.stack(list(terms.values())).sum().backward()


def largest_batch(annotations: Annotations, config: DataConfig, size: int) -> Batch:
    """Grey images of the largest size that augmentation produces, each with the highest number of objects per image."""
    height, width = largest_size(annotations.sizes, config, size)
    owners = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.starts))
    num_objects = int(np.bincount(owners[annotations.trainable()]).max())
    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(rng.uniform(0.2, 0.4, (num_objects, 4))).float()  # within the image, overlapping
    labels = torch.from_numpy(rng.integers(0, len(annotations.categories), num_objects))
    return Batch(
        images=torch.full((size, 3, height, width), 127, dtype=torch.uint8),
        padding=torch.zeros(size, height, width, dtype=torch.bool),
        targets=[Target(labels, boxes, seed) for seed in range(size)],
        indices=[0] * size,
        sizes=[(height, width)] * size,
        problems=[],
    )


def memory_limit_mb(device: torch.device) -> float:
    """The memory that training may use on a GPU or, for a CPU, on the host."""
    if device.type == "cuda":
        return DEVICE_FRACTION * torch.cuda.get_device_properties(device).total_memory / 2**20
    if device.type == "mps":
        return DEVICE_FRACTION * torch.mps.recommended_max_memory() / 2**20
    limits = [_from_proc("/proc/meminfo", "MemAvailable:") + _from_proc("/proc/self/status", "VmRSS:")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(name).is_file() and (text := Path(name).read_text().strip()).isdigit():
            limits.append(int(text) / 2**20)
    return HOST_FRACTION * min(limits)


def _from_proc(file: str, key: str) -> float:
    """An entry of a /proc file in MB; infinity if there is no such file."""
    if not Path(file).is_file():
        return float("inf")
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 2**10


def _optimizer_mb(state: TrainState) -> float:
    """Memory that AdamW's two moments will need; 0 if they are already allocated."""
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    return 0.0 if state.optimizer.state else 2 * sum(p.numel() * p.element_size() for p in trained) / 2**20
