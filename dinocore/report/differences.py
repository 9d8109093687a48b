"""Differences with their intervals as one SVG: a row each, around the line of no difference."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

MOST, LETTERS = 30, 22  # rows; letters of a name
LEFT, RIGHT, WIDTH, ROW, TOP = 190, 70, 640, 26, 40
BETTER, WORSE = "#0072B2", "#D55E00"  # Okabe and Ito's


def draw_differences(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The first of `rows`, each with `change` and `interval`; an interval beside 0 has a colour and a filled dot.

    Colours of letters and lines are those of the page around it.
    """
    shown = dict(list(rows.items())[:MOST])
    most = max([abs(end) for one in shown.values() for end in one["interval"]] + [0.001])
    half = (WIDTH - RIGHT - LEFT) / 2

    def x(value: float) -> float:
        return round(LEFT + half + value / most * half, 1)

    height = TOP + ROW * len(shown) + 30
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-size="13"'
        ' aria-label="Differences with their intervals; the table below has the numbers">',
        _text(x(0) - 12, 18, "\N{LEFTWARDS ARROW} A is better", "end"),
        _text(x(0) + 12, 18, "B is better \N{RIGHTWARDS ARROW}", "start"),
    ]
    for value in _ticks(most):
        color = "var(--line)" if value else "var(--soft)"
        parts.append(f'<path d="M{x(value)} {TOP - 8}V{height - 24}" style="stroke:{color}"/>')
        parts.append(_text(x(value), height - 6, f"{value:+.4g}" if value else "0", "middle"))
    for n, (name, one) in enumerate(shown.items()):
        y = TOP + ROW * (n + 0.5)
        low, high = one["interval"]
        color = "var(--soft)" if low <= 0 <= high else BETTER if low > 0 else WORSE
        fill = "var(--page)" if low <= 0 <= high else color
        short = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
        parts += [
            _text(LEFT - 14, y + 4, short, "end"),
            f'<path d="M{x(low)} {y}H{x(high)}" style="stroke:{color};stroke-width:3"/>',
            f'<circle cx="{x(one["change"])}" cy="{y}" r="5" style="fill:{fill};stroke:{color};stroke-width:2"/>',
            _text(WIDTH - 2, y + 4, f"{one['change']:+.4f}", "end"),
        ]
    return "\n".join([*parts, "</svg>"])


def _ticks(most: float) -> list[float]:
    """Round values around 0, up to three on a side."""
    power = 10 ** math.floor(math.log10(most))
    step = power * next(share for share in (0.5, 1, 2, 5) if most / (share * power) < 4)
    return [n * step for n in range(-3, 4) if abs(n * step) <= most]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" style="fill:var(--ink)">{escape(text)}</text>'
