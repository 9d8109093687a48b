"""Pages that MkDocs writes while it builds the site: commands.md, from the signatures of the commands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from dinocli.app import COMMANDS, load_command

VALUES = {Path: "PATH", int: "N", float: "NUMBER", str: "TEXT"}
INTRODUCTION = """# Command reference

Made from the commands themselves: what `dino COMMAND --help` prints, on one page. Results go to stdout, messages to
stderr, and the exit code says what happened ([errors](errors.md)).
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the command reference to the pages of `docs/`."""
    files.append(File.generated(config, "commands.md", content=command_page()))
    return files


def command_page() -> str:
    """The reference of all commands as Markdown."""
    return "\n".join([INTRODUCTION, *(line for name in COMMANDS for line in _command(name))])


def _command(name: str) -> Iterator[str]:
    command = load_command(name)
    text, _, example = command.help.partition("Example: ")
    arguments = [option for option in command.params if not option.opts[0].startswith("-")]
    options = [option for option in command.params if option.opts[0].startswith("-") and not option.hidden]
    shown = [f"[{a.name.upper()}]" if not a.required else a.name.upper() for a in arguments]
    repeated = ["…" if a.nargs == -1 else "" for a in arguments]
    usage = " ".join([f"dino {name}", *(a + b for a, b in zip(shown, repeated, strict=True)), "[OPTIONS]"])
    yield f"## dino {name}\n\n{text.strip()}\n\n```text\n{usage}\n```\n\nExample: `{example.strip()}`\n"
    if arguments:
        yield "| argument | meaning |\n|---|---|"
        yield from (f"| `{argument.name.upper()}` | {_cell(argument.help)} |" for argument in arguments)
        yield ""
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or "", []).append(option)
    for panel, rows in panels.items():
        yield f"| {panel or 'option'} | meaning |\n|---|---|"
        yield from map(_row, rows)
        yield ""


def _row(option: Any) -> str:
    flags = " ".join(f"`{flag}`" for flag in option.opts)
    value = "" if option.is_flag else option.metavar or VALUES.get(option.type_descriptor.annotation, "TEXT")
    named = _cell(f"{flags} {value}".strip())
    default = "" if option.is_flag or option.default in (None, "", []) else f" Default: `{option.default}`."
    return f"| {named} | {_cell(option.help)}{default} |"


def _cell(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("|", "\\|")
