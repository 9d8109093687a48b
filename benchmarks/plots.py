"""Plot the results in docs/benchmarks/ as figures in docs/images/; needs matplotlib (the extra `bench`).

python benchmarks/plots.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

DOCS = Path(__file__).parent.parent / "docs"
INK, PALE = "#2a6f97", "#a9bcd0"
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "dino"})


def main() -> None:
    """Plot all results that exist."""
    models = [file for file in sorted((DOCS / "benchmarks").glob("*.json")) if "faster" in _rows(file)[0]]
    if models:
        draw_bars(models, DOCS / "images" / "benchmark-models.png")
    operation = DOCS / "benchmarks" / "operation.json"
    if operation.exists():
        draw_operation(_rows(operation), DOCS / "images" / "benchmark-operation.png")
    growth = DOCS / "benchmarks" / "growth.json"
    if growth.exists():
        draw_growth(_rows(growth), DOCS / "images" / "benchmark-growth.png")


def draw_bars(files: list[Path], out: Path) -> None:
    """One panel per file, one bar per contestant, with its seconds and its speed-up over the baseline."""
    figure, axes = plt.subplots(len(files), 1, figsize=(7, 1.9 * len(files)), squeeze=False, layout="constrained")
    for axis, file in zip(axes.flat, files, strict=True):
        rows = _rows(file)[::-1]
        colors = [INK if row["name"].startswith("ours") else PALE for row in rows]
        bars = axis.barh([row["name"] for row in rows], [row["median_s"] for row in rows], color=colors)
        axis.bar_label(bars, [f" {row['median_s']:.3g} s ({row['faster']:.1f}x)" for row in rows])
        axis.set_title(file.stem.replace("-", " "), loc="left")
        axis.set_xlim(0, 1.25 * max(row["median_s"] for row in rows))
        axis.set_xlabel("seconds")
    _save(figure, out)


def draw_operation(rows: list[dict], out: Path) -> None:
    """The speed-up over the reference backend, for each size, precision and direction."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names = [f"{row['size']}, {row['value']}, {row['what']}" for row in rows][::-1]
    bars = axis.barh(names, [row["ratio"] for row in rows][::-1], color=INK)
    axis.bar_label(bars, fmt=" %.1fx")
    axis.set_title("Deformable attention: times faster than grid_sample", loc="left")
    axis.set_xlim(0, 1.15 * max(row["ratio"] for row in rows))
    _save(figure, out)


def draw_growth(rows: list[dict], out: Path) -> None:
    """Log-log plots, each with its slope."""
    series = list(dict.fromkeys(row["series"] for row in rows))
    figure, axes = plt.subplots(1, len(series), figsize=(2.4 * len(series), 2.8), layout="constrained")
    for axis, name in zip(axes, series, strict=True):
        points = [row for row in rows if row["series"] == name]
        axis.loglog([p["at"] for p in points], [p["median_s"] for p in points], "o-", color=INK)
        axis.set_title(f"{name}: slope {points[0]['slope']:.2f}", loc="left")
        axis.set_xticks([p["at"] for p in points], [_short(p["at"]) for p in points])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_ylim(0.4 * min(p["median_s"] for p in points), 2.5 * max(p["median_s"] for p in points))
        axis.set_xlabel({"area": "pixels", "batch": "images"}.get(name, name))
    axes[0].set_ylabel("seconds")
    _save(figure, out)


def _short(number: int) -> str:
    return f"{number / 1e6:.2g} M" if number >= 1e5 else str(number)


def _rows(file: Path) -> list[dict]:
    found = json.loads(file.read_text())
    return found.get("rows", [{}]) if isinstance(found, dict) else [{}]  # other files have another structure


def _save(figure: plt.Figure, out: Path) -> None:
    figure.savefig(out, dpi=130)
    print(out)


if __name__ == "__main__":
    main()
