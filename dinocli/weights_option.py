"""Choose a command's weights: those given, else the newest run's, else the bundled ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from dinocore.config import Config, DataConfig
from dinocore.errors import CheckpointError, ConfigError

from .console import say, warn
from .progress import watching
from .start import resume_collection

if TYPE_CHECKING:
    from dinocore.predict import AnyDetector, Detector
    from dinocore.stream.slices import Slicing


RUNS = Path("runs")
REFUSED = (".onnx.unverified", ".xml.unverified", ".pt2.unverified")


def find_weights(given: str | None) -> Path:
    """The file to load; unless it was given, a message on stderr says which one it is and why.

    Raises:
        CheckpointError: there is no such file or name, the given folder has no weights, or the file failed the check of
            `dino export`.
        EnvironmentFault: it cannot be fetched.
    """
    from dinocore.train.run.folder import find_run
    from dinocore.weights.fetch.locate import locate
    from dinocore.weights.file import load_weights
    from dinocore.weights.shipped import BUNDLED

    if given is not None:
        check_not_refused(given)
    if given is not None and is_exported(Path(given).expanduser()) and Path(given).expanduser().is_file():
        return Path(given).expanduser()  # nothing to fetch or convert
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
        f"weights: the bundled tiny model, which knows {known}; for COCO's 80 classes, use --weights "
        "official/r50-4scale-12e"
    )
    return BUNDLED


def model_of(weights: str, preset: str | None) -> tuple[Config, Path]:
    """The settings of weights, and their file.

    Raises:
        ConfigError: a preset was given as well.
    """
    from dinocore.weights.file import load_weights

    if preset is not None:
        raise ConfigError("--preset and --weights both set the model; drop one of them")

    path = find_weights(weights)
    return load_weights(path).config, path


def open_detector(weights: str | None, device: str, amp: str) -> tuple[Detector, Path]:
    """Find and load a model onto a device.

    Raises:
        ConfigError: it is an exported file, which cannot be inspected.
    """
    path = find_weights(weights)
    if is_exported(path):
        raise ConfigError(
            f"{path} is an exported file, which this command cannot use; give the weights it was made from"
        )
    return _from_weights(path, device, amp)


def open_any_detector(weights: str | None, device: str, amp: str, compiled: bool = False) -> tuple[AnyDetector, Path]:
    """Like `open_detector`, but accepts exported files, too.

    Raises:
        ConfigError: a device, precision or torch.compile was requested that an exported file does not support.
    """
    path = find_weights(weights)
    if not is_exported(path):
        return _from_weights(path, device, amp, compiled)
    from dinocore.export.detector import FileDetector

    if device not in ("auto", "cpu") or amp not in ("auto", "off"):
        raise ConfigError(f"{path} has a fixed device and precision; drop --device and --precision")
    if compiled:
        raise ConfigError(f"{path} is already compiled; drop --compile")
    detector = cast("AnyDetector", FileDetector(path))  # its config is a property
    resume_collection()
    return detector, path


def open_slicing(side: str, overlap: float | None, path: Path, config: DataConfig) -> Slicing:
    """Parse --slice and --overlap; `auto` uses facts about the training data, which exported files lack."""
    from dinocore.stream.slices import parse_slicing
    from dinocore.weights.file import load_facts

    facts = load_facts(path) if side == "auto" and not is_exported(path) else {}
    return parse_slicing(side, overlap, config, facts)


def check_not_refused(given: str) -> None:
    """Check that a file is not one left by a failed export.

    Raises:
        CheckpointError: it failed the check of `dino export`.
    """
    if Path(given).name.lower().endswith(REFUSED) and Path(given).expanduser().is_file():
        raise CheckpointError(
            f"{given} failed the check of dino export: it does not run, or its results differ from the model's; "
            "export again with other settings, or use the weights it was made from"
        )


def is_exported(path: Path) -> bool:
    """Whether a file was written by `dino export`."""
    return path.suffix.lower() in (".onnx", ".xml", ".pt2")


def _from_weights(path: Path, device: str, amp: str, compiled: bool = False) -> tuple[Detector, Path]:
    from dinocore.predict import detector_from
    from dinocore.system.device import check_compiler, pick_device
    from dinocore.weights.file import cast_note, load_weights, names_note

    place = pick_device(device)
    if compiled:
        check_compiler(place, "--compile")  # before the weights are read
    content = load_weights(path)
    detector = detector_from(content, path, place, amp, compiled)
    if note := cast_note(content.tensors, path):
        say(f"{path}: {note}")
    if note := names_note(content.categories):
        warn(f"{path}: {note}")
    resume_collection()
    return detector, path
