"""The report of a training run, from the files in its folder."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..draw.curves import loss_terms, read_metrics, total
from ..settings import flat_settings
from ..words import STAGE_NAMES, clock, counted
from .examples import EXAMPLES, best_threshold, count_marks, good_and_bad, headline
from .parts import Chart, Curve, Facts, Gallery, MarkedImage, Page, Section, Table

MAX_POINTS = 300  # of a curve over steps; more are averaged
# of stages and loss terms; others have the names in the log
NAMES = STAGE_NAMES | {"label": "class", "box": "box (L1)", "giou": "box (GIoU)"}
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}

Row = dict[str, Any]


class RunFacts(NamedTuple):
    """Facts about a run that are not in its metrics log."""

    name: str
    summary: Mapping[str, str]  # model, data and similar
    machine: Mapping[str, str]
    settings: Mapping[str, Any]  # nested, as in config.toml
    images: Sequence[MarkedImage]  # of the best evaluation
    images_epoch: int  # the epoch of the best evaluation; 0: none yet


def training_page(metrics: Path, facts: RunFacts) -> Page:
    """The page of a run.

    Args:
        metrics: its metrics.jsonl.
    """
    steps, evaluations = read_metrics(metrics)
    sections = [_summary(steps, evaluations, facts)]
    if evaluations:
        sections.append(_precision(evaluations))
    if steps:
        sections += [_losses(steps), _pace(steps)]
    summary, threshold = "", best_threshold([image.marks for image in facts.images])
    if facts.images:
        counts = {n: count_marks(image.marks, threshold) for n, image in enumerate(facts.images)}
        where = f"In {counted(len(counts), 'validation image')}, the model after epoch {facts.images_epoch}"
        summary = headline(counts.values(), threshold, where)
        parts = [
            Gallery(title, [facts.images[n] for n in chosen], threshold, columns=EXAMPLES)
            for title, chosen in zip(("Best images", "Worst images"), good_and_bad(counts), strict=True)
            if chosen
        ]
        sections.insert(0, Section("Examples", parts))
        text = f"{counted(len(facts.images), 'validation image')}, evenly spaced, from epoch {facts.images_epoch}."
        text += " A box is correct if it matches an object of its class at IoU 0.5; higher scores are matched first."
        sections.append(Section("Predictions", [Gallery("Detections and annotations", facts.images, threshold, text)]))
    settings = [[name, _plain(value)] for name, value in flat_settings(facts.settings)]
    sections.append(Section("Settings", [Table("", ["setting", "value"], settings)]))
    return Page(f"{facts.name}: training", _subtitle(steps, evaluations), sections, summary)


def best_of(evaluations: Sequence[Row]) -> Row | None:
    """The evaluation whose weights are kept as the best: the first with the highest AP."""
    known = [row for row in evaluations if row["AP"] is not None]
    if not any(row["AP"] > 0 for row in known):
        known = known[::-1]  # while AP is 0, the newest weights are the best
    return max(known, key=lambda row: row["AP"]) if known else None


def _subtitle(steps: Sequence[Row], evaluations: Sequence[Row]) -> str:
    best = best_of(evaluations)
    done = f"{counted(steps[-1]['step'], 'step')}, epoch {steps[-1]['epoch']}" if steps else "no step yet"
    return f"{done}. " + (f"Best AP {best['AP']:.4f} after epoch {best['epoch']}." if best else "Not evaluated yet.")


def _summary(steps: Sequence[Row], evaluations: Sequence[Row], facts: RunFacts) -> Section:
    best = best_of(evaluations)
    parts = []
    if best:
        numbers = {name: _known(value) for name, value in best.items()}
        parts.append(
            Facts("Best evaluation", numbers | {"weights": "best.safetensors"}, "A dash means no such objects.")
        )
    seconds = sum(row["seconds"] for row in steps if "seconds" in row)
    parts.append(Facts("Run", dict(facts.summary) | {"time in steps": clock(seconds)}))
    parts.append(Facts("Machine", facts.machine))
    return Section("Summary", parts)


def _precision(evaluations: Sequence[Row]) -> Section:
    epochs = [row["epoch"] for row in evaluations]

    def line(key: str, name: str) -> Curve:
        return Curve(name, epochs, [_known(row.get(key)) for row in evaluations])

    names = [key for key in evaluations[0] if key not in ("step", "epoch", "backend")]
    rows = [[row["epoch"], row["step"], *(_known(row.get(name)) for name in names)] for row in evaluations]
    return Section("Average precision", [
        Chart("By IoU threshold", "epoch", "AP", [line(key, key) for key in ("AP", "AP50", "AP75")]),
        Chart("By object size", "epoch", "AP", [line(key, name) for key, name in SIZES.items()]),
        Table("Every evaluation", ["epoch", "step", *names], rows),
    ])  # fmt: skip


def _losses(steps: Sequence[Row]) -> Section:
    """The loss by stage and by term; the curves of each chart add up to the total."""
    terms = loss_terms(steps)

    def lines(part: int) -> list[Curve]:
        """A curve for each stage (part 0) or each term (part 1) in the log."""
        names = dict.fromkeys(parts[part] for parts in terms.values())
        groups = {name: [key for key, parts in terms.items() if parts[part] == name] for name in names}
        return [line(NAMES.get(name, name), keys) for name, keys in groups.items()]

    def line(name: str, keys: Sequence[str]) -> Curve:
        return _line(name, steps, lambda row: total(row, keys))

    single = [
        line(f"{NAMES.get(stage, stage)}, {NAMES.get(term, term)}", [key]) for key, (stage, term) in terms.items()
    ]
    by_stage, by_term, each = ([one for one in curves if any(one.y)] for curves in (lines(0), lines(1), single))
    whole = _line("all", steps, lambda row: row["loss"])
    return Section("Loss", [
        Chart("By stage", "step", "loss", [whole, *by_stage]),
        Chart("By term", "step", "loss", [whole, *by_term]),
        Chart("Each term of each stage", "step", "loss", each),
    ], "Weighted terms, as summed in the loss." + _averaged(steps))  # fmt: skip


def _pace(steps: Sequence[Row]) -> Section:
    charts = [
        ("Time", "seconds per step", {"whole step": "seconds", "waiting for images": "data_seconds"}),
        ("Gradient", "norm before clipping", {"gradient": "grad_norm"}),
        ("Learning rate", "learning rate", {"learning rate": "lr"}),
        ("Memory", "peak, MB", {"memory": "memory_mb"}),
    ]
    return Section("Pace", [
        Chart(title, "step", label, [_line(name, steps, itemgetter(key)) for name, key in kinds.items()])
        for title, label, kinds in charts
    ], _averaged(steps).strip())  # fmt: skip


def _line(name: str, rows: Sequence[Row], value: Any) -> Curve:
    """A curve over steps, with averages of neighbouring rows if there are more than MAX_POINTS."""
    size = -(-len(rows) // MAX_POINTS)
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    means = []
    for chunk in chunks:
        known = [number for row in chunk if (number := value(row)) is not None]
        means.append(sum(known) / len(known) if known else None)
    return Curve(name, [chunk[-1]["step"] for chunk in chunks], means)


def _averaged(steps: Sequence[Row]) -> str:
    size = -(-len(steps) // MAX_POINTS)
    return f" Each point is the mean of {size} steps." if size > 1 else ""


def _known(value: Any) -> Any:
    """None for COCO's -1, which means undefined."""
    return None if value == -1 else value


def _plain(value: Any) -> str | None:
    """A setting's value as in config.toml, without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else None if value is None else str(value)
