"""Plot a run's `metrics.jsonl`: losses by step, and average precision by epoch."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from ..words import STAGE_NAMES
from .boxes import PALETTE
from .fonts import load_font

WIDTH, HEIGHT = 1500, 620
MARGIN = 90
LIMITS = (1, 2, 4, 8, 12, 20, 40, 80, 120, 200, 400, 800)  # upper ends of an axis with four intervals
MAX_POINTS = 200  # of a curve; more are averaged


class Curve(NamedTuple):
    """A line of a plot."""

    name: str
    points: list[tuple[float, float]]


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of steps and the rows of evaluations in a `metrics.jsonl`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" in row], [row for row in rows if "AP" in row]


def loss_terms(steps: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """The loss terms in the log, such as `matching/box`, each with its stage and its term, in order of appearance."""
    keys = dict.fromkeys(key for row in steps for key in row if "/" in key)
    return {key: (key.rsplit("/", 1)[0], key.rsplit("/", 1)[1]) for key in keys}


def total(row: Mapping[str, Any], keys: Iterable[str]) -> float | None:
    """The sum of a row's values for these keys; None if it has none of them."""
    values = [row[key] for key in keys if row.get(key) is not None]
    return sum(values) if values else None


def draw_curves(metrics: Path) -> Image.Image:
    """Two plots side by side: losses over steps on the left, AP over epochs on the right."""
    steps, evaluations = read_metrics(metrics)
    losses = [Curve("all", _thin([(row["step"], row["loss"]) for row in steps]))]
    terms = loss_terms(steps)
    for stage in dict.fromkeys(stage for stage, _ in terms.values()):
        keys = [key for key, (key_stage, _) in terms.items() if key_stage == stage]
        points = [(row["step"], value) for row in steps if (value := total(row, keys)) is not None]
        if any(value for _, value in points):
            losses.append(Curve(STAGE_NAMES.get(stage, stage), _thin(points)))
    scores = [Curve(name, [(row["epoch"], row[name]) for row in evaluations]) for name in ("AP50", "AP", "AP75")]
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    top = max((y for curve in losses for _, y in curve.points), default=1.0)
    rounded = next((limit for limit in LIMITS if limit >= top), top)
    _plot(image, 0, "loss by optimizer step", losses, rounded)
    _plot(image, WIDTH // 2, "average precision by epoch", scores, 1.0)
    return image


def _plot(image: Image.Image, left: int, title: str, curves: Sequence[Curve], top: float) -> None:
    canvas = ImageDraw.Draw(image)
    font, large = load_font(20), load_font(26)
    x0, x1, y0, y1 = left + MARGIN, left + WIDTH // 2 - 40, HEIGHT - 70, MARGIN
    right = max((x for curve in curves for x, _ in curve.points), default=1.0)

    def to_canvas(x: float, y: float) -> tuple[float, float]:
        return x0 + (x1 - x0) * x / right, y0 + (y1 - y0) * y / top

    canvas.text((x0, 22), title, fill="black", font=large)
    for y in (top * i / 4 for i in range(5)):
        canvas.line([to_canvas(0, y), to_canvas(right, y)], fill="#DDDDDD", width=1)
        canvas.text((x0 - 12, to_canvas(0, y)[1]), f"{y:g}", fill="black", font=font, anchor="rm")
    for x in ticks(right):
        canvas.text((to_canvas(x, 0)[0], y0 + 14), str(x), fill="black", font=font, anchor="mt")
    canvas.line([(x0, y1), (x0, y0), (x1, y0)], fill="black", width=2)
    legend = x0
    for curve, color in zip(curves, cycle(PALETTE), strict=False):
        points = [to_canvas(*point) for point in curve.points]
        if len(points) > 1:
            canvas.line(points, fill=color, width=3, joint="curve")
        for x, y in points if len(points) <= 50 else ():
            canvas.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        canvas.rectangle((legend, 64, legend + 22, 72), fill=color)
        canvas.text((legend + 30, 68), curve.name, fill="black", font=font, anchor="lm")
        legend += 56 + round(font.getlength(curve.name))


def ticks(end: float) -> list[int]:
    """At most five whole numbers from 0 to `end`, in steps of 1, 2 or 5 times a power of ten."""
    steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
    step = next(step for step in steps if 4 * step >= end)
    return list(range(0, math.floor(end) + 1, step))


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbouring points so that at most MAX_POINTS remain."""
    size = -(-len(points) // MAX_POINTS)
    chunks = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
