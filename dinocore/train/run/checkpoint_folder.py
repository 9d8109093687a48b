"""A run's folder `checkpoints`: each checkpoint is written completely, hashed, synced to disk, and then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import CheckpointError, EnvironmentFault
from ...system.files import sync, to_json
from ...weights.file import SCHEMA
from ...words import in_bytes, listed

MANIFEST = "manifest.json"
OLD, NEW, ASIDE = ".tmp-old-", ".tmp-new-", "aside-"


class NewerCheckpoint(CheckpointError):
    """A complete checkpoint, written by a newer version of dino in a format that this one cannot read."""


def step_of(path: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(path.name.rpartition("-")[2])


def publish(
    folder: Path, step: int, size: int, write: Callable[[Path], dict[str, Any]], facts: Mapping[str, Any]
) -> Path:
    """Write the checkpoint `folder`/step-XXXXXXXX atomically.

    Args:
        size: expected size in bytes.
        write: writes the files into a folder; returns fingerprints of those that need not be hashed again.
        facts: further entries of the manifest.

    Raises:
        EnvironmentFault: the disk is full or not writable; earlier checkpoints stay intact.
    """
    target = folder / f"step-{step:08d}"
    temporary, replaced = (folder / f"{mark}{target.name}" for mark in (NEW, OLD))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _check_space(folder, size)
        known = write(temporary)
        files = {file.name: known.get(file.name) or fingerprint(file) for file in sorted(temporary.iterdir())}
        manifest = {"schema": SCHEMA, "dino_version": __version__, "step": step, **facts, "files": files}
        (temporary / MANIFEST).write_text(to_json(manifest | {"sha256": _own_hash(manifest)}, indent=1))
        sync(temporary / MANIFEST)
        sync(temporary)
        if target.exists():  # the same step, saved again
            os.rename(target, replaced)
        os.rename(temporary, target)  # if killed between these two, `tidy` undoes the first
        sync(folder)
    except (OSError, RuntimeError, EnvironmentFault) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        what = f"the checkpoint {target} cannot be written: {reason}"
        raise EnvironmentFault(f"{what}; {checkpoint_status(folder)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
    return target


def checkpoint_status(folder: Path) -> str:
    """For error messages: whether there are checkpoints to resume from."""
    return "earlier checkpoints are intact" if list_checkpoints(folder) else "no checkpoint has been saved yet"


def disk_space_warning(folder: Path, size: int) -> str:
    """A warning if the disk has too little space for a checkpoint; otherwise empty."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free >= size:
        return ""
    return (
        f"a checkpoint takes about {in_bytes(size)}, and {existing} has {in_bytes(free)} left, so this run "
        "cannot be saved; free some disk space, or stop it and choose another --output-dir"
    )


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"it needs {size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on that disk")


def manifest_of(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint.

    Raises:
        NewerCheckpoint: it was written by a newer version.
        CheckpointError: it is missing or damaged.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{path} is not a complete checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: it is truncated or overwritten") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        made_by = f"dino {manifest.get('dino_version', '')} (format {schema})"
        raise NewerCheckpoint(
            f"{path} was made by {made_by}, this is {__version__} (format {SCHEMA}); install the newer one"
        )
    if reason := _damage(manifest, path):
        raise CheckpointError(f"{file} is damaged: {reason}")
    del manifest["sha256"]
    return manifest


def _damage(manifest: Any, path: Path) -> str:
    """Why this cannot be the manifest that was written for this checkpoint; empty if it can."""
    if not isinstance(manifest, dict):
        return "it was overwritten"
    if missing := [f"`{key}`" for key in ("schema", "dino_version", "step", "files", "sha256") if key not in manifest]:
        return f"it lacks {listed(missing)}"
    if manifest["sha256"] != _own_hash({key: value for key, value in manifest.items() if key != "sha256"}):
        return "it differs from what was written"
    number = path.name.rpartition("-")[2]
    same = number.isdigit() and int(number) == manifest["step"]
    return "" if same else f"it belongs to step-{manifest['step']:08d}, not to this folder"


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check every file against the manifest, and return the manifest.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    manifest = manifest_of(path)
    if missing := [name for name in manifest["files"] if not (path / name).is_file()]:
        raise CheckpointError(f"{path} is not a complete checkpoint: it lacks {listed(missing)}")
    try:
        damaged = [name for name, value in manifest["files"].items() if fingerprint(path / name) != value]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {', '.join(damaged)} differ from what was written")
    return manifest


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in the folder, oldest first; they are not verified."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
    return sorted(found, key=step_of)


def prune_checkpoints(folder: Path, keep: int, protected: Collection[int]) -> None:
    """Remove all checkpoints except the newest `keep` and those at `protected` steps."""
    for path in list_checkpoints(folder)[:-keep]:
        if step_of(path) not in protected:
            shutil.rmtree(path, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Clean up after a killed run: remove incomplete checkpoints, and restore one that was being replaced."""
    for path in folder.glob(f"{OLD}step-*"):
        with suppress(OSError):
            target = folder / path.name.removeprefix(OLD)
            shutil.rmtree(path) if target.exists() else os.rename(path, target)
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, step: int) -> list[str]:
    """Rename the checkpoints after `step`, so that a run resumed there doesn't mix with them; return the new names."""
    moved = []
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            aside = folder / f"{ASIDE}{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            moved.append(aside.name)
    return moved


def fingerprint(file: Path) -> list[Any]:
    """Size and SHA-256 of a file."""
    with file.open("rb") as content:
        return [file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()]
