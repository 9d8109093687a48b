"""Which weights a command uses: those that are named, else the newest run's, else the bundled ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dinocore.config import Config

from .console import say, warn
from .progress import watching

if TYPE_CHECKING:
    from dinocore.predict import Detector


RUNS = Path("runs")


def find_weights(given: str | None) -> Path:
    """The file to load; which one it is and why is said on stderr, unless it was named itself.

    Raises:
        CheckpointError: there is no such file or name, or the folder that was named holds no weights.
        EnvironmentFault: it cannot be fetched.
    """
    from dinocore.train.run.folder import find_run
    from dinocore.weights.fetch.locate import locate
    from dinocore.weights.file import BUNDLED, load_weights

    if given is not None:
        with watching() as watch:
            path = locate(given, watch)
        if path != Path(given):
            say(f"weights: {path}")
        return path
    run = find_run(RUNS)
    if run is not None:
        say(f"weights: {run / 'best.safetensors'} (the newest run)")
        return run / "best.safetensors"
    names = [category.name for category in load_weights(BUNDLED).categories]
    known = ", ".join(names[:15]) + (f" and {len(names) - 15} more" if len(names) > 15 else "")
    say(
        f"weights: the tiny model that comes with dino, which knows {known}; for COCO's 80 classes: --weights "
        "official/r50-4scale-12e"
    )
    return BUNDLED


def model_of(weights: str) -> tuple[Config, Path]:
    """The settings of weights, and their file."""
    from dinocore.weights.file import load_weights

    path = find_weights(weights)
    return load_weights(path).config, path


def open_detector(weights: str | None, device: str, amp: str) -> tuple[Detector, Path]:
    """Find, read and place a detector."""
    from dinocore.predict import detector_from
    from dinocore.system.device import pick_device
    from dinocore.weights.file import cast_note, load_weights, names_note

    place = pick_device(device)
    path = find_weights(weights)
    content = load_weights(path)
    detector = detector_from(content, path, place, amp)
    if note := cast_note(content.tensors, path):
        say(f"{path}: {note}")
    if note := names_note(content.categories):
        warn(f"{path}: {note}")
    return detector, path
