"""Show where deformable attention samples: a layer's sampling points and weights for one query or token.

The figure has a panel for each head; the colour of a point shows its level, the size its weight.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..boxes import to_pixels
from ..data.batch import Batch
from ..draw.boxes import PALETTE
from ..draw.figure import GREY, INK, PAPER, Corners, Panel, legend, open_panel, whole_panel, write
from ..errors import ConfigError
from ..model.deform_attn import MSDeformAttn
from ..model.ops import Sampled, reference, sample, watch_sampling
from ..predict import Detector
from ..report.page import render_page
from ..report.parts import Cell, Facts, Gallery, Mark, MarkedImage, Page, Section, Table

GAP = 20
CELL = (380, 285)  # width and height of a head's panel
MAX_RADIUS = 16  # of the point with the largest weight
SHOWN_WEIGHT = 0.9  # fraction of the weight that the heads' panels show; the overview shows all of it


class Attention(NamedTuple):
    """The sampling points of one query or token in one layer, in pixels of the upright image; heads count from 0."""

    part: str  # "decoder" or "encoder"
    layer: int  # from 0
    index: int  # of the query, or of the token over all levels
    level: int | None  # of the token; None for a query
    label: str  # the query's best class in the last layer, or ""
    score: float  # of that class
    box: list[float] | None  # the query's box in the last layer, x0 y0 x1 y1
    center: list[float]  # of that box, or of the token
    points: Tensor  # (M, L, P, 2) x and y
    weights: Tensor  # (M, L, P), sum to 1 over each head
    size: tuple[int, int]  # height and width of the image
    # largest difference between the sum over these points and the layer's output, relative to its largest value
    error: float

    def rows(self) -> Iterator[tuple[int, int, float, float, float]]:
        """Head, level, x, y and weight of every point."""
        for head, level, point in itertools.product(*map(range, self.weights.shape)):
            yield head, level, *self.points[head, level, point].tolist(), float(self.weights[head, level, point])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("part", "layer", "index", "level", "label", "score", "box", "center", "error")
        heads: list[list[dict[str, float]]] = [[] for _ in self.weights]
        for head, level, x, y, weight in self.rows():
            heads[head].append({"level": level, "x": x, "y": y, "weight": weight})
        return {name: getattr(self, name) for name in names} | {"heads": heads}


@contextmanager
def record_sampling(attention: MSDeformAttn) -> Iterator[list[Sampled]]:
    """Record what this layer samples within the block, with the implementation that exposes locations and weights."""
    records: list[Sampled] = []
    original = attention.sample

    def recording(*arguments: Any) -> Tensor:
        with watch_sampling(records.append):
            return sample(*arguments)

    attention.sample = recording
    try:
        yield records
    finally:
        attention.sample = original


def attention_of_query(detector: Detector, batch: Batch, layer: int = -1, query: int | None = None) -> Attention:
    """The sampling points of a decoder layer for a query of the batch's only image; default: the most confident one.

    Raises:
        ConfigError: there is no such layer or query.
    """
    layers = detector.model.decoder.layers
    layer = _checked_index(layer, len(layers), "decoder layer", from_last=True)
    with record_sampling(layers[layer].cross_attn) as records:  # pyright: ignore[reportArgumentType]
        output = detector.forward(batch)
    scores, labels = output.final.logits[0].float().cpu().sigmoid().max(-1)  # (N,)
    query = int(scores.argmax()) if query is None else _checked_index(query, len(scores), "query")
    box = to_pixels(output.final.boxes[0, query], batch.sizes[0]).tolist()
    points = _sampling_points(records[0], query, batch.sizes[0])
    name = detector.categories[int(labels[query])].name
    center = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    return Attention("decoder", layer, query, None, name, float(scores[query]), box, center, *points)


def attention_at(
    detector: Detector, batch: Batch, pixel: tuple[float, float], layer: int = -1, level: int = 0
) -> Attention:
    """The sampling points of an encoder layer for the token of a level at a pixel (x, y) of the upright image.

    Raises:
        ConfigError: there is no such layer or level, or the pixel is not in the image.
    """
    layers = detector.model.encoder.layers
    layer = _checked_index(layer, len(layers), "encoder layer", from_last=True)
    height, width = batch.sizes[0]
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ConfigError(f"--at {pixel[0]:g},{pixel[1]:g} is outside the image of {width} x {height} pixels")
    with record_sampling(layers[layer].attn) as records:  # pyright: ignore[reportArgumentType]
        detector.forward(batch)
    shapes = records[0].shapes
    level = _checked_index(level, len(shapes), "level")
    rows, columns = shapes[level]
    row, column = int(pixel[1] / height * rows), int(pixel[0] / width * columns)
    index = sum(h * w for h, w in shapes[:level]) + row * columns + column
    center = [(column + 0.5) / columns * width, (row + 0.5) / rows * height]
    points = _sampling_points(records[0], index, batch.sizes[0])
    return Attention("encoder", layer, index, level, "", 0.0, None, center, *points)


def _sampling_points(used: Sampled, index: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[int, int], float]:
    """Points, weights, image size and `error` of a query, as in `Attention`."""
    locations, weights = (x[:1, index : index + 1].float() for x in (used.locations, used.weights))
    output = used.output[0, index].float()
    recomputed = reference.sample(used.value[:1].float(), used.shapes, locations, weights)[0, 0]
    error = float((recomputed - output).abs().max() / output.abs().max().clamp(min=1e-9))
    points = locations[0, 0].cpu() * torch.tensor([size[1], size[0]])  # a batch of one image has no padding
    return points, weights[0, 0].cpu(), size, error


def _checked_index(index: int, count: int, what: str, from_last: bool = False) -> int:
    """The index, from 0, if it is in range; with `from_last`, negative ones count from the last."""
    if not (-count if from_last else 0) <= index < count:
        raise ConfigError(f"no {what} {index}; the model has {count}, from 0 to {count - 1}")
    return index % count


def draw_attention(image: Image.Image, seen: Attention, head: int | None = None) -> Image.Image:
    """The whole image with the points of all heads and, beside it, a close-up for each head, or only for `head`."""
    heads = list(range(len(seen.weights))) if head is None else [head]
    rows = max(1, round(math.sqrt(len(heads) / 2)))
    columns = math.ceil(len(heads) / rows)
    cell = CELL if len(heads) > 1 else (2 * CELL[0], 2 * CELL[1])
    step = cell[1] + 56
    body = rows * step
    overview = whole_panel(image, (560, body - 56), 0.3)
    _draw_points(overview, seen, heads, MAX_RADIUS / 3)
    _draw_reference(overview, seen)
    whole = overview.finished()
    sheet = Image.new("RGB", (3 * GAP + whole.width + columns * (cell[0] + GAP), 64 + body + 48), PAPER)
    canvas = ImageDraw.Draw(sheet)
    x, y = seen.center
    title = f"decoder layer {seen.layer}, query {seen.index}: {seen.label} {seen.score:.2f}"
    if seen.part == "encoder":
        title = f"encoder layer {seen.layer}, the token of level {seen.level} at {x:.0f}, {y:.0f}"
    write(canvas, GAP, GAP, title, 26, anchor="la", room=sheet.width - 2 * GAP)
    write(canvas, GAP, 64, "whole image", 20, anchor="la")
    sheet.paste(whole, (GAP, 94))
    region = _region(seen, heads, cell)
    for n, m in enumerate(heads):
        left, top = 3 * GAP + whole.width + n % columns * (cell[0] + GAP), 64 + n // columns * step
        panel = open_panel(image, region, cell)
        _draw_reference(panel, seen)
        _draw_points(panel, seen, [m], MAX_RADIUS)
        write(canvas, left, top, f"head {m}", 20, anchor="la")
        sheet.paste(panel.finished(), (left, top + 30))
        # a bar divided by level, each as long as its fraction of the head's weight
        edge, bar = float(left), top + 30 + cell[1] + 3
        for level, weight in enumerate(seen.weights[m].sum(-1).tolist()):
            canvas.rectangle((edge, bar, edge + weight * cell[0], bar + 8), fill=_color(level))
            edge += weight * cell[0]
    _draw_legend(canvas, seen, 64 + body + 10)
    return sheet


def _region(seen: Attention, heads: list[int], cell: tuple[int, int]) -> Corners:
    """The region of the heads' panels: around the centre, with SHOWN_WEIGHT of the weight and the query's box."""
    center = torch.tensor(seen.center)
    offsets = (seen.points[heads].flatten(0, 2) - center).abs()  # (n, 2)
    # for each point, half the width of the smallest region that shows it, (n,)
    half_widths = torch.maximum(offsets[:, 0], offsets[:, 1] * cell[0] / cell[1])
    order = half_widths.argsort()
    shown = seen.weights[heads].flatten()[order].cumsum(0) / len(heads)
    half = float(half_widths[order][min(int((shown < SHOWN_WEIGHT).sum()), len(order) - 1)])
    if seen.box is not None:
        half = max(half, (seen.box[2] - seen.box[0]) / 2, (seen.box[3] - seen.box[1]) / 2 * cell[0] / cell[1])
    half = max(1.15 * half, 0.03 * max(seen.size))
    (x, y), half_height = seen.center, half * cell[1] / cell[0]
    return x - half, y - half_height, x + half, y + half_height


def _draw_reference(panel: Panel, seen: Attention) -> None:
    """Draw the query's box, or a cross on the token."""
    if seen.box is not None:
        panel.box(seen.box, INK, 2, halo=True)
        return
    x, y = panel.at(*seen.center)
    for color, width in ((PAPER, 9), (INK, 4)):
        panel.canvas.line((x - 20, y, x + 20, y), fill=color, width=width)
        panel.canvas.line((x, y - 20, x, y + 20), fill=color, width=width)


def _draw_points(panel: Panel, seen: Attention, heads: list[int], max_radius: float) -> None:
    """Draw the points with the largest weights first, so that those with small weights stay visible."""
    max_weight = float(seen.weights.max())
    dots = [(weight, x, y, level) for head, level, x, y, weight in seen.rows() if head in heads]
    for weight, x, y, level in sorted(dots, reverse=True):
        scale = math.sqrt(weight / max_weight)
        panel.dot(x, y, max(1.8, max_radius * scale), _color(level), 0.3 + 0.6 * scale)


def _color(level: int) -> str:
    return PALETTE[level % len(PALETTE)]


def _draw_legend(canvas: ImageDraw.ImageDraw, seen: Attention, top: int) -> None:
    levels = range(seen.weights.shape[1])
    left = legend(canvas, GAP, top, [(f"level {n}{' (finest)' if n == 0 else ''}", _color(n)) for n in levels])
    max_weight = float(seen.weights.max())
    for fraction in (1.0, 0.25, 0.05):
        r = max(1.8, MAX_RADIUS * math.sqrt(fraction))
        canvas.ellipse((left + MAX_RADIUS - r, top + 10 - r, left + MAX_RADIUS + r, top + 10 + r), fill=GREY)
        left = write(canvas, left + 2 * MAX_RADIUS + 6, top + 10, f"weight {max_weight * fraction:.2f}") + 20
    write(canvas, left, top + 10, "bars: each head's weight by level; grey: outside the image")


def render_attention(name: str, image: Image.Image, figure: Image.Image, seen: Attention) -> str:
    """The HTML page: the figure, the image with the query's box, and all points, as in `Attention.as_dict`."""
    marks = [] if seen.box is None else [Mark(seen.box, seen.label, "found", seen.score)]
    facts: dict[str, Cell] = {"layer": f"{seen.part} {seen.layer}", "query or token": seen.index}
    facts |= {"level of the token": seen.level} if seen.box is None else {"class": seen.label, "score": seen.score}
    facts["largest difference from the layer's own output"] = seen.error
    parts = [
        Gallery("Sampling points by head", [MarkedImage(name, figure)], columns=1),
        Gallery("The image", [MarkedImage(name, image, marks)], threshold=0.0, columns=2),
        Facts("", facts),
        Table(
            "Points",
            ["head", "level", "x", "y", "weight"],
            list(seen.rows()),
            "In pixels; the weights of a head sum to 1.",
        ),
    ]
    return render_page(Page(f"Attention: {name}", "", [Section("Deformable attention", parts)]))
