"""How many pictures fit into memory at once: tried with the worst batch that the data and the settings can give."""

from pathlib import Path

import numpy as np
import torch

from ...data.batch import Batch
from ...data.transforms import resized
from ...errors import DivergedError, EnvironmentFault
from ...structures import Target
from ...system.device import peak_memory_mb, release_memory
from ..batches import count_boxes
from ..forward import loss_terms
from ..job import Job
from ..state import TrainState, random_streams, restore_streams
from .classify import is_out_of_memory, out_of_memory_text

OF_DEVICE, OF_HOST = 0.95, 0.85  # of the memory that is there; the host has others to serve


def with_probed_chunk(job: Job, state: TrainState) -> Job:
    """The job with as many pictures per forward pass as fit, where the config asks for that; the batch stays.

    Raises:
        EnvironmentFault: not even one fits.
    """
    if job.config.train.images_per_forward != "probe":
        return job
    streams = random_streams()
    chunk = min(job.group.gather(largest_chunk(job, state)))
    restore_streams(streams)
    train = job.config.train.model_copy(update={"images_per_forward": chunk})
    return job._replace(config=job.config.model_copy(update={"train": train}))


def largest_chunk(job: Job, state: TrainState) -> int:
    """The most pictures for which a forward and a backward pass were done here without running out of memory.

    Numbers double from 1 to the process's share of the batch. On a host, where too much ends the process, the next
    number is tried only if the growth so far says that it fits.
    """
    limit = memory_limit_mb(job.device) - _optimizer_mb(state)
    fitting, peaks = 0, [peak_memory_mb()]
    for chunk in [*(2**i for i in range(job.share.bit_length()) if 2**i < job.share), job.share]:
        growth = (peaks[-1] - peaks[-2]) / (fitting - fitting // 2) if fitting > 1 else 0.0  # MB a picture
        if peaks[-1] + growth * (chunk - fitting) > limit:
            break
        try:
            largest_pass(job, state, chunk)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            state.optimizer.zero_grad(set_to_none=True)
            release_memory(job.device)
        peaks.append(peak_memory_mb())
        if peaks[-1] > limit and chunk > 1:
            break
        fitting = chunk
    if not fitting:
        raise EnvironmentFault(out_of_memory_text([worst_batch(job, 1)], job.group))
    return fitting


def largest_pass(job: Job, state: TrainState, chunk: int) -> None:
    """A forward and a backward pass of the worst batch; gradients are left in the parameters.

    Raises:
        DivergedError: predictions are not finite.
    """
    batch = worst_batch(job, chunk)
    try:
        terms = loss_terms(state.model, batch, job, float(count_boxes([batch])))
    except DivergedError as error:
        told = "the model's predictions are not finite before the first step; look at its weights"
        raise DivergedError(told) from error
    torch.stack(list(terms.values())).sum().backward()


def worst_batch(job: Job, chunk: int) -> Batch:
    """Grey pictures as large as augmentation can make them, each with as many objects as any picture has."""
    height, width = _worst_size(job, chunk)
    annotations = job.data.train
    owners = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.starts))
    most = int(np.bincount(owners[annotations.trainable()]).max())
    draws = np.random.default_rng(0)
    boxes = torch.from_numpy(draws.uniform(0.2, 0.4, (most, 4))).float()  # within the picture, overlapping
    labels = torch.from_numpy(draws.integers(0, len(annotations.categories), most))
    return Batch(
        images=torch.full((chunk, 3, height, width), 127, dtype=torch.uint8),
        padding=torch.zeros(chunk, height, width, dtype=torch.bool),
        targets=[Target(labels, boxes, seed) for seed in range(chunk)],
        indices=[0] * chunk,
        sizes=[(height, width)] * chunk,
        problems=[],
    )


def _worst_size(job: Job, chunk: int) -> tuple[int, int]:
    """Height and width of the largest picture, or of what an upright and a lying one are padded to."""
    data, short = job.config.data, max(job.config.data.train_scales)
    sizes = {resized((h, w), short, data.max_size) for w, h in np.unique(job.data.train.sizes, axis=0).tolist()}
    if data.crop_chance:
        least, most = data.crop_size
        sizes |= {resized(size, short, data.max_size) for size in ((least, most), (most, least))}
    if chunk == 1:
        return max(sizes, key=lambda size: size[0] * size[1])
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def memory_limit_mb(device: torch.device) -> float:
    """What a training may take, on the device or else on the host."""
    if device.type == "cuda":
        return OF_DEVICE * torch.cuda.get_device_properties(device).total_memory / 2**20
    if device.type == "mps":
        return OF_DEVICE * torch.mps.recommended_max_memory() / 2**20
    limits = [_from_proc("/proc/meminfo", "MemAvailable:") + _from_proc("/proc/self/status", "VmRSS:")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(name).is_file() and (text := Path(name).read_text().strip()).isdigit():
            limits.append(int(text) / 2**20)
    return OF_HOST * min(limits)


def _from_proc(file: str, key: str) -> float:
    """An entry in MB; where there is no such file, nothing limits."""
    if not Path(file).is_file():
        return float("inf")
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 2**10


def _optimizer_mb(state: TrainState) -> float:
    """AdamW's two averages, if no step was taken yet that made them."""
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    return 0.0 if state.optimizer.state else 2 * sum(p.numel() * p.element_size() for p in trained) / 2**20
