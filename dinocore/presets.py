"""From a preset or a TOML file, plus overrides, to a Config; and from a Config back to TOML."""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from .config import Config
from .errors import ConfigError


def preset_dir() -> Path:
    """Where the shipped presets are: inside an installed package, beside it in a checkout."""
    packaged = Path(__file__).parent / "_presets"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "presets"


def list_presets() -> list[str]:
    """The names that `--preset` takes, sorted."""
    return sorted(path.stem for path in preset_dir().glob("*.toml"))


def preset_title(name: str) -> str:
    """The first comment line of a preset: what it is."""
    return (preset_dir() / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def load_config(source: str | Path | None = None, overrides: Sequence[str] = (), file: Path | None = None) -> Config:
    """Read a preset by name or a TOML file by path; then `file`; then `section.key=value` overrides.

    Raises:
        ConfigError: the source, a key or a value is unknown or of the wrong type.
    """
    settings: dict[str, Any] = {} if source is None else _read(_find(str(source)))
    changes = [_read(file)] if file is not None else []
    for change in [*changes, *map(_parse_override, overrides)]:
        if "backbone_weights" in change.get("model", {}):  # asking for these means starting from them
            _merge(settings, {"train": {"weights": ""}})
        _merge(settings, change)
    return config_from_dict(settings)


def config_from_dict(settings: dict[str, Any]) -> Config:
    """Check settings against the declared ones and fill in the defaults.

    Raises:
        ConfigError: naming every key or value that cannot be used.
    """
    try:
        return Config.model_validate({"model": {}} | settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


def config_to_toml(config: Config) -> str:
    """All settings, also those at their defaults; `load_config` reads it back to an equal Config."""
    return tomli_w.dumps(config.model_dump(mode="json"))


def _find(source: str) -> Path:
    path = Path(source) if source.endswith(".toml") else preset_dir() / f"{source}.toml"
    if not path.is_file():
        raise ConfigError(f"there is no preset or file `{source}`{_hint(source, list_presets())}")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file `{path}`") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def _parse_override(text: str) -> dict[str, Any]:
    """`train.lr=2e-4` -> {"train": {"lr": 2e-4}}; a value that is not TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"`{text}` is not an override; write it as section.key=value, such as train.epochs=24")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _merge(base: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _explain(problem: Any) -> str:
    """One line about one pydantic error, in our words."""
    path = [str(part) for part in problem["loc"]]
    name, value = ".".join(path), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"there is no setting `{name}`{_hint(path[-1], _known_settings(path[:-1]))}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"`{_without_choice(path)}` = {value!r} cannot be used: {problem['msg'].lower()}"


def _without_choice(path: list[str]) -> str:
    """Drop what pydantic adds to a path to tell the members of a union or a tuple apart."""
    return ".".join(part for part in path if part.isidentifier() and part not in ("int", "str", "float"))


def _known_settings(path: list[str]) -> list[str]:
    section: Any = Config
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields) if issubclass(section, BaseModel) else []


def _hint(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known are: {', '.join(known)}"
