"""Run many images through a detector: read ahead, batched by shape, results in order.

    files -> PreparedImage (in worker processes) -> views -> batches of one shape -> Detections of each image, in order

All views of a batch have exactly the same shape, so nothing is padded, and results equal those of single images up to
rounding.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import DataConfig
from ..data.batch import View, as_batch, resize_pixels
from ..data.images import read_image
from ..data.loaders import num_workers, start_workers
from ..data.transforms import to_tensor
from ..errors import ConfigError, DataError
from ..system.parent import leave_signals_to_the_parent
from .slices import Slicing, Window, WindowDetections, merge

if TYPE_CHECKING:
    from ..predict import AnyDetector, Detections

PIXELS_PER_BATCH = {"cpu": 2 * 800 * 1333, "cuda": 16 * 800 * 1333}  # for --batch-size auto
MAX_BATCH = 64  # images per batch for --batch-size auto
BATCHES_AHEAD = 4  # views of this many batches may wait for others of their shape
MIN_FOR_WORKERS = 5  # fewer images are read without worker processes, which would take longer to start
Failure = TypeVar("Failure")


class PreparedImage(NamedTuple):
    """A decoded image, already resized unless it will be cut into slices."""

    pixels: Tensor  # (3, H, W) uint8
    size: tuple[int, int]  # height and width of the upright image
    windows: list[Window]  # the whole image and its slices; empty: `pixels` is the model's input

    def views(self, config: DataConfig) -> Iterator[View]:
        """The inputs of the model: the image, or each of its windows, resized."""
        if not self.windows:
            yield View(self.pixels, self.size)
        for x0, y0, x1, y1 in self.windows:
            yield View(resize_pixels(self.pixels[:, y0:y1, x0:x1], config), (y1 - y0, x1 - x0))


def prepare(pixels: Tensor, config: DataConfig, slicing: Slicing | None = None) -> PreparedImage:
    """Make an image (3, H, W) ready for the model.

    Raises:
        DataError: it has no pixels.
    """
    height, width = pixels.shape[-2:]
    windows = slicing.windows((height, width)) if slicing else []
    return PreparedImage(pixels if windows else resize_pixels(pixels, config), (height, width), windows)


class _Files(Dataset):
    """Prepared images of files, or the errors of files that can't be read."""

    def __init__(self, paths: Sequence[Path], config: DataConfig, slicing: Slicing | None):
        self.paths, self.config, self.slicing = paths, config, slicing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> PreparedImage | DataError:
        try:
            return prepare(to_tensor(read_image(self.paths[index], self.config)), self.config, self.slicing)
        except DataError as error:
            return error


def read_ahead(
    paths: Sequence[Path], config: DataConfig, slicing: Slicing | None = None
) -> Iterator[PreparedImage | DataError]:
    """Read files in `data.workers` processes, in order; yields the error instead of a file that can't be read."""
    files = _Files(paths, config, slicing)
    workers = num_workers(config) if len(paths) >= MIN_FOR_WORKERS else 0
    if not workers:
        return (files[i] for i in range(len(files)))
    collate: Any = _identity
    loader = DataLoader(
        files,
        batch_size=None,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4,
        worker_init_fn=leave_signals_to_the_parent,
        timeout=config.loader_timeout,
        generator=torch.Generator(),
    )
    return start_workers(loader)


def _identity(item: PreparedImage | DataError) -> PreparedImage | DataError:
    return item


def check_batch_size(size: str | int, name: str = "batch_size=") -> str | int:
    """Validate a batch size: `auto` or a positive number of images.

    Args:
        name: the option or argument, for the message.

    Raises:
        ConfigError: it is neither.
    """
    if size == "auto" or (str(size).isdecimal() and int(size) > 0):
        return size if size == "auto" else int(size)
    raise ConfigError(f"{name}{size} is neither auto nor a number from 1; try {name}8")


def detect_stream(
    detector: "AnyDetector", images: Iterable[PreparedImage | Failure], batch_size: str | int = "auto"
) -> "Iterator[Detections | Failure]":
    """Detections of each image, in order; errors are passed through in their place.

    Args:
        batch_size: maximum number of views per batch; `auto`: as many as `PIXELS_PER_BATCH` allows. Both are halved
            when a GPU runs out of memory.

    Raises:
        DivergedError: the model's numbers are not finite.
    """
    batches = _Batches(detector, check_batch_size(batch_size))
    waiting: deque[_Pending | Failure] = deque()
    for image in images:
        if isinstance(image, PreparedImage):
            waiting.append(pending := _Pending(image))
            for view in image.views(detector.config.data):
                batches.add(view, pending)
            pending.all_added = True
        else:
            waiting.append(image)
        if len(waiting) > BATCHES_AHEAD * MAX_BATCH and isinstance(waiting[0], _Pending):
            batches.finish(waiting[0])
        yield from _completed(waiting, detector)
    batches.finish_all()
    yield from _completed(waiting, detector)


def _completed(waiting: "deque[_Pending | Failure]", detector: "AnyDetector") -> "Iterator[Detections | Failure]":
    """Remove completed items from the front of the queue and yield their results."""
    while waiting and (not isinstance(waiting[0], _Pending) or waiting[0].complete):
        item = waiting.popleft()
        yield item.merged(detector) if isinstance(item, _Pending) else item


class _Pending:
    """An image of which some views are still to be processed."""

    def __init__(self, image: PreparedImage):
        self.windows, self.size = image.windows, image.size
        self.found: dict[int, Detections] = {}
        self.count = 0
        self.all_added = False

    @property
    def complete(self) -> bool:
        return self.all_added and len(self.found) == self.count

    def merged(self, detector: "AnyDetector") -> "Detections":
        """The detections of the image, merged over its windows."""
        if not self.windows:
            return self.found[0]
        parts = [self.found[k] for k in range(self.count)]
        shifts = [torch.tensor([x, y, x, y]) for x, y, _, _ in self.windows]
        found = WindowDetections(
            torch.cat([part.labels for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.boxes_xyxy + shift for part, shift in zip(parts, shifts, strict=True)]),
            torch.cat([torch.full_like(part.labels, k) for k, part in enumerate(parts)]),
        )
        return detector.named(*merge(found, self.windows))


class _Batches:
    """Views waiting for others of the same shape."""

    def __init__(self, detector: "AnyDetector", size: str | int):
        self.detector = detector
        self.size = size
        self.max_batch = MAX_BATCH  # halved when a GPU runs out of memory
        self.groups: OrderedDict[tuple[int, int], list[tuple[View, _Pending, int]]] = OrderedDict()

    def add(self, view: View, image: _Pending) -> None:
        """Add a view, and run a batch that is full or, if many views are waiting, the oldest one."""
        shape = (view.image.shape[-2], view.image.shape[-1])
        self.groups.setdefault(shape, []).append((view, image, image.count))
        image.count += 1
        limit = self._limit(shape)
        if len(self.groups[shape]) >= limit:
            self._run(shape)
        elif sum(map(len, self.groups.values())) >= BATCHES_AHEAD * limit:
            self._run(next(iter(self.groups)))  # the one that has waited longest

    def finish(self, image: _Pending) -> None:
        """Run all groups that contain a view of an image."""
        for shape in [shape for shape, group in self.groups.items() if any(owner is image for _, owner, _ in group)]:
            self._run(shape)

    def finish_all(self) -> None:
        """Run the remaining batches."""
        for shape in list(self.groups):
            self._run(shape)

    def _limit(self, shape: tuple[int, int]) -> int:
        if self.size != "auto":
            return min(int(self.size), self.max_batch) if self.max_batch < MAX_BATCH else int(self.size)
        pixels = PIXELS_PER_BATCH.get(self.detector.device.type, PIXELS_PER_BATCH["cpu"])
        return max(1, min(self.max_batch, pixels // (shape[0] * shape[1])))

    def _run(self, shape: tuple[int, int]) -> None:
        """Run a group; when memory runs out, halve the batches from then on."""
        group = self.groups.pop(shape)
        while group:
            part = group[: self._limit(shape)]
            try:
                found = self.detector.detect_batch(as_batch([view for view, _, _ in part]))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.max_batch = len(part) // 2
                continue
            for (_, image, number), detections in zip(part, found, strict=True):
                image.found[number] = detections
            group = group[len(part) :]
