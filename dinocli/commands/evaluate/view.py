"""The terminal output of `dino eval`: the 12 metrics, the classes, and the causes of lost AP50."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ...console import stdout

if TYPE_CHECKING:
    from dinocore.evaluate.analysis import Analysis
    from dinocore.evaluate.bootstrap import Interval
    from dinocore.evaluate.compare import Comparison, MetricDifference

ROWS = {
    "AP": "IoU 0.50:0.95", "AP50": "IoU 0.50", "AP75": "IoU 0.75", "APs": "small", "APm": "medium", "APl": "large",
    "AR1": "1 detection", "AR10": "10 detections", "AR100": "100 detections", "ARs": "small", "ARm": "medium",
    "ARl": "large",
}  # fmt: skip
MAX_CLASSES = 100  # in the terminal; --json and --report have all


def show_analysis(analysis: Analysis, evaluated: str, backend: str) -> None:
    """Print the 12 metrics, the classes, and the causes of lost AP50."""
    stdout.print(_summary(analysis))
    stdout.print(f"{evaluated} ({backend})")
    if analysis.samples is not None:
        stdout.print("[dim]in brackets: 95 % interval, by resampling images[/]")
    stdout.print()
    stdout.print(_classes(analysis))
    if len(analysis.classes) > MAX_CLASSES:
        stdout.print(f"[dim]and {len(analysis.classes) - MAX_CLASSES} more classes, in --json and --report[/]")
    stdout.print()
    names = list(analysis.tide.gain)
    gains = _table(["AP50 lost by (TIDE)", *names])
    gains.add_row("dAP", *(f"{gain:.4f}" for gain in analysis.tide.gain.values()))
    gains.add_row("count", *map(str, analysis.tide.count.values()))
    stdout.print(gains)
    stdout.print()
    stdout.print(_last_line(analysis))


def show_comparison(comparison: Comparison, names: Sequence[str]) -> None:
    """Print A, B and the difference for each metric, with its confidence interval if there is one."""
    parts = {"": comparison.summary, "AP of class": comparison.classes, "AP50 lost by (TIDE)": comparison.tide}
    for title, differences in parts.items():
        table = _table([title, "A", "B", "B - A", "95 % interval", ""])
        for name, one in list(differences.items())[:MAX_CLASSES]:
            table.add_row(escape(name), *_difference(one))
        stdout.print(table)
        stdout.print()
    for letter, name in zip("AB", names, strict=True):
        stdout.print(f"{letter}: {escape(name)}")


def _difference(one: MetricDifference) -> list[str]:
    change = "-" if one.change is None else f"{one.change:+.4f}"
    if one.interval is None:
        return [_number(one.a), _number(one.b), change, "", ""]
    low, high = one.interval
    verdict = "" if low <= 0 <= high else ("[green]better[/]" if low > 0 else "[red]worse[/]")
    return [_number(one.a), _number(one.b), change, f"{low:+.4f} to {high:+.4f}", verdict]


def _summary(analysis: Analysis) -> Table:
    table = _table(["precision", "", "", "", "recall", "", "", ""], left=(0, 1, 3, 4, 5, 7))
    names = list(ROWS)
    for left, right in zip(names[:6], names[6:], strict=True):
        cells = []
        for name in (left, right):
            value = _number(analysis.summary[name])
            cells += [f"[bold]{name}[/]", ROWS[name], value, _interval(analysis.interval(name))]
        table.add_row(*cells)
    return table


def _classes(analysis: Analysis) -> Table:
    table = _table(["class", "objects", "AP", "", "AP50", "best threshold", "F1", "precision", "recall", "LRP"])
    for k, one in enumerate(analysis.classes[:MAX_CLASSES]):
        values = [one.averages["AP"], one.averages["AP50"]]
        best = [None] * 4 if one.best is None else list(one.best)
        lrp = one.lrp.error if one.lrp else None
        ap, ap50, *rest = map(_number, (*values, *best, lrp))
        table.add_row(escape(one.name), str(one.objects), ap, _interval(analysis.class_interval(k)), ap50, *rest)
    return table


def _last_line(analysis: Analysis) -> str:
    best = analysis.best
    parts = [f"best overall threshold {best.threshold:.4f} (F1 {best.f1:.4f})"] if best else []
    if analysis.lrp["error"] is not None:
        parts.append(f"LRP {analysis.lrp['error']:.4f}")
    if analysis.calibration.ece is not None:
        parts.append(f"calibration error {analysis.calibration.ece:.4f}")
    if best and analysis.calibration_above_threshold.ece is not None:
        parts.append(f"above that threshold {analysis.calibration_above_threshold.ece:.4f}")
    return ", ".join(parts) or "no correct detection at any threshold"


def _table(titles: Iterable[str], left: Sequence[int] = (0,)) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for n, title in enumerate(titles):
        table.add_column(title, justify="left" if n in left else "right")
    return table


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"[dim]({interval.low:.3f} to {interval.high:.3f})[/]"


def _number(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.4f}"
