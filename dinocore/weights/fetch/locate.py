"""Turn a `--weights` argument into a local file in our format."""

import hashlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ...errors import CheckpointError, ConfigError, EnvironmentFault
from ...words import typed
from ..convert.files import CONVERTER, Conversion, ConversionRequest, convert_file, is_about_ema
from ..file import save_weights
from ..shipped import SHIPPED
from ..untrusted import holds_config, is_foreign, read_file
from .cache import cache_folder, file_name, forget, is_offline, locked, record_of, sha256, write_record, writing
from .catalogue import ADDRESSES, Published, catalogue, check_there, find
from .download import PartialFile, download
from .hub import PREFIX, fetch_from_hub
from .watch import UNWATCHED, Watch

EXPORTED = (".onnx", ".xml", ".bin", ".pt2")  # exported files, which `dino info` can describe


class Original(NamedTuple):
    """A file in its publisher's format."""

    file: Path
    address: str = ""  # where it was fetched from; empty for a local file
    preset: str | None = None  # from the catalogue
    sha256: str = ""  # of a file downloaded to the cache
    trusted: bool = True  # local, or checked against the hash given by its publisher


def locate(name: str | Path, watch: Watch = UNWATCHED) -> Path:
    """Find weights in our format: a path, a run folder, `bundled`, a published name, `hf:…` or an address.

    Downloads are checked, converted and cached; cached files need no network.

    Raises:
        CheckpointError: the file does not exist, or the download is not the expected file.
        ConfigError: the name is invalid, or the conversion needs options.
        EnvironmentFault: the download failed, or the cache is not writable.
    """
    found = _find(name, watch)
    if found.sha256 and _is_cached(_conversion(found)):  # the conversion has a hash of its own
        return _with_notes(_conversion(found), found, watch)
    found = _unchanged(name, found, watch)
    if holds_config(found.file) or not (found.address or is_foreign(found.file)):
        return found.file
    return _converted(found, watch)


def original(name: str | Path, watch: Watch = UNWATCHED) -> Original:
    """Find weights like `locate`, but without converting them.

    Raises:
        CheckpointError, ConfigError, EnvironmentFault: as for `locate`.
    """
    return _unchanged(name, _find(name, watch), watch)


def _unchanged(name: str | Path, found: Original, watch: Watch) -> Original:
    """The same file, downloaded again if its cached copy has changed on disk.

    Raises:
        EnvironmentFault: it has changed, and the network is disabled.
    """
    if not found.sha256 or sha256(found.file) == found.sha256:
        return found
    changed = f"{found.file} has changed since it was downloaded"
    if is_offline():
        raise EnvironmentFault(f"{changed}, and DINO_OFFLINE is set", fix="unset it once to download them again")
    watch.say(f"{changed}; downloading them again")
    with locked(found.file, watch):
        record = record_of(found.file)  # another process may have downloaded it in the meantime
        if record and sha256(found.file) != record["sha256"]:
            forget(found.file)
    return _find(name, watch)


def _find(name: str | Path, watch: Watch) -> Original:
    text, path = str(name), Path(name).expanduser()
    if name == "":
        raise CheckpointError(
            "the name of the weights is empty", fix="check that the shell variables in your command are set"
        )
    if text in SHIPPED and (text == "bundled" or not path.exists()):
        return Original(SHIPPED[text])
    if text.startswith(PREFIX):
        return Original(fetch_from_hub(text, watch), text)
    if text.startswith(ADDRESSES):
        return _fetch(text, f"web/{hashlib.sha256(text.encode()).hexdigest()[:12]}", watch)
    if path.is_dir():
        return Original(_inside(path))
    entry = None if path.exists() else find(text)
    if entry is not None:
        return _published(entry, watch)
    check_there(text)
    return Original(path)


def _published(entry: Published, watch: Watch) -> Original:
    if not entry.address:
        publisher, file = catalogue().publishers[entry.codebase], entry.file or "the file"
        raise EnvironmentFault(
            f"{publisher.title} publishes its weights only in a folder, not as links: download {file} manually from "
            f"{publisher.folder}, then: dino convert {entry.file or 'FILE'} --preset {entry.preset} --out X.safetensors"
        )
    if entry.address.startswith(PREFIX):
        return Original(fetch_from_hub(entry.address, watch), entry.address, entry.preset, trusted=False)
    return _fetch(entry.address, entry.codebase, watch, entry)._replace(preset=entry.preset)


def _fetch(address: str, folder: str, watch: Watch, entry: Published | None = None) -> Original:
    """The cached file, downloaded and checked if necessary."""
    file = cache_folder() / folder / file_name(address)
    published = entry.sha256 if entry else ""
    if (record_of(file) or {}).get("address") != address:
        if is_offline():
            raise EnvironmentFault(
                f"DINO_OFFLINE is set, and {entry.name if entry else address} is not in {file.parent}"
            )
        with locked(file, watch):
            if (record_of(file) or {}).get(
                "address"
            ) != address:  # another process may have downloaded it in the meantime
                _download_checked(address, file, published, watch)
    return Original(file, address, None, (record_of(file) or {}).get("sha256", ""), bool(published))


def _download_checked(address: str, file: Path, published: str, watch: Watch) -> None:
    part = PartialFile(file, address)
    resumed = part.size > 0
    watch.say(f"downloading {address} to {file}")
    download(address, part, watch)
    digest = sha256(part.file)
    if not digest.startswith(published) and resumed:
        watch.say(
            "its hash does not match the published one; starting over, in case the partial download was of another file"
        )
        part.remove()
        download(address, part, watch)
        digest = sha256(part.file)
    if not digest.startswith(published):
        size = part.size
        part.remove()
        raise CheckpointError(
            f"{address} returned {size} bytes whose sha256 starts with {digest[: len(published)]} instead of the "
            f"published {published}; the file was deleted"
        )
    with writing(file):
        part.file.replace(file)
        part.remove()
    if not published:
        _check_readable(address, file)
    write_record(file, {"address": address, "sha256": digest})


def _check_readable(address: str, file: Path) -> None:
    """Delete a download that is not weights, or incomplete, which shows only here if the server sent no length."""
    if file.suffix.lower() in EXPORTED:
        return
    try:
        read_file(file)
    except CheckpointError as error:
        forget(file)
        raise CheckpointError(f"{address}: {error}; it was deleted") from None


def _conversion(found: Original) -> Path:
    """The cache path of a converted file, by its content, preset and converter version."""
    digest = found.sha256 or sha256(found.file)
    return cache_folder() / "converted" / f"{digest[:16]}-{found.preset or 'auto'}-{CONVERTER}.safetensors"


def _is_cached(conversion: Path) -> bool:
    """Whether a converted file exists unchanged; records of 0.1 have no hash."""
    record = record_of(conversion)
    return record is not None and record.get("sha256") in (None, sha256(conversion))


def _converted(found: Original, watch: Watch) -> Path:
    """The file in our format, converted on first use."""
    file = _conversion(found)
    if not _is_cached(file):
        _convert_once(found, file, watch)
    return _with_notes(file, found, watch)


def _with_notes(file: Path, found: Original, watch: Watch) -> Path:
    record = record_of(file) or {}
    for note in record.get("notes", ()):  # every time, because a file with the same content may have another name
        watch.say(note.replace(typed(record["of"]), typed(found.file)))
    return file


def _convert_once(found: Original, file: Path, watch: Watch) -> None:
    with locked(file, watch):
        if not _is_cached(file):  # another process may have converted it in the meantime
            done = _convert(found)
            watch.say(f"converted {found.file.name}, once")
            weights = done.weights
            if found.address:
                weights.facts["converted_from"]["address"] = _without_secrets(found.address)
            save_weights(file, weights.tensors, weights.config, weights.categories, weights.facts)
            notes = list(filter(is_about_ema, done.notes))
            write_record(file, {"of": str(found.file), "notes": notes, "sha256": sha256(file)})


def _convert(found: Original) -> Conversion:
    try:
        return convert_file(found.file, ConversionRequest(preset=found.preset))
    except ConfigError as error:
        raise ConfigError(
            f"{found.address or found.file}: {error}; that is: dino convert {found.address or found.file} … "
            "--out X.safetensors"
        ) from None
    except CheckpointError as error:
        if found.trusted or found.address.startswith(PREFIX):
            raise
        forget(found.file)
        raise CheckpointError(f"{found.address}: {error}; it was deleted") from None


def _without_secrets(address: str) -> str:
    """An address without its query, which may contain a signature."""
    return address if address.startswith(PREFIX) else urlsplit(address)._replace(query="", fragment="").geturl()


def _inside(folder: Path) -> Path:
    """The weights in a run folder or a checkpoint folder."""
    for name in ("best.safetensors", "ema.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has no best.safetensors; give a weights file or a run folder")
