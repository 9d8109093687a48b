"""Which classes start from the weights of others, and which anew."""

from rich.markup import escape
from rich.table import Table

MOST_ROWS = 20


def carried_over_table(classes: dict[str, str | None]) -> Table:
    """A row for each class, or, of many classes, the two lists."""
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=len(classes) <= MOST_ROWS)
    if len(classes) > MOST_ROWS:
        for title, names in _lists(classes).items():
            table.add_row(f"[bold]{title}[/]", f"{len(names)}", escape(", ".join(names)))
        return table
    table.add_column("class", overflow="fold")
    table.add_column("starts from", overflow="fold")
    for name, old in classes.items():
        table.add_row(escape(name), "[yellow]new[/]" if old is None else f"[green]{escape(old)}[/]")
    return table


def carried_over_lines(classes: dict[str, str | None]) -> list[str]:
    """The same for a log."""
    return [f"{title}, {len(names)}: {', '.join(names)}" for title, names in _lists(classes).items()]


def _lists(classes: dict[str, str | None]) -> dict[str, list[str]]:
    taken = [name if old == name else f"{name} (from {old})" for name, old in classes.items() if old is not None]
    new = [name for name, old in classes.items() if old is None]
    return {title: names for title, names in (("classes carried over", taken), ("classes new", new)) if names}
