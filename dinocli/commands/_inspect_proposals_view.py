"""How `dino inspect-proposals` looks on a terminal."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from dinocore.inspect.proposals.figure import Inspected
from dinocore.inspect.proposals.proposals import Proposal, Recall, Step

from ..console import data

MOST_TABLES = 10
SHOWN_IOU = 0.5  # --json has the other


def show_all(found: Sequence[Inspected], top: int, steps: Sequence[Step], rows: Sequence[Recall]) -> None:
    """A table for each picture, but not of very many; then what the layers did and what the proposals cover."""
    for item in found if len(found) <= MOST_TABLES else ():
        if len(found) > 1:
            data.print(f"[bold]{escape(item.file)}[/]")
        _show(item.proposals[:top])
    _show_steps(steps)
    if rows:
        _show_recall(rows)


def _show(proposals: Sequence[Proposal]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = ("query", "level", "score", "anchor", "proposal", "final box", "moved", "IoU", "final")
    for title in titles:
        table.add_column(title, justify="left" if title == "final" else "right", no_wrap=True)
    for p in proposals:
        boxes = [" ".join(f"{v:.0f}" for v in box) for box in (p.anchor, p.proposal, p.final)]
        numbers = [f"{p.moved:.0f} px", f"{p.iou:.2f}", f"{escape(p.final_label)} {p.final_score:.2f}"]
        table.add_row(str(p.query), str(p.level), f"{p.score:.2f}", *boxes, *numbers)
    data.print(table)


def _show_steps(steps: Sequence[Step]) -> None:
    matched = any(step.iou is not None for step in steps)
    title = "boxes of the queries that answer for the objects, mean" if matched else "boxes of the surest queries, mean"
    table = Table("", "moved", *(("IoU", "gain") if matched else ()), box=None, padding=(0, 3, 0, 0))
    data.print(title)
    for step in steps:
        moved = "" if step.moved is None else f"{step.moved:.1f} px"
        numbers = ["" if x is None else f"{x:{form}}" for x, form in ((step.iou, ".3f"), (step.gain, "+.3f"))]
        table.add_row(step.name, moved, *(numbers if matched else ()))
    data.print(table)


def _show_recall(rows: Sequence[Recall]) -> None:
    counts = [f"@{count}" for count in rows[0].shares]
    title = f"share of objects covered with IoU {SHOWN_IOU:.2f} by a picture's first k proposals"
    table = Table("", "objects", *counts, box=None, padding=(0, 3, 0, 0))
    data.print(title)
    for row in rows:
        if row.iou == SHOWN_IOU and (row.level is None or row.size is None):
            name = "all" if row.level is row.size is None else row.size or f"by level {row.level}"
            table.add_row(name, str(row.objects), *(f"{share:.3f}" for share in row.shares.values()))
    data.print(table)
