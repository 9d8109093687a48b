"""What the Tab key offers: presets, settings with their choices, and the values that an option takes."""

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

Complete = Callable[[str], list[str]]


def choices(*values: str) -> Complete:
    """Offer these values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def preset_names(incomplete: str) -> list[str]:
    """Offer the presets."""
    from dinocore.presets import list_presets

    return [name for name in list_presets() if name.startswith(incomplete)]


def setting_values(incomplete: str) -> list[str]:
    """Offer the settings as `section.key=`, and after the `=` the values of a setting that has a few."""
    from dinocore.settings import list_settings

    settings = {setting.name: setting for setting in list_settings()}
    name, equals, _ = incomplete.partition("=")
    if not equals:
        return [f"{key}=" for key in settings if key.startswith(incomplete)]
    known = settings.get(name)
    return (
        [] if known is None else [f for f in (f"{name}={c}" for c in _choices(known.type)) if f.startswith(incomplete)]
    )


def _choices(kind: Any) -> list[str]:
    """The words that a setting's type lists."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]
