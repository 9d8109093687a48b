"""Weights on the Hugging Face hub: `hf:org/name`, `hf:org/name/file`, and `@revision` after either."""

import sys
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigError, DinoError, EnvironmentFault
from .cache import is_offline
from .watch import Watch

PREFIX = "hf:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # in order of preference


class HubFile(NamedTuple):
    """The location of a file on the hub."""

    repository: str
    file: str | None  # None: the only weights file
    revision: str | None


def fetch_from_hub(name: str, watch: Watch) -> Path:
    """Download a file into huggingface_hub's own cache; its variables, such as `HF_ENDPOINT` and `HF_TOKEN`, apply.

    Raises:
        ConfigError: the name is invalid, or the file is ambiguous.
        EnvironmentFault: the download failed.
    """
    location = parse(name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        file = location.file or choose(_files(location), name)
        watch.say(f"from the Hugging Face hub: {location.repository}, {file}, revision {location.revision or 'main'}")
        offline = is_offline()
        return Path(hf_hub_download(location.repository, file, revision=location.revision, local_files_only=offline))
    except DinoError:
        raise
    except Exception as error:  # its own errors, and those of its HTTP library
        reason = str(error).strip().splitlines()
        offline_note = "DINO_OFFLINE is set and it is not in the hub's cache" if is_offline() else ""
        raise EnvironmentFault(
            f"{name} could not be downloaded from the Hugging Face hub:  "
            f"{offline_note or (reason[0][:200] if reason else type(error).__name__)}"
        ) from None


def find_in_hub_cache(name: str) -> Path | None:
    """The newest weights file of a repository in the hub's cache, without network access."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = parse(name).repository.replace("/", "--")
    files = Path(HF_HUB_CACHE).glob(f"models--{repository}/snapshots/*/*")
    weights = [file for file in files if file.suffix in SUFFIXES and file.is_file()]
    return max(weights, key=lambda file: file.stat().st_mtime, default=None)


def parse(name: str) -> HubFile:
    """Repository, file and revision of a name.

    Raises:
        ConfigError: the name is not `hf:org/name[/file][@revision]`.
    """
    where, at, revision = name.removeprefix(PREFIX).partition("@")
    parts = where.split("/", 2)
    if len(parts) < 2 or not all(parts) or (at and not revision):
        raise ConfigError(
            f"{name} is not a valid hub name; write hf:org/name or hf:org/name/file, optionally followed by @revision"
        )
    return HubFile("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, revision or None)


def choose(files: list[str], name: str) -> str:
    """The only weights file among these; safetensors before pickles, top level before folders.

    Raises:
        ConfigError: there is none, or more than one.
    """
    for suffix in SUFFIXES:
        weights = sorted(file for file in files if file.endswith(suffix))
        weights = [file for file in weights if "/" not in file] or weights
        if len(weights) == 1:
            return weights[0]
        if weights:
            where, at, revision = name.partition("@")
            shown = ", ".join(f"{where}/{file}{at}{revision}" for file in weights[:6])
            raise ConfigError(f"{name} has {len(weights)} weights files; choose one of them: {shown}")
    raise ConfigError(f"{name} has no weights file (with suffix {', '.join(SUFFIXES)})")


def _files(location: HubFile) -> list[str]:
    """The names of a repository's files; offline, of those in the cache."""
    from huggingface_hub import HfApi, snapshot_download

    if not is_offline():
        return HfApi().list_repo_files(location.repository, revision=location.revision)
    folder = Path(snapshot_download(location.repository, revision=location.revision, local_files_only=True))
    return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
