"""Annotated images for inspectors: from --data, else from the weights' training data, else synthetic ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dinocore.config import DataConfig
from dinocore.data.annotations import Annotations
from dinocore.data.dataset import open_split
from dinocore.errors import DataError

from .console import say, warn

if TYPE_CHECKING:
    from dinocore.predict import Detector


def open_annotated(folder: Path | None, split: str, detector: Detector, other: str = "--data DIR") -> Annotations:
    """The annotations of a split; a message on stderr says which data they are.

    Args:
        other: the advice for using other images, for messages.

    Raises:
        DataError: there are none, or the weights' training data is no longer where it was.
    """
    settings = detector.config.data
    if folder is not None:
        settings = settings_of(settings, folder)
    elif settings.path and not Path(settings.path).exists():
        raise DataError(f"{settings.path}, the data of these weights, does not exist; give {other}")
    found = open_split(settings, split, detector.categories)
    own = "the data these weights were trained with" if settings.path else "images that dino draws"
    say(f"data: {found.file}" if folder else f"data: {found.file} ({own}; for other data, give {other})")
    return found


def settings_of(settings: DataConfig, folder: Path) -> DataConfig:
    """The settings for reading a data folder."""
    return settings.model_copy(update={"path": str(folder.expanduser().absolute())})


def warn_of_whole_images(
    sizes: Iterable[tuple[int, int]],
    name: Callable[[int], str],
    config: DataConfig,
    remedy: str = "try dino predict --slice auto, which processes large images in slices",
) -> None:
    """Warn about images (height, width) that are shrunk so much that small objects may be lost."""
    from dinocore.stream.slices import SHRINKS_MUCH, shrink_factor, shrinking_message

    factors = [shrink_factor(size, config) for size in sizes]
    if shrunk := [(factor, name(i)) for i, factor in enumerate(factors) if factor > SHRINKS_MUCH]:
        warn(shrinking_message(shrunk, remedy))
