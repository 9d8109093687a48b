"""Weights on the Hugging Face hub: `hf:org/name`, `hf:org/name/file`, and `@revision` after either."""

import sys
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigError, DinoError, EnvironmentFault
from .cache import is_offline
from .watch import Watch

PREFIX = "hf:"
KINDS = (".safetensors", ".pth", ".pt", ".bin")  # in this order


class HubFile(NamedTuple):
    """The location of a file on the hub."""

    repository: str
    file: str | None  # None: the only file of weights
    revision: str | None


def fetch_from_hub(name: str, watch: Watch) -> Path:
    """The file, in huggingface_hub's own cache; its settings, such as `HF_ENDPOINT` and `HF_TOKEN`, hold.

    Raises:
        ConfigError: the name is invalid, or the file is ambiguous.
        EnvironmentFault: the download failed.
    """
    place = parse(name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        file = place.file or choose(_files(place), name)
        watch.say(f"from the Hugging Face hub: {place.repository}, {file}, revision {place.revision or 'main'}")
        return Path(hf_hub_download(place.repository, file, revision=place.revision, local_files_only=is_offline()))
    except DinoError:
        raise
    except Exception as error:  # besides its own, the errors of whichever HTTP library it uses
        why = str(error).strip().splitlines()
        asked = "DINO_OFFLINE is set and it is not in the hub's cache" if is_offline() else ""
        raise EnvironmentFault(
            f"{name} could not be downloaded from the Hugging Face hub:  "
            f"{asked or (why[0][:200] if why else type(error).__name__)}"
        ) from None


def find_in_hub_cache(name: str) -> Path | None:
    """The newest weights file of a repository in the hub's cache, without network access."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = parse(name).repository.replace("/", "--")
    files = Path(HF_HUB_CACHE).glob(f"models--{repository}/snapshots/*/*")
    found = [file for file in files if file.suffix in KINDS and file.is_file()]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def parse(name: str) -> HubFile:
    """Repository, file and revision of a name.

    Raises:
        ConfigError: it is not of that form.
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
    for kind in KINDS:
        found = sorted(file for file in files if file.endswith(kind))
        found = [file for file in found if "/" not in file] or found
        if len(found) == 1:
            return found[0]
        if found:
            where, at, revision = name.partition("@")
            shown = ", ".join(f"{where}/{file}{at}{revision}" for file in found[:6])
            raise ConfigError(f"{name} has {len(found)} weights files; choose one of them: {shown}")
    raise ConfigError(f"{name} has no weights file (with suffix {', '.join(KINDS)})")


def _files(place: HubFile) -> list[str]:
    """The names of a repository's files, or of those that are already here."""
    from huggingface_hub import HfApi, snapshot_download

    if not is_offline():
        return HfApi().list_repo_files(place.repository, revision=place.revision)
    folder = Path(snapshot_download(place.repository, revision=place.revision, local_files_only=True))
    return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
