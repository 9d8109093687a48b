"""Every setting with its comment in `config.py`: what it means, and its name in official DINO."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import tomli_w

from .config import Config, SettingsGroup

FIELD = re.compile(r"    (\w+): .*?(?:  # (.*))?")
OFFICIAL = re.compile(r"\[([a-zA-Z]\w*(?:, [a-zA-Z]\w*)*)(?: = \w+)?\]")


class Setting(NamedTuple):
    """One setting."""

    name: str  # such as model.num_queries
    default: Any
    type: Any
    comment: str  # what it means; may be empty
    official: str  # its name or names in official DINO's config; may be empty


def list_settings() -> list[Setting]:
    """All settings in the order in which they are declared."""
    return list(_settings(Config, ""))


def list_choices(kind: Any) -> list[str]:
    """The words that a setting's type lists; none where any text or number will do."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [choice for part in get_args(kind) for choice in list_choices(part)]


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings one by one, each under its whole name, such as model.num_queries."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def commented_toml(config: Config) -> str:
    """All settings of a config as TOML, each with its comment; `load_config` reads it back to an equal Config."""
    comments = {setting.name: _whole(setting) for setting in list_settings()}
    lines, section = [], ""
    for line in _toml(config.model_dump(mode="json")).splitlines():
        if header := re.fullmatch(r"\[([\w.]+)\]", line):
            section = header[1]
        key = line.partition(" = ")[0]
        comment = comments.get(f"{section}.{key}")
        lines.append(f"{line}  # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """`docs/settings.md`."""
    lines = [
        "# Settings\n",
        "Every setting, its default, its meaning, and its name in official DINO's config file. `dino train --set",
        "train.lr=2e-4` changes one; `dino presets NAME` prints those of a preset. This page is written by",
        "`python -m dinocore.settings` from the comments in `dinocore/config.py`.",
    ]
    section = ""
    for setting in list_settings():
        of = setting.name.rpartition(".")[0]
        if of != section:
            section = of
            lines += [f"\n## {section}\n", "| setting | default | meaning | official DINO |", "|---|---|---|---|"]
        default = _toml({"value": _plain(setting.default)}).removeprefix("value = ").strip()
        key = setting.name.rpartition(".")[2]
        official = ", ".join(f"`{name}`" for name in setting.official.split(", ") if name)
        meaning = setting.comment.replace("|", "\\|")
        lines.append(f"| `{key}` | `{default}` | {meaning} | {official} |")
    return "\n".join(lines) + "\n"


def _settings(section: type[SettingsGroup], path: str) -> Iterator[Setting]:
    comments = _comments(section)
    for key, field in section.model_fields.items():
        name = f"{path}{key}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup):
            yield from _settings(field.annotation, f"{name}.")
            continue
        text = comments.get(key, "")
        official = ", ".join(OFFICIAL.findall(text))
        comment = OFFICIAL.sub("", text).strip().rstrip(";")
        comment = re.sub(r"^, |(?<=;) ,", "", comment)
        yield Setting(name, field.default, field.annotation, comment, official)


def _comments(section: type[SettingsGroup]) -> dict[str, str]:
    """The comment at the end of each field, also where its value stands on lines of its own."""
    found, open_field = {}, ""
    for line in inspect.getsource(section).splitlines():
        field = FIELD.fullmatch(line)
        if field and field[1] in section.model_fields:
            found[field[1]] = field[2] or ""
            open_field = field[1] if line.endswith(("(", "[")) else ""
        elif open_field and "  # " in line:
            found[open_field] = line.rpartition("  # ")[2]
            open_field = ""
    return found


def _whole(setting: Setting) -> str:
    official = f"official DINO: {setting.official}" if setting.official else ""
    return "; ".join(part for part in (setting.comment, official) if part)


def _toml(value: dict[str, Any]) -> str:
    """TOML with each list on one line."""
    return re.sub(
        r"\[\n\s+(.*?),\n\]", lambda m: f"[{re.sub(chr(10) + ' +', ' ', m[1])}]", tomli_w.dumps(value), flags=re.S
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    sys.stdout.write(settings_page())
