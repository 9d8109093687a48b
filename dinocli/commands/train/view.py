"""Show a training run: progress bars with losses in a terminal, otherwise a line at intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dinocore.draw.curves import draw_curves, loss_terms, read_metrics
from dinocore.report.training import best_of
from dinocore.system.files import ESCAPED, write_atomically
from dinocore.words import STAGE_NAMES, clock, counted, roughly, typed

from ...console import stderr, stdout, warn

if TYPE_CHECKING:
    from dinocore.train.context import RunContext
    from dinocore.train.dry_run import Expectation
    from dinocore.train.events import Evaluated, Event, Finished, Step


SMOOTHING = 0.95
EVERY_STEPS, EVERY_SECONDS = 50, 30.0  # between lines in the log, whichever comes first


class TrainingView:
    """Shows events on stderr and writes plain lines to the run's log.txt."""

    def __init__(self, context: RunContext):
        self.context = context
        self.mean: dict[str, float] = {}
        self.began = time.monotonic()
        self.progress = LiveView(stderr)
        self.best = ""
        self.first = self.total = 0  # steps of this session
        self.broken = False
        self.last_line = (0, self.began)  # step and time
        self.steps: TaskID | None = None
        self.evaluating: TaskID | None = None

    def __enter__(self) -> TrainingView:
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            with suppress(OSError):
                self._log(f"ended: {error}")
        self.progress.stop()

    def show(self, event: Event) -> None:
        """Show one event. If that fails, warn once; the training continues."""
        try:
            self._show(event)
        except Exception as error:  # such as a full disk or a closed terminal, which must not end a long training
            if not self.broken:
                self.broken = True
                with suppress(Exception):
                    warn(f"the progress display failed ({type(error).__name__}: {error}); the run continues")

    def _show(self, event: Event) -> None:
        from dinocore.train.events import Evaluated, Evaluating, Finished, Saved, Started, Step, Warned

        match event:
            case Started(facts=facts, transfer=transfer):
                self._started(facts)
                self._carried_over(transfer.classes if transfer else {})
            case Step():
                self._step(event)
            case Evaluating(done=done, total=total):
                self._evaluating(done, total)
            case Evaluated():
                try:
                    self._evaluated(event)
                finally:  # even if the terminal was closed
                    curves = draw_curves(self.context.folder / "metrics.jsonl")
                    write_atomically(self.context.folder / "curves.png", lambda path: curves.save(path, "PNG"))
            case Saved(path=path, step=step, seconds=seconds):
                self._log(f"step {step}: saved {path} in {seconds:.2f} s")
            case Warned(message=message):
                self._line(f"warning: {message}", "yellow")
            case Finished():
                self._finished(event)

    def _finished(self, event: Finished) -> None:
        if event.why:
            self._line(event.why)
        took, images = clock(time.monotonic() - self.began), typed(event.run / "images")
        best = f"best AP {event.best_ap:.4f}" if event.best_ap >= 0 else "AP was not measured"
        self._line(f"done in {took}; {best}; weights: {event.best_path}", "green")
        self._line(f"next: dino predict IMAGE --weights {typed(event.best_path)} --save-images {images}")

    def _started(self, facts: dict[str, str]) -> None:
        from dinocore.train.context import exceeded_limits

        for key, value in facts.items():
            stderr.print(f"[bold]{key:<11}[/]{escape(value)}")
            self._log(f"{key}: {value}")
        self._earlier()
        for note in self.context.data.notes:
            self._line(f"note: {note}", "yellow")
        for limit in exceeded_limits(self.context.config, self.context.data):
            self._line(f"warning: {limit}", "yellow")

    def _earlier(self) -> None:
        """Load the AP values so far of a resumed run."""
        log = self.context.folder / "metrics.jsonl"
        evaluations = read_metrics(log)[1] if log.is_file() else []
        best = best_of(evaluations)
        if best is not None:
            self._ap_so_far(evaluations[-1]["AP"], f"best {best['AP']:.4f} in epoch {best['epoch']}")

    def _ap_so_far(self, now: float | None, best: str) -> None:
        self.best = best
        self.progress.ap = "no objects to evaluate on" if now is None or now < 0 else f"{now:.4f}, {best}"

    def _carried_over(self, classes: dict[str, str | None]) -> None:
        for line in carried_over_lines(classes):
            self._log(line)
        if classes:
            stderr.print(carried_over_table(classes), soft_wrap=False)

    def _step(self, event: Step) -> None:
        for key, value in event.numbers.items():
            if math.isfinite(value):
                self.mean[key] = SMOOTHING * self.mean.get(key, value) + (1 - SMOOTHING) * value
        if self.steps is None:
            self.first, self.total = event.step, event.total_steps
            self.last_line = (event.step - 1, self.began)
            self.steps = self.progress.add_task("", total=event.total_steps, completed=event.step - 1)
        epochs = self.context.config.train.epochs
        self.progress.mean = self.mean
        self.progress.update(self.steps, completed=event.step, description=f"epoch {event.epoch}/{epochs}")

        step, when = self.last_line
        if event.step - step >= EVERY_STEPS or time.monotonic() - when >= EVERY_SECONDS:
            self.last_line = (event.step, time.monotonic())
            line = f"epoch {event.epoch}/{epochs}  step {event.step}/{event.total_steps}  {in_a_line(self.mean)}"
            line += f" · rate {event.numbers['lr']:.2g}{self._left(event.step)}"
            self._log(line)
            if not stderr.is_terminal:
                stderr.print(escape(line))

    def _evaluating(self, done: int, total: int) -> None:
        if self.evaluating is None:
            self.evaluating = self.progress.add_task("evaluating", total=total)
        self.progress.update(self.evaluating, completed=done, visible=done < total)
        if time.monotonic() - self.last_line[1] >= EVERY_SECONDS:
            self.last_line = (self.last_line[0], time.monotonic())
            self._log(f"evaluating {done}/{total}")
            if not stderr.is_terminal:
                stderr.print(f"evaluating {done}/{total}")
        if done == total:
            self.progress.remove_task(self.evaluating)
            self.evaluating = None

    def _evaluated(self, event: Evaluated) -> None:
        summary = event.metrics.summary
        numbers = "  ".join(f"{name} {summary[name]:.4f}" for name in ("AP", "AP50", "AP75"))
        numbers = numbers if summary["AP"] >= 0 else "AP: no objects to evaluate on"
        numbers += f"  ({event.metrics.evaluated})"
        best = "  best so far" if event.best else ""
        took = clock(time.monotonic() - self.began)
        self._ap_so_far(summary["AP"], f"best {summary['AP']:.4f} in epoch {event.epoch}" if event.best else self.best)
        short = f"epoch {event.epoch}/{event.epochs}  {took}  {numbers}"
        self._log(f"{short}  {in_a_line(self.mean)}{best}")
        stderr.print(
            f"{short}{best}" if stderr.is_terminal else f"{short}  {in_a_line(self.mean)}{self._left(event.step)}{best}"
        )

    def _left(self, step: int) -> str:
        """The remaining time, at the average speed so far."""
        per_step = (time.monotonic() - self.began) / max(1, step - self.first + 1)
        left = per_step * (self.total - step)
        return f" · ETA {clock(left)}" if left > 0 else ""

    def _line(self, text: str, style: str = "") -> None:
        self._log(text)
        stderr.print(f"[{style}]{escape(text)}[/]" if style else escape(text))

    def _log(self, text: str) -> None:
        with (self.context.folder / "log.txt").open("a", encoding="utf-8", errors=ESCAPED) as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def show_expectation(expected: Expectation) -> None:
    """Print the result of a dry run."""
    steps = counted(expected.steps, "step")
    basis = "estimated from a few steps, one evaluation and one save"
    first = f"{expected.largest_pass_s:.2f} s for the first pass, with the largest images"
    rows = {
        "memory": f"{expected.peak_memory_mb:.0f} MB at most",
        "step": f"{expected.step_s:.2f} s; {first}",
        "evaluation": f"{expected.evaluation_s:.1f} s, {counted(expected.evaluations, 'time')}",
        "save": f"{expected.save_s:.2f} s, {expected.checkpoint_mb:.0f} MB",
        "duration": f"about {roughly(expected.run_s)} for {steps}, {basis}",
    }
    for key, value in rows.items():
        stdout.print(f"{key:<12}{value}")


STAGES = ("matching", "denoising", "proposals")  # in this order, then any others
TERMS = {"label": "class", "giou": "GIoU"}  # others as logged


class LiveView(Progress):
    """Progress bars for steps and evaluated images, and four lines of numbers at fixed positions."""

    def __init__(self, console: Console):
        self.mean: Mapping[str, float] = {}  # smoothed values over steps
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
        """The content that Rich redraws regularly."""
        yield self.make_tasks_table(self.tasks)
        if self.mean:
            both = Table.grid(padding=(0, 4))
            both.add_row(loss_table(self.mean), state_table(self.mean, self.ap))
            yield both


def loss_parts(mean: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """All logged losses: for each part of the model, its values by loss term."""
    parts: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
    for key, (stage, term) in loss_terms([mean]).items():
        parts.setdefault(stage, {})[TERMS.get(term, term)] = mean[key]
    return {STAGE_NAMES.get(stage, stage): terms for stage, terms in parts.items() if terms}


def loss_table(mean: Mapping[str, float]) -> Table:
    """A table with a row for each part of the model and a column for each loss term."""
    parts = loss_parts(mean)
    names = list(dict.fromkeys(name for terms in parts.values() for name in terms))
    table = Table.grid(padding=(0, 1))
    table.add_column(min_width=11, no_wrap=True)
    for _ in names:
        table.add_column(justify="right", min_width=7, no_wrap=True)
    table.add_row("", *(f"[dim]{name}[/]" for name in names))
    for title, terms in parts.items():
        table.add_row(f"[dim]{title}[/]", *(f"{terms[name]:.3f}" if name in terms else "" for name in names))
    return table


def state_table(mean: Mapping[str, float], ap: str) -> Table:
    """Total loss, AP so far, speed and memory."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", min_width=6, no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("loss", f"{mean['loss']:.3f}")
    table.add_row("AP", ap)
    table.add_row("speed", f"{speed(mean)}, {waiting(mean):.0f}% waiting for data")
    table.add_row("memory", f"{mean['memory_mb']:,.0f} MB")
    return table


def in_a_line(mean: Mapping[str, float]) -> str:
    """The same losses as one line for a log: class, box, GIoU, then any others. Empty before the first step."""
    if not mean:
        return ""
    terms = [f"{title} " + "/".join(f"{value:.2f}" for value in parts.values())
             for title, parts in loss_parts(mean).items()]  # fmt: skip
    machine = [speed(mean), f"data {waiting(mean):.0f}%", f"{mean['memory_mb']:.0f} MB"]
    return " · ".join([f"loss {mean['loss']:.2f}", *terms, *machine])


def speed(mean: Mapping[str, float]) -> str:
    """Images per second."""
    return f"{mean['images'] / max(mean['seconds'], 1e-9):.1f} img/s"


def waiting(mean: Mapping[str, float]) -> float:
    """Percentage of the time spent waiting for images."""
    return 100 * mean["data_seconds"] / max(mean["seconds"], 1e-9)


MOST_ROWS = 20


def carried_over_table(classes: dict[str, str | None]) -> Table:
    """A row for each class or, if there are many classes, the two lists."""
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
    """The same as lines for a log."""
    return [f"{title}, {len(names)}: {', '.join(names)}" for title, names in _lists(classes).items()]


def _lists(classes: dict[str, str | None]) -> dict[str, list[str]]:
    taken = [name if old == name else f"{name} (from {old})" for name, old in classes.items() if old is not None]
    new = [name for name, old in classes.items() if old is None]
    return {title: names for title, names in (("classes carried over", taken), ("classes new", new)) if names}
