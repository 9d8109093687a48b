"""Data loaders: from annotations to batches. An image's augmentation depends only on (seed, epoch, index)."""

import functools
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import Config, DataConfig
from ..errors import DataError
from ..system.parent import LEFT_TO_THE_PARENT, leave_signals_to_the_parent
from .annotations import Annotations
from .batch import Batch, Sample, collate
from .images import read_image, read_reduced
from .transforms import AnnotatedImage, annotated_image, apply, as_target, draw, resize_for_model, to_tensor

MAX_REPLACEMENTS = 10  # unreadable images in a row before an error is raised


class TrainingImages(Dataset):
    """Augmented images, indexed by (epoch, index)."""

    def __init__(self, annotations: Annotations, config: DataConfig, seed: int):
        self.annotations = annotations
        self.config = config
        self.seed = seed
        self.usable = annotations.trainable(config.min_box_size)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """The image, or the next readable one if it cannot be read."""
        epoch, index = item
        problem = None
        for step in range(MAX_REPLACEMENTS):
            at = (index + step) % len(self.annotations.image_ids)
            try:
                return self._read(epoch, at)._replace(problem=problem)
            except DataError as error:
                problem = problem or str(error)
            except Exception as error:  # a bug or an unusual image: the message should at least name the image
                where = f"{self.annotations.path(at)} (number {at}, epoch {epoch})"
                message = " ".join(str(error).split())
                raise DataError(
                    f"reading {where} failed: {type(error).__name__}: {message}; remove the image from the annotations "
                    "to continue, and please report this"
                ) from error
        raise DataError(f"{MAX_REPLACEMENTS} images in a row cannot be read; the first: {problem}",
                        code="DATA-IMAGE-DAMAGED", fix="find them with `dino check-data DIR --decode`")  # fmt: skip

    def _read(self, epoch: int, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, epoch, index))
        noise_seed = int(rng.integers(2**62))
        width, height = self.annotations.sizes[index].tolist()
        plan = draw((height, width), self.config, rng)
        decoded = read_reduced(self.annotations.path(index), self.config, plan.min_decode_size())
        check_size(self.annotations, index, decoded.size)
        boxes, labels = usable_objects(self.annotations, index, self.usable)
        left, top, right, bottom = decoded.frame
        scale = torch.tensor([(right - left) / width, (bottom - top) / height] * 2)
        boxes = boxes * scale + torch.tensor([left, top] * 2)  # pixels of the decoded image
        annotated = apply(plan, annotated_image(to_tensor(decoded.image), boxes, labels), decoded.frame)
        return Sample(annotated[0].as_subclass(Tensor), as_target(annotated, noise_seed), index, (height, width))


class EvaluationImages(Dataset):
    """Images resized to evaluation size, in the order of the annotations."""

    def __init__(self, annotations: Annotations, config: DataConfig):
        self.annotations = annotations
        self.config = config
        self.usable = annotations.trainable(config.min_box_size)

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, index: int) -> Sample | str:
        """The image, or a message why it cannot be read."""
        try:
            annotated = load_annotated(self.annotations, index, self.config, self.usable)
        except DataError as error:
            return str(error)
        height, width = annotated[0].shape[-2:]
        annotated = resize_for_model(annotated, self.config)
        return Sample(annotated[0].as_subclass(Tensor), as_target(annotated), index, (height, width))


def load_annotated(annotations: Annotations, index: int, config: DataConfig, usable: np.ndarray) -> AnnotatedImage:
    """Read an image and its usable objects, clipped to the image, as torchvision's tensors.

    Raises:
        DataError: the image cannot be read, or its size differs from the annotations.
    """
    image = read_image(annotations.path(index), config)
    check_size(annotations, index, image.size)
    boxes, labels = usable_objects(annotations, index, usable)
    return annotated_image(to_tensor(image), boxes, labels)


def check_size(annotations: Annotations, index: int, size: tuple[int, int]) -> None:
    """Check that an image's size, (width, height), agrees with the annotations.

    Raises:
        DataError: it differs.
    """
    annotated = tuple(annotations.sizes[index].tolist())
    if annotated != size:
        rotated = ", which is the same rotated, as by an EXIF orientation" if annotated == size[::-1] else ""
        raise DataError(
            f"{annotations.path(index)} has {size[0]} x {size[1]} pixels, "
            f"but the annotations say {annotated[0]} x {annotated[1]}{rotated}"
        )


def usable_objects(annotations: Annotations, index: int, usable: np.ndarray) -> tuple[Tensor, Tensor]:
    """Usable boxes of an image, clipped to it, (T, 4) xyxy in pixels, and their labels (T,)."""
    rows = annotations.objects(index)
    keep = usable[rows]
    boxes = annotations.boxes[rows][keep]  # a copy
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    boxes = boxes.clip(0, [*annotations.sizes[index], *annotations.sizes[index]])
    return torch.from_numpy(boxes).float(), torch.from_numpy(annotations.labels[rows][keep])


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """The number of full batches, at least one. The remaining images are skipped; they differ from epoch to epoch."""
    return max(1, num_images // batch_size)


class Shard(NamedTuple):
    """The part of each batch that a rank processes."""

    rank: int = 0
    size: int = 1

    def of(self, chosen: np.ndarray) -> np.ndarray:
        """A contiguous part of the batch; if the sizes cannot be equal, the first ranks get one more."""
        return np.array_split(chosen, self.size)[self.rank]


WHOLE = Shard()


class Steps:
    """A batch sampler: for each optimizer step from `start` to `end`, this rank's images as (epoch, index)."""

    def __init__(self, num_images: int, batch_size: int, seed: int, start: int, end: int, part: Shard = WHOLE):
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.start, self.end = start, end
        self.part = part

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = steps_per_epoch(self.num_images, self.batch_size)
        order = np.zeros(0, np.int64)
        for step in range(self.start, self.end):
            epoch, position = divmod(step, per_epoch)
            if position == 0 or step == self.start:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
            chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in self.part.of(chosen)]


class Chunks:
    """Collates the samples of one optimizer step into batches of at most `size`, one per forward pass.

    Samples of similar shape are grouped to reduce padding.
    """

    def __init__(self, size: int, config: DataConfig):
        self.size = size
        self.config = config

    def __call__(self, samples: Sequence[Sample]) -> list[Batch]:
        if len(samples) > self.size:
            samples = sorted(samples, key=lambda sample: sample.image.shape[-1] / sample.image.shape[-2])
        return [collate(samples[i : i + self.size], self.config) for i in range(0, len(samples), self.size)]


def training_steps(
    annotations: Annotations, config: Config, chunk: int, start: int, end: int, part: Shard = WHOLE
) -> DataLoader:
    """A loader that yields the list of batches of each optimizer step; its workers live for the whole run."""
    images = TrainingImages(annotations, config.data, config.train.seed)
    steps = Steps(len(annotations.image_ids), config.train.batch_size, config.train.seed, start, end, part)
    return DataLoader(images, batch_sampler=steps, collate_fn=Chunks(chunk, config.data), **_workers(config.data))


def evaluation_batches(
    annotations: Annotations, config: DataConfig, batch_size: int = 1, part: Shard = WHOLE
) -> DataLoader:
    """A loader that yields (batch of readable images or None, messages about the others).

    Rank r of N reads images r, r + N, r + 2 N …
    """
    images = EvaluationImages(annotations, config)
    return DataLoader(
        images,
        batch_size=batch_size,
        sampler=range(part.rank, len(images), part.size),
        collate_fn=_collate_readable,
        **_workers(config),
    )


def kill_workers() -> None:
    """Kill the workers, because they ignore the signal that Python sends at exit before it waits for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


@functools.cache
def kill_workers_at_exit() -> None:
    """Register `kill_workers` once per process; otherwise, a program never exits after an error in an active loader."""
    multiprocessing.util.Finalize(None, kill_workers, exitpriority=0)


def start_workers(loader: DataLoader) -> Iterator:
    """Start a loader's workers. Signals are blocked meanwhile, so that workers can set up their handlers first.

    PyTorch's SIGCHLD handler is removed, because it raises at an arbitrary point of the program when a worker dies. The
    loader itself notices this within seconds, when it waits for the next batch.
    """
    kill_workers_at_exit()
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):  # Windows
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)
    try:
        return iter(loader)
    finally:
        if getattr(signal.getsignal(signal.SIGCHLD), "__module__", "").startswith("torch."):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collate_readable(items: Sequence[Sample | str]) -> tuple[Batch | None, list[str]]:
    samples = [item for item in items if isinstance(item, Sample)]
    return (collate(samples) if samples else None), [item for item in items if isinstance(item, str)]


def num_workers(config: DataConfig) -> int:
    """The number of worker processes that read images."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    spare = max(1, (os.cpu_count() or 2) // processes - 1)
    return min(4, spare) if config.workers == "auto" else config.workers


def _workers(config: DataConfig) -> dict:
    number = num_workers(config)
    return {
        "num_workers": number,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": leave_signals_to_the_parent if number else None,
        "prefetch_factor": 4 if number else None,
        "timeout": config.loader_timeout if number else 0,
        "generator": torch.Generator(),  # a loader must not use dropout's random generator
    }
