"""Tab completion: presets, settings with their choices, and values of options."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

Complete = Callable[[str], list[str]]


@contextmanager
def words_joined_for_bash() -> Iterator[None]:
    """Join words that bash splits at `=` (`train.lr`, `=` and `2e`), and print only what follows, as bash expects."""
    words, place = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    joined: list[str] = []
    for index, word in enumerate(words[: place + 1]):
        if index and (word == "=" or words[index - 1] == "="):
            joined[-1] += word
        else:
            joined.append(word)
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(joined), str(len(joined) - 1)
    split = joined[-1].removesuffix(words[place].removeprefix("=")) if len(joined) <= place else ""
    prefix = split.removeprefix("--set=") if split.endswith("=") else ""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        print(*(line.removeprefix(prefix) for line in printed.getvalue().splitlines()), sep="\n")


def choices(*values: str) -> Complete:
    """A completion function that offers these values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def preset_names(incomplete: str) -> list[str]:
    """Offer the presets."""
    from dinocore.presets import list_presets

    return [name for name in list_presets() if name.startswith(incomplete)]


def setting_values(incomplete: str) -> list[str]:
    """Offer settings as `section.key=`, and after `=` the choices of a setting, if it has any."""
    from dinocore.settings import list_choices, list_settings

    settings = {setting.name: setting for setting in list_settings()}
    name, equals, _ = incomplete.partition("=")
    if not equals:
        return [f"{key}=" for key in settings if key.startswith(incomplete)]
    known = settings.get(name)
    offered = [] if known is None else [f"{name}={choice}" for choice in list_choices(known.type)]
    return [one for one in offered if one.startswith(incomplete)]
