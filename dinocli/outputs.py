"""Output files of the inspectors (a figure and a page), and their tables for the terminal."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.markup import escape
from rich.table import Table

from dinocore.system.files import check_file, write_atomically, write_text

from .console import say, stdout

Figure = Annotated[Path | None, typer.Option("--out", "-o", help="A .png file for the figure.")]
Report = Annotated[Path | None, typer.Option(help="An .html file: the figure and the full tables.")]


def check_outputs(out: Path | None, report: Path | None, suffix: str = ".png", *others: str) -> None:
    """Check before any work that the output files can be written; `suffix` is that of --out."""
    if out is not None:
        check_file("--out", out, suffix, *others)
    if report is not None:
        check_file("--report", report, ".html")


def write_image(out: Path, image: Image.Image) -> None:
    """Write an image in the format given by the file's suffix."""
    kind = Image.registered_extensions()[out.suffix.lower()]
    write_atomically(out, lambda temporary: image.save(temporary, kind))


def write_outputs(out: Path | None, report: Path | None, figure: Image.Image, page: Callable[[], str]) -> None:
    """Write the figure and the page, if they were requested."""
    if out is not None:
        write_image(out, figure)
        say(f"wrote {out}")
    if report is not None:
        write_text(report, page())
        say(f"wrote {report}")


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[object]], left: Sequence[str] = (), gap: int = 2
) -> None:
    """Print a table on stdout, with columns right-aligned except those in `left`; None is an empty cell."""
    table = Table(box=None, padding=(0, gap, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    for row in rows:
        cells = (f"{cell:.2f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row)
        table.add_row(*map(escape, cells))
    stdout.print(table)
