"""The folder `checkpoints` of a run: each entry is written completely, hashed, synced, and then renamed."""

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
    """It is whole, but of a version of dino that this one does not know."""


def step_of(path: Path) -> int:
    """The optimizer step that a checkpoint was written after."""
    return int(path.name.rpartition("-")[2])


def publish(
    folder: Path, step: int, size: int, write: Callable[[Path], dict[str, Any]], facts: Mapping[str, Any]
) -> Path:
    """Write `folder`/step-XXXXXXXX whole or not at all.

    Args:
        size: bytes that will be written.
        write: fills a folder; returns fingerprints of files that need not be read again.

    Raises:
        EnvironmentFault: the disk is full or not writable; earlier checkpoints are kept.
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
        os.rename(temporary, target)  # a kill between these two is put right by `tidy`
        sync(folder)
    except (OSError, RuntimeError, EnvironmentFault) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        what = f"the checkpoint {target} cannot be written: {reason}"
        raise EnvironmentFault(f"{what}; {what_is_kept(folder)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
    return target


def what_is_kept(folder: Path) -> str:
    """What to say of the checkpoints of a run that cannot go on."""
    return "earlier checkpoints are intact" if list_checkpoints(folder) else "no checkpoint has been saved yet"


def room_warning(folder: Path, size: int) -> str:
    """What to say, before the first step, of a disk that has less room than a checkpoint takes; else empty."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= size:
        return ""
    return (
        f"a checkpoint takes about {in_bytes(size)}, and {there} has {in_bytes(free)} left, so this run "
        "cannot be saved; free some disk space, or stop it and choose another --output-dir"
    )


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"it needs {size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on that disk")


def manifest_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
        NewerCheckpoint: it was made by a newer version.
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
    """Why this is not what was written as the manifest of a checkpoint; an empty text if it is."""
    if not isinstance(manifest, dict):
        return "it was overwritten"
    if lost := [f"`{key}`" for key in ("schema", "dino_version", "step", "files", "sha256") if key not in manifest]:
        return f"it lacks {listed(lost)}"
    if manifest["sha256"] != _own_hash({key: value for key, value in manifest.items() if key != "sha256"}):
        return "it differs from what was written"
    number = path.name.rpartition("-")[2]
    same = number.isdigit() and int(number) == manifest["step"]
    return "" if same else f"it belongs to step-{manifest['step']:08d}, not to this folder"


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Compare every file with the manifest, which is returned.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    manifest = manifest_of(path)
    if lost := [name for name in manifest["files"] if not (path / name).is_file()]:
        raise CheckpointError(f"{path} is not a complete checkpoint: it lacks {listed(lost)}")
    try:
        damaged = [name for name, value in manifest["files"].items() if fingerprint(path / name) != value]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {', '.join(damaged)} differ from what was written")
    return manifest


def list_checkpoints(folder: Path) -> list[Path]:
    """All that were published, oldest first; whether one is whole, `verify_checkpoint` knows."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
    return sorted(found, key=step_of)


def prune_checkpoints(folder: Path, keep: int, protected: Collection[int]) -> None:
    """Remove all but the newest `keep` and those of `protected` steps."""
    for path in list_checkpoints(folder)[:-keep]:
        if step_of(path) not in protected:
            shutil.rmtree(path, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what a killed run left half-written; put back what it was about to replace."""
    for path in folder.glob(f"{OLD}step-*"):
        with suppress(OSError):
            target = folder / path.name.removeprefix(OLD)
            shutil.rmtree(path) if target.exists() else os.rename(path, target)
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, step: int) -> list[str]:
    """Rename checkpoints after `step`, so that a run that goes on from there doesn't mix with them; their new names."""
    moved = []
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            aside = folder / f"{ASIDE}{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            moved.append(aside.name)
    return moved


def fingerprint(file: Path) -> list[Any]:
    """Size and sha256."""
    with file.open("rb") as content:
        return [file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()]
