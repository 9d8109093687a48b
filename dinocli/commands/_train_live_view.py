"""What a terminal shows while a training runs: bars, and under them losses and the state of the run side by side."""

from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

GROUPS = {"matching": "matching", "denoising": "denoising", "proposals": "first stage"}
TERMS = {"label": "class", "box": "box", "giou": "GIoU"}


class LiveView(Progress):
    """Bars of steps and of pictures evaluated; four lines of numbers that keep their places."""

    def __init__(self, console: Console):
        self.mean: Mapping[str, float] = {}  # smoothed numbers of the steps
        self.ap = "none yet"
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """What Rich draws again and again."""
        yield self.make_tasks_table(self.tasks)
        if self.mean:
            both = Table.grid(padding=(0, 4))
            both.add_row(loss_table(self.mean), state_table(self.mean, self.ap))
            yield both


def loss_table(mean: Mapping[str, float]) -> Table:
    """A row for each part of the training that there is, a column for each kind of loss."""
    table = Table.grid(padding=(0, 1))
    table.add_column(min_width=11, no_wrap=True)
    for _ in TERMS:
        table.add_column(justify="right", min_width=7, no_wrap=True)
    table.add_row("", *(f"[dim]{name}[/]" for name in TERMS.values()))
    for group, title in GROUPS.items():
        if f"{group}/box" in mean:
            table.add_row(f"[dim]{title}[/]", *(f"{mean[group + '/' + term]:.3f}" for term in TERMS))
    return table


def state_table(mean: Mapping[str, float], ap: str) -> Table:
    """The whole loss, AP so far, speed and memory."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", min_width=6, no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("loss", f"{mean['loss']:.3f}")
    table.add_row("AP", ap)
    table.add_row("speed", f"{speed(mean)}, {waiting(mean):.0f}% waiting for data")
    table.add_row("memory", f"{mean['memory_mb']:,.0f} MB")
    return table


def in_a_line(mean: Mapping[str, float]) -> str:
    """The same numbers for a log: terms in the order class, box, GIoU. Empty before the first step."""
    if not mean:
        return ""
    terms = [
        f"{title} " + "/".join(f"{mean[group + '/' + term]:.2f}" for term in TERMS)
        for group, title in GROUPS.items()
        if f"{group}/box" in mean
    ]
    machine = [speed(mean), f"data {waiting(mean):.0f}%", f"{mean['memory_mb']:.0f} MB"]
    return " · ".join([f"loss {mean['loss']:.2f}", *terms, *machine])


def speed(mean: Mapping[str, float]) -> str:
    """Pictures a second."""
    return f"{mean['images'] / max(mean['seconds'], 1e-9):.1f} img/s"


def waiting(mean: Mapping[str, float]) -> float:
    """Share of the time spent waiting for pictures, in percent."""
    return 100 * mean["data_seconds"] / max(mean["seconds"], 1e-9)
