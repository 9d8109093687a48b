"""The catalogue of published checkpoints."""

import difflib
import tomllib
import warnings
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...errors import CheckpointError, ConfigError, EnvironmentFault
from ..shipped import SHIPPED
from .cache import cache_folder, file_name, record_of
from .hub import PREFIX, find_in_hub_cache

ADDRESSES = ("https://", "http://")
FILE = Path(__file__).with_name("catalogue.toml")


class CatalogueModel(BaseModel):
    """A frozen model that rejects undeclared fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Publisher(CatalogueModel):
    title: str
    reported: str  # where the AP is reported
    folder: str = ""  # a folder to open manually, if files have no links


class Published(CatalogueModel):
    name: Annotated[str, Field(pattern=r"^[a-z]+/[a-z0-9-]+$")]
    former_name: str = ""  # still works
    preset: str
    ap: Annotated[float, Field(gt=0, lt=100)]  # on COCO val2017, as reported by the publisher
    about: str
    address: Annotated[str, Field(pattern=r"^(https://.+\.pth|hf:[\w-]+/[\w-]+)?$")] = ""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{8,64})?$")] = ""  # its first digits, if published
    original_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""  # of the file before a mirror wrapped it
    file: str = ""  # its name in the publisher's folder, if known

    @property
    def codebase(self) -> str:
        """official, detrex or mmdet."""
        return self.name.partition("/")[0]


class Catalogue(CatalogueModel):
    publishers: dict[str, Publisher]
    weights: Annotated[tuple[Published, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _fits_together(self) -> "Catalogue":
        names = [name for entry in self.weights for name in (entry.name, entry.former_name) if name]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{sorted(duplicates)} occur twice")
        for entry in self.weights:
            if not (entry.address or self.publishers[entry.codebase].folder):
                raise ValueError(f"{entry.name} has no address, and its publisher no folder")
        return self


@cache
def catalogue() -> Catalogue:
    """All published checkpoints in the catalogue."""
    return Catalogue.model_validate(tomllib.loads(FILE.read_text(encoding="utf-8")))


def find(name: str) -> Published | None:
    """The checkpoint with this name; a former name also works, with a warning."""
    entry = next((entry for entry in catalogue().weights if name and name in (entry.name, entry.former_name)), None)
    if entry is not None and name == entry.former_name:
        message = f"the weights {name} are now called {entry.name}; the old name still works"
        warnings.warn(message, FutureWarning, stacklevel=1)
    return entry


def find_or_refuse(name: str) -> Published:
    """The checkpoint with this name, which must be in the catalogue.

    Raises:
        ConfigError: it is not; the error suggests the nearest name.
    """
    entry = find(name)
    if entry is None:
        raise ConfigError(f"no published weights `{name}`{hint(name)}")
    return entry


def check_there(name: str) -> None:
    """Check that a name is an existing file or folder, an address or a published name, without importing PyTorch.

    Raises:
        CheckpointError: it is none of these; the error suggests the nearest name.
    """
    named = name in SHIPPED or name.startswith((PREFIX, *ADDRESSES)) or find(name) is not None
    if not (named or Path(name).expanduser().exists()):
        raise CheckpointError(f"the weights {name}: this file does not exist{hint(name)}")


def cached(entry: Published) -> Path | None:
    """The file of a published name, if it has been downloaded."""
    if entry.address.startswith(PREFIX):
        return find_in_hub_cache(entry.address)
    try:
        file = cache_folder() / entry.codebase / file_name(entry.address)
    except EnvironmentFault:  # there is no cache folder
        return None
    return file if entry.address and record_of(file) else None


def hint(name: str) -> str:
    """A suggestion for an unknown name."""
    close = difflib.get_close_matches(name, [entry.name for entry in catalogue().weights], n=1)
    return f"; did you mean {close[0]}?" if close else "; `dino weights` lists the published ones"
