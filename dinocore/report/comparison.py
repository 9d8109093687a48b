"""The report that compares two evaluations, with the numbers of `dino eval --compare --json`."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..config import DataConfig
from ..data.annotations import Annotations
from ..evaluate.compare import Comparison, comparison_json
from ..words import counted
from .evaluation import BOXES, ERRORS, MAX_CLASSES, confusion, error_counts, known, pair, reliability
from .examples import marked_image, open_images
from .parts import Cell, Chart, Curve, Drawing, Facts, Gallery, Page, Part, Section, Table

LETTERS = {"a": "A", "b": "B"}
MAX_ROWS, MAX_NAME = 30, 22  # rows of the drawing; characters of a name
# of the drawing, in pixels
LEFT, RIGHT, WIDTH, ROW, TOP = 190, 70, 640, 26, 40
BETTER, WORSE = "#0072B2", "#D55E00"  # by Okabe and Ito
COLUMNS = ("A", "B", "B - A", "from", "to", "verdict")
INTERVAL = "From, to: 95 % interval of B - A for other images of the same kind; if it contains 0, "
INTERVAL += "these images do not tell A and B apart."


def comparison_page(
    comparison: Comparison, annotations: Annotations, facts: dict[str, Cell], config: DataConfig
) -> Page:
    """The metrics of both, their differences, curves in shared charts, and the images where they differ most.

    Args:
        facts: names and values shown at the top: A, B, data.
        config: how to read images; unreadable ones are skipped.
    """
    answer = comparison_json(comparison)
    sides = {LETTERS[side]: numbers for side, numbers in answer["sides"].items()}
    sections = [
        Section("COCO", [Facts("Compared", facts), _drawing(answer), _numbers(answer)]),
        Section("Classes", [_classes(answer)]),
        Section("Curves", _curves(sides)),
        Section(
            "Errors",
            [_tide(answer), *(part for side, one in sides.items() for part in confusion(f"Confusion of {side}", one))],
        ),
        Section("Calibration", [reliability(sides), _calibration(sides)]),
        Section("Images", _images(comparison, answer, annotations, config)),
    ]
    return Page(
        "Comparison",
        f"A and B on {counted(len(annotations.image_ids), 'image')}, {counted(sides['A']['objects'], 'object')}",
        sections,
    )


def _row(one: dict[str, Any]) -> list[Cell]:
    low, high = pair(one["interval"])
    verdict = None
    if low is not None and high is not None:
        verdict = "B is better" if low > 0 else "A is better" if high < 0 else "no clear difference"
    return [known(one["a"]), known(one["b"]), one["change"], low, high, verdict]


def _drawing(answer: dict[str, Any]) -> Drawing:
    rows = {name: one for name, one in answer["summary"].items() if one["interval"]}
    rows |= {f"AP of {name}": one for name, one in answer["classes"].items() if one["interval"]}
    return Drawing("B - A", draw_differences(rows), "B is better to the right of the line. Bars: 95 % intervals.")


def _numbers(answer: dict[str, Any]) -> Table:
    rows = [[name, *_row(one)] for name, one in answer["summary"].items()]
    return Table("All numbers", ["number", *COLUMNS], rows, f"{INTERVAL} For LRP and ECE, lower is better.")


def _classes(answer: dict[str, Any]) -> Table:
    objects = {name: one["objects"] for name, one in answer["sides"]["a"]["classes"].items()}
    order = sorted(answer["classes"], key=lambda name: -abs(answer["classes"][name]["change"] or 0) * objects[name])
    rows = [[name, objects[name], *_row(answer["classes"][name])] for name in order]
    text = f"{INTERVAL} Sorted by difference times the number of objects in the class."
    return Table("AP by class", ["class", "objects", *COLUMNS], rows, text)


def _curves(sides: dict[str, dict[str, Any]]) -> list[Part]:
    def lines(x: str, values: dict[str, Any]) -> list[Curve]:
        return [Curve(side, sides[side][x], y) for side, y in values.items()]

    parts: list[Part] = []
    if sides["A"]["precision"]:
        for iou in reversed(sides["A"]["precision"]):
            both = lines("recalls", {side: one["precision"][iou] for side, one in sides.items()})
            parts.append(Chart(f"Precision and recall, {iou}", "recall", "precision", both, "Mean over classes."))
    f1 = lines("scores", {side: one["curves"]["f1"] for side, one in sides.items()})
    parts.append(Chart("F1 by score threshold", "score threshold", "F1", f1, "IoU 0.5, all classes together."))
    classes = sorted(sides["A"]["classes"].items(), key=lambda item: -item[1]["objects"])
    for name in [name for name, one in classes if one["precision"]][:MAX_CLASSES]:
        both = lines("recalls", {side: one["classes"][name]["precision"]["IoU 0.50"] for side, one in sides.items()})
        parts.append(Chart(f"{name}: precision and recall", "recall", "precision", both, "IoU 0.5."))
    return parts


def _tide(answer: dict[str, Any]) -> Table:
    counts = [answer["sides"][side]["tide"]["count"] for side in LETTERS]
    rows: list[list[Cell]] = []
    for name, words in ERRORS.items():
        one = answer["tide"][name]
        rows.append([name, words, *(count[name] for count in counts), one["a"], one["b"], one["change"]])
    columns = ["error", "meaning", "count of A", "count of B", "dAP of A", "dAP of B", "B - A"]
    text = "How much AP50 would increase without one kind of error (TIDE); lower is better."
    return Table("Where AP50 is lost", columns, rows, text)


def _calibration(sides: dict[str, dict[str, Any]]) -> Table:
    rows: list[Sequence[Cell]] = []
    for side, one in sides.items():
        best = one["best"] or dict.fromkeys(("threshold", "f1", "precision", "recall"))
        errors = one["calibration"]["ece"], one["calibration_above_threshold"]["ece"]
        rows.append([side, *best.values(), *errors])
    columns = ["", "best threshold", "F1", "precision", "recall", "calibration error", "above the threshold"]
    return Table("Best threshold of all classes", columns, rows, "IoU 0.5; expected calibration error.")


def _images(comparison: Comparison, answer: dict[str, Any], annotations: Annotations, config: DataConfig) -> list[Part]:
    """Each image twice, with the detections of A and of B."""
    rows, images = [], []
    opened = open_images(annotations, (one["a"]["image_id"] for one in answer["pictures"]), config)
    for one, (name, image) in zip(answer["pictures"], opened, strict=True):
        image_id, *of_a = one["a"].values()
        rows.append([name, image_id, *of_a, *list(one["b"].values())[1:], one["change"]])
        if image is not None:
            for side, analysis in (("a", comparison.a), ("b", comparison.b)):
                title = f"{LETTERS[side]}: {name}"
                images.append(marked_image(analysis.matches, image_id, image, title, error_counts(one[side])))
    thresholds = [one["threshold"] for one in answer["sides"].values()]
    rule = f"Wrong detections plus missed objects at IoU 0.5, for A with scores of at least {thresholds[0]:.3g}, "
    rule += f"B of at least {thresholds[1]:.3g}: each at its best threshold."
    columns = ["image", "id", *(f"{word} in {side}" for side in "AB" for word in ("right", "wrong", "missed"))]
    table = Table("Where they differ most", [*columns, "more errors in B"], rows, rule)
    if not images:
        return [table]
    text = f"{BOXES} The notes count at each side's best threshold; the slider sets which boxes are shown."
    return [Gallery("A next to B", images, sum(thresholds) / 2, text, columns=2), table]


def draw_differences(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw differences with their intervals as an SVG; an interval that excludes 0 is coloured, with a filled dot.

    The colours of text and lines are those of the page around it.

    Args:
        rows: by name, each with `change` and `interval`; the first MAX_ROWS are drawn.
    """
    shown = dict(list(rows.items())[:MAX_ROWS])
    largest = max([abs(end) for one in shown.values() for end in one["interval"]] + [0.001])
    half = (WIDTH - RIGHT - LEFT) / 2

    def x(value: float) -> float:
        return round(LEFT + half + value / largest * half, 1)

    height = TOP + ROW * len(shown) + 30
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-size="13"'
        ' aria-label="Differences with their intervals; the table below has the numbers">',
        _text(x(0) - 12, 18, "\N{LEFTWARDS ARROW} A is better", "end"),
        _text(x(0) + 12, 18, "B is better \N{RIGHTWARDS ARROW}", "start"),
    ]
    for value in _ticks(largest):
        color = "var(--line)" if value else "var(--soft)"
        parts.append(f'<path d="M{x(value)} {TOP - 8}V{height - 24}" style="stroke:{color}"/>')
        parts.append(_text(x(value), height - 6, f"{value:+.4g}" if value else "0", "middle"))
    for n, (name, one) in enumerate(shown.items()):
        y = TOP + ROW * (n + 0.5)
        low, high = one["interval"]
        color = "var(--soft)" if low <= 0 <= high else BETTER if low > 0 else WORSE
        fill = "var(--page)" if low <= 0 <= high else color
        short = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
        parts += [
            _text(LEFT - 14, y + 4, short, "end"),
            f'<path d="M{x(low)} {y}H{x(high)}" style="stroke:{color};stroke-width:3"/>',
            f'<circle cx="{x(one["change"])}" cy="{y}" r="5" style="fill:{fill};stroke:{color};stroke-width:2"/>',
            _text(WIDTH - 2, y + 4, f"{one['change']:+.4f}", "end"),
        ]
    return "\n".join([*parts, "</svg>"])


def _ticks(largest: float) -> list[float]:
    """Round values around 0, up to three on each side."""
    power = 10 ** math.floor(math.log10(largest))
    step = power * next(factor for factor in (0.5, 1, 2, 5) if largest / (factor * power) < 4)
    return [n * step for n in range(-3, 4) if abs(n * step) <= largest]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" style="fill:var(--ink)">{escape(text)}</text>'
