"""From what a person writes after `--weights` to a file of ours."""

import hashlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ...errors import CheckpointError, ConfigError, EnvironmentFault
from ...words import typed
from ..convert.files import CONVERTER, Conversion, ConversionRequest, convert_file, is_about_ema
from ..file import save_weights
from ..shipped import SHIPPED
from ..untrusted import holds_config, is_foreign
from .cache import cache_folder, file_name, forget, is_offline, locked, record_of, sha256, write_record, writing
from .catalogue import ADDRESSES, Published, catalogue, check_there, find
from .download import PartialFile, download
from .hub import PREFIX, fetch_from_hub
from .watch import UNWATCHED, Watch


class Original(NamedTuple):
    """A file as its publisher has it."""

    file: Path
    address: str = ""  # where it was fetched from; empty for a local file
    preset: str | None = None  # as the catalogue has it
    sha256: str = ""  # of a file that was downloaded to the cache
    trusted: bool = True  # local, or it has the hash that its publisher gives


def locate(name: str | Path, watch: Watch = UNWATCHED) -> Path:
    """A file of our weights: a path, a run's folder, `bundled`, a published name, `hf:…` or an address.

    What is fetched is checked, converted and kept in the cache; what is in the cache needs no network.

    Raises:
        CheckpointError: it is not there, or what was fetched is not what was asked for.
        ConfigError: the name, or what the file does not tell, has to be said otherwise.
        EnvironmentFault: it cannot be fetched or kept.
    """
    found = original(name, watch)
    if holds_config(found.file) or not (found.address or is_foreign(found.file)):
        return found.file
    return _converted(found, watch)


def original(name: str | Path, watch: Watch = UNWATCHED) -> Original:
    """The same without a conversion.

    Raises:
        CheckpointError, ConfigError, EnvironmentFault: as for `locate`.
    """
    text, path = str(name), Path(name).expanduser()
    if name == "":
        raise CheckpointError("the name of the weights is empty", fix="is a variable of your shell not set?")
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
            f"{publisher.title} has its weights in a folder only, not under addresses: fetch {file} by hand from "
            f"{publisher.folder}, then: dino convert {entry.file or 'FILE'} --preset {entry.preset} --out X.safetensors"
        )
    if entry.address.startswith(PREFIX):
        return Original(fetch_from_hub(entry.address, watch), entry.address, entry.preset, trusted=False)
    return _fetch(entry.address, entry.codebase, watch, entry)._replace(preset=entry.preset)


def _fetch(address: str, folder: str, watch: Watch, entry: Published | None = None) -> Original:
    """The file in the cache, downloaded and checked if it is not there."""
    file = cache_folder() / folder / file_name(address)
    wanted = entry.sha256 if entry else ""
    if (record_of(file) or {}).get("address") != address:
        if is_offline():
            raise EnvironmentFault(
                f"DINO_OFFLINE is set, and {entry.name if entry else address} is not in {file.parent}"
            )
        with locked(file, watch):
            if (record_of(file) or {}).get("address") != address:  # another process may have made it meanwhile
                _download_checked(address, file, wanted, watch)
    return Original(file, address, None, (record_of(file) or {}).get("sha256", ""), bool(wanted))


def _download_checked(address: str, file: Path, wanted: str, watch: Watch) -> None:
    part = PartialFile(file, address)
    resumed = part.size > 0
    watch.say(f"downloading {address} to {file}")
    download(address, part, watch)
    digest = sha256(part.file)
    if not digest.startswith(wanted) and resumed:
        watch.say("its hash is not the published one; starting anew, in case its beginning was another file's")
        part.remove()
        download(address, part, watch)
        digest = sha256(part.file)
    if not digest.startswith(wanted):
        size = part.size
        part.remove()
        raise CheckpointError(
            f"{address} gave {size} bytes whose sha256 begins with {digest[: len(wanted)]} and not, as published, with "
            f"{wanted}; nothing is kept"
        )
    with writing(file):
        part.file.replace(file)
        part.remove()
    write_record(file, {"address": address, "sha256": digest})


def _converted(found: Original, watch: Watch) -> Path:
    """Our form of a fetched file, made once for each content, preset and state of the conversion."""
    digest = found.sha256 or sha256(found.file)
    name = f"{digest[:16]}-{found.preset or 'told'}-{CONVERTER}.safetensors"
    file = cache_folder() / "converted" / name
    if not record_of(file):
        _convert_once(found, file, watch)
    record = record_of(file) or {}
    for note in record.get("notes", ()):  # each time: another file of the same content may have another name
        watch.say(note.replace(typed(record["of"]), typed(found.file)))
    return file


def _convert_once(found: Original, file: Path, watch: Watch) -> None:
    with locked(file, watch):
        if not record_of(file):  # another process may have made it meanwhile
            done = _convert(found)
            watch.say(f"converted {found.file.name}, once")
            weights = done.weights
            if found.address:
                weights.facts["converted_from"]["address"] = _without_secrets(found.address)
            save_weights(file, weights.tensors, weights.config, weights.categories, weights.facts)
            write_record(file, {"of": str(found.file), "notes": list(filter(is_about_ema, done.notes))})


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
        raise CheckpointError(f"{found.address}: {error}; it is not kept") from None


def _without_secrets(address: str) -> str:
    """An address may be signed in its query."""
    return address if address.startswith(PREFIX) else urlsplit(address)._replace(query="", fragment="").geturl()


def _inside(folder: Path) -> Path:
    """The weights of a run's folder, or of a checkpoint's."""
    for name in ("best.safetensors", "ema.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no best.safetensors; name a file of weights or the folder of a run")
