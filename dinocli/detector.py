"""Which weights a command uses: those that are named, else the newest run's, else the bundled ones."""

from pathlib import Path

from dinocore.checkpoint import BUNDLED, load_weights
from dinocore.device import pick_device
from dinocore.errors import CheckpointError
from dinocore.predict import Detector, detector_from
from dinocore.train.run import find_run

from .console import say

RUNS = Path("runs")


def find_weights(given: str | None) -> Path:
    """The file to load; which one it is and why is said on stderr.

    Raises:
        CheckpointError: the folder that was named holds no weights.
    """
    if given is not None:
        path = Path(given).expanduser()
        return inside(path) if path.is_dir() else path
    run = find_run(RUNS)
    if run is not None:
        say(f"weights: {run / 'best.safetensors'} (the newest run)")
        return run / "best.safetensors"
    say("weights: the tiny model that comes with dino (blood cells); --weights FILE for others")
    return BUNDLED


def open_detector(weights: str | None, device: str, amp: str) -> tuple[Detector, Path]:
    """Find, read and place a detector."""
    place = pick_device(device)
    path = find_weights(weights)
    return detector_from(load_weights(path), path, place, amp), path


def inside(folder: Path) -> Path:
    """The weights of a run's folder, or of a checkpoint's."""
    for name in ("best.safetensors", "ema.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no best.safetensors; name a file of weights or the folder of a run")
