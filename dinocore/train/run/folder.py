"""Create the folder of a run, or find the checkpoint to resume it from."""

import shutil
from itertools import count
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import CheckpointError, ConfigError, EnvironmentFault
from ...presets import config_to_toml, load_config
from ...system.files import check_writable, write_text
from ...weights.file import save_weights
from ...words import listed, typed
from .checkpoint_folder import NewerCheckpoint, list_checkpoints, set_aside, step_of, tidy, verify_checkpoint
from .lock import LOCK, OWNER
from .sinks import FOLDERS

NEWEST = "auto"
PARTS = (
    "metrics.jsonl", "log.txt", "best.safetensors", "best_examples.json", "curves.png", "report.html",
    "diverged.safetensors",
)  # fmt: skip


def check_run(run: Path, overwrite: bool, option: str = "") -> None:
    """Check before any work that a new run can use this folder; nothing is changed.

    Args:
        option: the command-line option, for messages.

    Raises:
        ConfigError: it is a file, or is not empty.
        EnvironmentFault: it is not writable.
    """
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{option}{run} is a file; give a folder")
    if run.is_dir() and any(path.name not in (LOCK, OWNER) for path in run.iterdir()) and not overwrite:
        advice = "continue that run with --resume auto" if option else "choose another folder"
        raise ConfigError(
            f"{run} is not empty; {advice}, or overwrite it with {'--overwrite' if option else 'overwrite=True'}"
        )
    check_writable(run)


def make_run(run: Path, option: str = "") -> Path:
    """Create the folder of a run, if it does not exist, and return it.

    Args:
        option: as for `check_run`.

    Raises:
        EnvironmentFault: it cannot be created.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"{option}{run} cannot be created: {error.strerror or error}; give a writable folder"
        ) from error
    return run


def make_new_run(run: Path) -> Path:
    """Create a folder of this name, with `-2`, `-3` … appended if it exists already, and return it.

    Raises:
        EnvironmentFault: it cannot be created.
    """
    make_run(run.parent)
    for number in count(1):
        folder = run if number == 1 else run.with_name(f"{run.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise EnvironmentFault(f"{folder} cannot be created: {error.strerror or error}") from error
        return folder
    raise AssertionError("there is always a further number")


def prepare_run(run: str | Path, overwrite: bool, option: str = "") -> None:
    """Create or clear a folder for a new run.

    Args:
        option: as for `check_run`.

    Raises:
        ConfigError: as for `check_run`.
        EnvironmentFault: it cannot be created or written.
    """
    run = Path(run)
    check_run(run, overwrite, option)
    make_run(run, option)
    try:
        for name in PARTS:
            (run / name).unlink(missing_ok=True)
        for name in ("checkpoints", *FOLDERS):
            if (run / name).is_dir():
                shutil.rmtree(run / name)
        write_text(run / "log.txt", "")
    except OSError as error:
        raise EnvironmentFault(f"{run} cannot be written: {error.strerror or error}") from error


def find_run(root: Path, having: str = "best.safetensors") -> Path | None:
    """The run below a folder with the newest file of this name; None if there is none."""
    found = [path for path in root.glob(f"*/{having}") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def run_config(run: Path) -> Config:
    """The config that a run was started with.

    Raises:
        CheckpointError: the folder is not a run folder, or its config is incomplete.
    """
    if not (run / "config.toml").is_file():
        raise CheckpointError(f"{run} is not a run folder: it has no config.toml")
    config = load_config(run / "config.toml")
    if missing := [f"[{name}]" for name in Config.model_fields if name not in config.model_fields_set]:
        raise CheckpointError(f"{run / 'config.toml'} is truncated or empty: it lacks {listed(missing)}; restore it")
    return config


def find_checkpoint(run: Path, name: str) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run (`auto`), or the one at a given path.

    Returns:
        its folder, or None if the run has no checkpoint yet; and warnings for the user.

    Raises:
        CheckpointError: all are damaged, or the newest was written by a newer version of dino.
    """
    tidy(run / "checkpoints")
    found = list_checkpoints(run / "checkpoints")
    if name != NEWEST:
        path = Path(name)
        try:
            verify_checkpoint(path)
        except NewerCheckpoint:
            raise
        except CheckpointError as error:
            raise CheckpointError(f"{error}; use the newest intact one: --resume {typed(run)}") from error
        return path, []
    if not found:
        return None, [f"{run} has no checkpoint yet; starting at step 1"]
    damaged = []
    for path in reversed(found):
        try:
            verify_checkpoint(path)
        except NewerCheckpoint:
            raise  # an older one would silently discard the training done by the newer version
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            return path, [f"{error}; using the previous one" for error in damaged]
    best = run / "best.safetensors"
    fix = f"start a new run with --set train.weights={typed(best)}" if best.is_file() else "start over with --overwrite"
    raise CheckpointError(f"no checkpoint of {run} is intact: {damaged[0]}; {fix}")


def branch_off(run: Path, checkpoint: Path | None) -> list[str]:
    """Move checkpoints newer than the one that the run resumes from aside; return messages for the user."""
    if checkpoint is None:
        return []
    moved = set_aside(run / "checkpoints", step_of(checkpoint))
    return [f"newer than {checkpoint.name}, moved aside: {', '.join(moved)} in {run}/checkpoints"] if moved else []


def write_config(run: str | Path, config: Config) -> None:
    """Save the run's settings, including all defaults."""
    write_text(Path(run) / "config.toml", config_to_toml(config))


def save_best(run: Path, model, config: Config, categories, facts: dict[str, Any]) -> Path:
    """Replace the run's best weights."""
    path = run / "best.safetensors"
    save_weights(path, model.state_dict(), config, categories, facts)
    return path
