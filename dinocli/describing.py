"""What `dino info` does."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from dinocore.convert.info import describe

from .console import data, print_json
from .detector import inside

HIDDEN = ("classes", "facts", "title", "preset_choices")


def show_info(path: Path, json: bool) -> None:
    """Print the facts about a file, or about the best weights of a run's folder."""
    path = path.expanduser()
    facts = describe(inside(path) if path.is_dir() else path)
    if json:
        print_json(facts)
        return
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in _lines(facts).items():
        table.add_row(key.replace("_", " "), escape(str(value)))
    data.print(table)


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    lines = {key: _said(value) for key, value in facts.items() if key not in HIDDEN}
    lines["bytes"] = f"{facts['bytes']:,}"
    lines["numbers"] = f"{facts['numbers']:,}"
    lines["codebase"] = facts.get("title", facts["codebase"])
    choices = facts.get("preset_choices", [])
    lines["preset"] = facts["preset"] or " or ".join(choices) or "none that comes with dino"
    names = [c["name"] if isinstance(c, dict) else c for c in facts["classes"]]
    lines["classes"] = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    lines |= {key: _said(value) for key, value in facts.get("facts", {}).items()}
    return {key: value for key, value in lines.items() if value}


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_said(entry) for entry in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
