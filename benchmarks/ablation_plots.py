"""Tables and figures of the runs finished by ablations.py, which calls this with `--plot`."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from ablation_variants import DEFAULT, STUDIES

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLORS = {"once": "#0072B2", "twice": "#D55E00", "not detached": "#009E73"}  # distinguishable for colour-blind readers
MARKERS = "os^Dv"  # one per seed
Lines = list[dict[str, Any]]
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def report(study: str, lines: Lines, images: Path = IMAGES) -> None:
    """Print a study's table in Markdown and draw its figures, using the seeds that all variants have.

    Args:
        lines: finished runs with the same length and settings.
    """
    runs = {name: found for name in STUDIES[study] if (found := [line for line in lines if line["variant"] == name])}
    seeds = set.intersection(*({line["seed"] for line in found} for found in runs.values()))  # for comparable means
    runs = {name: [line for line in found if line["seed"] in seeds] for name, found in runs.items()}
    print(table(runs))
    draw_ap(runs, images / f"{study}-ap.png")
    if study == "look-forward":
        print(gradient_table(runs))
        draw_gradients(runs, images / "look-forward-gradients.png")


def table(runs: dict[str, Lines]) -> str:
    """AP of each variant, and the difference to the default with the same seed."""
    rows = [
        "| variant | seeds | AP | against the default, by seed | AP50 | AP, `nms_iou=0.8` | seconds |",
        "|---" * 7 + "|",
    ]
    for name, lines in runs.items():
        base = {line["seed"]: line.get("AP") for line in runs.get(DEFAULT, [])}
        pairs = [(line["AP"], base.get(line["seed"])) for line in lines if "AP" in line]
        apart = "" if name == DEFAULT else ", ".join(f"{a - b:+.3f}" for a, b in pairs if b is not None)
        numbers = [_spread(lines, key, 3) for key in ("AP", "AP50", "AP_nms")]
        fallen = sum("diverged" in line for line in lines)
        count = f"{len(lines)}, {fallen} diverged" if fallen else f"{len(lines)}"
        cells = [name, count, numbers[0], apart, *numbers[1:], _spread(lines, "seconds", 0)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def gradient_table(runs: dict[str, Lines]) -> str:
    """Gradient norms before clipping: median over steps and seeds, and maximum."""
    layers = range(len(next(iter(runs.values()))[0]["history"][0]["layers"]))
    names = ["whole model", *(f"moves, layer {i + 1}" for i in layers), *(f"weights, layer {i + 1}" for i in layers)]
    names += ["box heads", "first stage"]
    rows = ["| variant | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for name, lines in runs.items():
        steps = [row for line in lines for row in line["history"]]
        series = [[row["grad_norm"] for row in steps]]
        series += [[row[part][i] for row in steps] for part in ("moves", "layers") for i in layers]
        series += [[row[part] for row in steps] for part in ("box_heads", "proposer")]
        cells = [f"{statistics.median(numbers):.2f} ({max(numbers):.2f})" for numbers in series]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw_ap(runs: dict[str, Lines], out: Path) -> None:
    """Plot AP: a marker per seed, and a line at the mean."""
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.38 * len(runs)), layout="constrained")
    for row, (name, lines) in enumerate(reversed(runs.items())):
        values = [line["AP"] for line in lines if "AP" in line]
        color = COLORS.get(name.split(",")[0], "#0072B2")
        for line in lines:
            marker = MARKERS[line["seed"] % len(MARKERS)]
            axis.scatter(
                line.get("AP", []), row if "AP" in line else [], marker=marker, color=color, alpha=0.8, zorder=2
            )
        if values:
            axis.plot([statistics.mean(values)] * 2, [row - 0.3, row + 0.3], color="black", zorder=3)
    labels = [f"{name} (default)" if name == DEFAULT else name for name in reversed(runs)]
    axis.set_yticks(range(len(runs)), labels)
    axis.grid(axis="x", color="#dddddd")
    axis.set_xlabel("AP; a shape for each seed, a stroke at the mean")
    _save(figure, out)


def draw_gradients(runs: dict[str, Lines], out: Path) -> None:
    """Plot gradient norms by step and decoder layer: at the box refinements, and of the layer's weights."""
    num_layers = len(next(iter(runs.values()))[0]["history"][0]["layers"])
    figure, axes = plt.subplots(
        2, num_layers, figsize=(3 * num_layers, 5.2), sharex=True, sharey="row", layout="constrained"
    )
    labels = {"moves": "at the layer's move of its boxes", "layers": "of its weights"}
    for row, (part, label) in enumerate(labels.items()):
        for layer, axis in enumerate(axes[row]):
            for name, lines in runs.items():
                steps, medians = _by_step(lines, part, layer)
                dashed = "--" if name.endswith("no norm") else "-"
                axis.plot(steps, medians, dashed, color=COLORS[name.split(",")[0]], linewidth=1.2, label=name)
            axis.set_title(f"decoder layer {layer + 1}", loc="left")
            if part == "layers":
                axis.set_yscale("log")
                axis.set_xlabel("step")
        axes[row][0].set_ylabel(f"gradient norm\n{label}")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, out)


def _by_step(lines: Lines, part: str, layer: int) -> tuple[list[int], list[float]]:
    """The median over seeds at each recorded step."""
    found: dict[int, list[float]] = {}
    for line in lines:
        for row in line["history"]:
            found.setdefault(row["step"], []).append(row[part][layer])
    return sorted(found), [statistics.median(found[step]) for step in sorted(found)]


def _spread(lines: Lines, key: str, digits: int) -> str:
    """Mean, minimum and maximum."""
    values = [line[key] for line in lines if key in line]
    if not values:
        return ""
    mean, least, most = (f"{number:.{digits}f}" for number in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} … {most})"


def _save(figure: plt.Figure, out: Path) -> None:
    figure.savefig(out, dpi=130)
    print(out)
