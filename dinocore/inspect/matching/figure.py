"""Draw the matching of an image as a figure and a page: predictions, denoising, queries by stage, and costs."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

from PIL import Image, ImageDraw

from ...draw.boxes import LONGEST, PALETTE
from ...draw.figure import GREY, INK, PAPER, Corners, Tag, legend, open_panel, put_tags, whole_panel, write
from ...draw.fonts import load_font
from ...report.page import render_page
from ...report.parts import Cell, Facts, Gallery, Mark, MarkedImage, Page, Part, Section, Table
from ...words import counted
from .matching import Matching, NoisyQuery

# pixels
GAP, HEAD, FOOT = 24, 38, 34
PANEL_WIDTH, PANEL_HEIGHT = 828, 621
KEPT, CHANGED, FIRST = PALETTE[1], PALETTE[0], "#B5B5B5"
POSITIVE, NEGATIVE, TRUTH = PALETTE[1], PALETTE[4], INK
PART_COLORS = (*PALETTE[2:4], PALETTE[5], PALETTE[4], *PALETTE[:2])  # of the cost's parts, in the order of `Cost`
MAX_NOISY = 6  # objects whose denoising queries are drawn

Canvas = ImageDraw.ImageDraw
Legend = list[tuple[str, str]]


def draw_matching(image: Image.Image, seen: Matching) -> Image.Image:
    """Four panels: the last layer's predictions, denoising group 0, each object's query by stage, costs by stage."""
    predictions, noisy = _predictions(image, seen), _noisy(image, seen)
    top_height = max(predictions.height, noisy.height)
    step = HEAD + top_height + FOOT + GAP
    sheet = Image.new("RGB", (2 * PANEL_WIDTH + 3 * GAP, step + HEAD + PANEL_HEIGHT + FOOT + 2 * GAP), PAPER)
    canvas = ImageDraw.Draw(sheet)

    def panel(left: int, top: int, title: str, fill: Image.Image | Callable[..., None], entries: Legend) -> None:
        write(canvas, left, top, title, 24, anchor="la")
        if isinstance(fill, Image.Image):
            sheet.paste(fill, (left, top + HEAD))
        else:
            fill(canvas, seen, left, top + HEAD)
        legend(canvas, left, top + HEAD + (top_height if top == GAP else PANEL_HEIGHT) + 10, entries)

    right, below = PANEL_WIDTH + 2 * GAP, GAP + step
    count = len(seen.objects)
    panel(GAP, GAP, f"last layer: {len(seen.stages[-1].answers)} of {count} objects have a query", predictions,
          [("object", TRUTH), ("same query in all layers", KEPT), ("query changes", CHANGED)])  # fmt: skip
    panel(right, GAP, f"denoising, group 0 of {seen.num_groups}: {len(_shown(seen))} of {count} objects", noisy,
          [("object", TRUTH), ("positive, must recover it", POSITIVE),
           ("negative, must predict no object", NEGATIVE)])  # fmt: skip
    panel(GAP, below, "query of each object, stage by stage", _flow,
          [("first", FIRST), ("same as in the previous stage", KEPT), ("another query", CHANGED)])  # fmt: skip
    panel(right, below, "matching cost per object, mean", _costs,
          list(zip(seen.cost_names, cycle(PART_COLORS), strict=False)))  # fmt: skip
    return sheet


def _predictions(image: Image.Image, seen: Matching) -> Image.Image:
    panel = whole_panel(image, (PANEL_WIDTH, PANEL_HEIGHT))
    layers = [{(a.query, a.object) for a in stage.answers} for stage in seen.stages if stage.name != "first stage"]
    thin = len(seen.objects) > 60
    for one in seen.objects:
        panel.box(one.box, TRUTH, 1 if thin else 1.5)
    tags = []
    for answer in seen.stages[-1].answers:
        color = KEPT if all((answer.query, answer.object) in layer for layer in layers) else CHANGED
        panel.box(answer.box, color, 1.5 if thin else 2.5)
        tags.append(Tag(f"q{answer.query}", *panel.at(*answer.box[:2]), color))
    put_tags(panel.canvas, panel.image.size, tags, 30)
    return panel.finished()


def _shown(seen: Matching) -> list[int]:
    """Objects whose denoising queries are drawn: all, or the largest one with denoising queries and its neighbours."""
    boxes = {noisy.object: seen.objects[noisy.object].box for noisy in seen.noisy}
    indices = sorted(boxes)
    if not indices:
        return []
    largest = boxes[max(indices, key=lambda t: (boxes[t][2] - boxes[t][0]) * (boxes[t][3] - boxes[t][1]))]
    return sorted(indices, key=lambda t: sum(abs(a - b) for a, b in zip(boxes[t], largest, strict=True)))[:MAX_NOISY]


def _noisy(image: Image.Image, seen: Matching) -> Image.Image:
    shown = _shown(seen)
    rows = [noisy for noisy in seen.noisy if noisy.group == 0 and noisy.object in shown]
    truths = [seen.objects[t].box for t in shown]
    panel = open_panel(image, _around(image, [*truths, *(n.start_box for n in rows)]), (PANEL_WIDTH, PANEL_HEIGHT), 0.5)
    for noisy in sorted(rows, key=lambda noisy: noisy.positive):
        panel.box(noisy.start_box, _color(noisy), 2.5)
    for box in truths:
        panel.box(box, TRUTH, 2, halo=True)
    tags = []
    for noisy in sorted(rows, key=lambda noisy: not noisy.positive):
        wrong = f" as {noisy.start_label}" if noisy.positive and noisy.start_label != noisy.target_label else ""
        corner = panel.at(min(noisy.start_box[::2]), min(noisy.start_box[1::2]))
        tags.append(Tag(f"{noisy.object}{wrong}", *corner, _color(noisy)))
    put_tags(panel.canvas, panel.image.size, tags, 30)
    return panel.finished()


def _color(noisy: NoisyQuery) -> str:
    return POSITIVE if noisy.positive else NEGATIVE


def _around(image: Image.Image, boxes: Sequence[Sequence[float]]) -> Corners:
    """The region that contains all of these boxes, in the panel's aspect ratio."""
    xs, ys = ([v for box in boxes or [(0, 0, *image.size)] for v in box[k::2]] for k in (0, 1))
    half = 0.53 * max(max(xs) - min(xs), (max(ys) - min(ys)) * PANEL_WIDTH / PANEL_HEIGHT, 32)
    x, y, half_height = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, half * PANEL_HEIGHT / PANEL_WIDTH
    return x - half, y - half_height, x + half, y + half_height


def _flow(canvas: Canvas, seen: Matching, left: int, top: int) -> None:
    """A row per object, a column per stage; under each column, the fraction of objects that kept their query."""
    count, top = len(seen.objects), top + 30
    height = min(44.0, (PANEL_HEIGHT - 108) / max(1, count))
    named = height >= 15
    size = min(18, max(10, height * 0.7))
    room = _name_width([f"{t} {one.label}" for t, one in enumerate(seen.objects)], size, len(seen.stages))
    first = left + (room if named else 10)
    width = (left + PANEL_WIDTH - first) / len(seen.stages)
    for t, label, answers in seen.by_object():
        queries = [answer and answer.query for answer in answers]
        y, below = (round(top + row * height) for row in (t, t + 1))
        if named:
            write(canvas, left, top + (t + 0.5) * height, f"{t} {label}", size, room=room - 10)
        for n, query in enumerate(queries):
            if query is None:
                continue
            x = first + n * width
            color = FIRST if n == 0 else KEPT if queries[n - 1] == query else CHANGED
            canvas.rectangle((x + 2, y, x + width - 3, max(y, below - (height >= 6) - 1)), fill=color)
            if named:
                write(canvas, x + width / 2, y + height / 2, f"q{query}", size, INK if n == 0 else "white", "mm")
    for n, stage in enumerate(seen.stages):
        x, end = first + n * width + 4, top + count * height + 8
        write(canvas, x, top - 18, stage.name)
        if stage.kept is not None:
            write(canvas, x, end, f"{100 * stage.kept:.0f}% stayed", anchor="la")
            write(canvas, x, end + 26, f"{stage.instability} differ", color=GREY, anchor="la")
    if not named:
        write(
            canvas,
            first,
            top + PANEL_HEIGHT - 52,
            f"{counted(count, 'object')}, one line each",
            color=GREY,
            anchor="la",
        )


def _name_width(names: Sequence[str], size: float, num_stages: int) -> float:
    """Width of the column of names: as needed, at least 150, at most LONGEST of the panel and what the stages leave."""
    needed = max((load_font(size, name).getlength(name) for name in names), default=0) + 10
    return max(150, min(needed, LONGEST * PANEL_WIDTH, PANEL_WIDTH - 100 * num_stages))


def _costs(canvas: Canvas, seen: Matching, left: int, top: int) -> None:
    """Stacked bars from zero: positive parts of the cost to the right, negative ones to the left."""
    means = [list(stage.mean_costs().values()) for stage in seen.stages]
    low = min(0.0, *(sum(v for v in row if v < 0) for row in means))
    high = max(0.0, *(sum(v for v in row if v > 0) for row in means))
    start, right = left + 110, left + PANEL_WIDTH
    scale = (right - 90 - start) / max(high - low, 1e-6)
    zero = start - low * scale
    height = min(110, (PANEL_HEIGHT - 60) / len(means))
    for n, (stage, row) in enumerate(zip(seen.stages, means, strict=True)):
        y = top + 20 + n * height
        middle = y + height * 0.4
        write(canvas, left, middle, stage.name)
        ends = [zero, zero]
        for value, color in zip(row, cycle(PART_COLORS), strict=False):
            side = int(value > 0)
            end = ends[side] + value * scale
            x0, x1 = sorted((ends[side], end))
            canvas.rectangle((x0, y, x1, y + height * 0.8), fill=color)
            if x1 - x0 > 56:
                write(canvas, (x0 + x1) / 2, middle, f"{value:+.2f}", 16, anchor="mm")
            ends[side] = end
        write(canvas, right, middle, f"{sum(row):+.2f}", 20, anchor="rm")
    foot = top + 20 + len(means) * height
    canvas.line((zero, top + 10, zero, foot), fill=INK, width=2)
    write(canvas, zero, foot + 12, "0", 16, anchor="mm")
    write(canvas, right, foot + 12, "sum", 16, anchor="rm")


def render_matching(
    name: str, image: Image.Image, figure: Image.Image, seen: Matching, history: Sequence[Mapping[str, Cell]] = ()
) -> str:
    """The HTML page: the figure, the image with objects and predictions, and the tables, as in `Matching.as_dict`.

    Args:
        history: `step`, `kept` and `instability` of the last layer at each checkpoint.
    """
    marks = [Mark(one.box, f"{t} {one.label}", "truth") for t, one in enumerate(seen.objects)]
    marks += [Mark(a.box, f"query {a.query}", "found", a.probability) for a in seen.stages[-1].answers]
    queries = [f"query, {stage.name}" for stage in seen.stages]
    noisy = [
        [one.query, one.group, "positive" if one.positive else "negative", one.object, one.start_label,
         one.target_label, one.probability, one.iou]
        for one in seen.noisy
    ]  # fmt: skip
    denoising: Part = Facts("", {"denoising": "none in this model"})
    if noisy:
        columns = ["query", "group", "kind", "of object", "starts as", "must answer", "probability", "IoU"]
        text = "Probability and IoU refer to the object it was made from, in the last layer."
        denoising = Table(counted(seen.num_groups, "group"), columns, noisy, text)
    sections = [
        Section("Match", [
            Gallery("Matches and their cost", [MarkedImage(name, figure)], columns=1),
            Gallery("Objects and predictions of the last layer", [MarkedImage(name, image, marks)], 0.0, columns=2),
            Table("Objects", ["object", "class", *queries, "IoU", "probability"], seen.object_rows(),
                  "The last two columns refer to the last layer."),
            Table("Stages", ["stage", *seen.cost_names, "cost", "IoU", "kept", "instability"], seen.stage_rows(),
                  "Means over matched pairs, weighted as in matching."),
        ]),
        Section("Denoising", [denoising]),
    ]  # fmt: skip
    if history:
        rows = [[row["step"], row["kept"], row["instability"]] for row in history]
        text = (
            "Kept: fraction of objects that keep the query of the previous checkpoint. "
            "Instability: number of queries that differ."
        )
        sections.append(Section("Checkpoints", [Table("Last layer", ["step", "kept", "instability"], rows, text)]))
    subtitle = f"{counted(len(seen.objects), 'object')}, {counted(seen.num_queries, 'query', 'queries')}"
    return render_page(Page(f"Matching: {name}", subtitle, sections))
