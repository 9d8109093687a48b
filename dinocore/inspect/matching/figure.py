"""The match of an image as a figure and a page: answers, denoising queries, queries by stage, and what they cost."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from PIL import Image, ImageDraw

from ...draw.boxes import PALETTE
from ...draw.figure import GREY, INK, PAPER, Corners, Panel, legend, open_panel, whole_panel
from ...draw.fonts import load_font
from ...report.page import render_page
from ...report.parts import Cell, Facts, Gallery, Mark, MarkedImage, Page, Part, Section, Table
from ...words import counted
from .matching import Matching, Noisy, cost_name

GAP, HEAD, FOOT = 24, 38, 34
WIDE, HIGH = 828, 621  # of a panel
KEPT, CHANGED, FIRST = PALETTE[1], PALETTE[0], "#B5B5B5"
POSITIVE, NEGATIVE, TRUTH = PALETTE[1], PALETTE[4], INK
PART_COLORS = (*PALETTE[2:4], PALETTE[5], PALETTE[4], *PALETTE[:2])  # of the cost, in its own order
MOST_NOISY = 6  # objects whose denoising queries are drawn


def draw_matching(image: Image.Image, seen: Matching) -> Image.Image:
    """Four panels: the last layer's answers, denoising group 0, the query of each object by stage, costs by stage."""
    answers, noisy = _answers(image, seen), _noisy(image, seen)
    high = max(answers.height, noisy.height)
    step = HEAD + high + FOOT + GAP
    sheet = Image.new("RGB", (2 * WIDE + 3 * GAP, step + HEAD + HIGH + FOOT + 2 * GAP), PAPER)
    canvas = ImageDraw.Draw(sheet)
    right, below = WIDE + 2 * GAP, GAP + step
    _titled(canvas, GAP, GAP, f"last layer: {len(seen.stages[-1].answers)} of {len(seen.objects)} objects have a query")
    sheet.paste(answers, (GAP, GAP + HEAD))
    entries = [("object", TRUTH), ("same query in all layers", KEPT), ("query changed on the way", CHANGED)]
    legend(canvas, GAP, GAP + HEAD + high + 10, entries)
    shown = f"{len(_shown(seen))} of {len(seen.objects)} objects"
    _titled(canvas, right, GAP, f"denoising, group 0 of {seen.num_groups}: {shown}")
    sheet.paste(noisy, (right, GAP + HEAD))
    entries = [
        ("object", TRUTH),
        ("positive, must find it again", POSITIVE),
        ("negative, must say no object", NEGATIVE),
    ]
    legend(canvas, right, GAP + HEAD + high + 10, entries)
    _titled(canvas, GAP, below, "query of each object, stage by stage")
    _flow(canvas, seen, (GAP, below + HEAD, GAP + WIDE, below + HEAD + HIGH))
    entries = [("first", FIRST), ("as in the stage before", KEPT), ("another query", CHANGED)]
    legend(canvas, GAP, below + HEAD + HIGH + 10, entries)
    _titled(canvas, right, below, "matching cost per object, mean")
    _costs(canvas, seen, (right, below + HEAD, right + WIDE, below + HEAD + HIGH))
    legend(canvas, right, below + HEAD + HIGH + 10, [(cost_name(part), color) for part, color in _colors(seen).items()])
    return sheet


def _titled(canvas: ImageDraw.ImageDraw, left: int, top: int, text: str) -> None:
    canvas.text((left, top), text, fill=INK, font=load_font(24))


def _answers(image: Image.Image, seen: Matching) -> Image.Image:
    panel = whole_panel(image, (WIDE, HIGH))
    layers = [stage for stage in seen.stages if stage.name != "first stage"]
    fine = len(seen.objects) > 60
    for thing in seen.objects:
        panel.box(thing.box, TRUTH, 1 if fine else 1.5)
    labels = []
    for answer in layers[-1].answers:
        same = all(any(a.query == answer.query and a.object == answer.object for a in s.answers) for s in layers)
        color = KEPT if same else CHANGED
        panel.box(answer.box, color, 1.5 if fine else 2.5)
        labels.append((f"q{answer.query}", answer.box[0], answer.box[1], color))
    _labels(panel, labels)
    return panel.finished()


def _labels(panel: Panel, labels: Sequence[tuple[str, float, float, str]]) -> None:
    """Names at the corners of boxes; those that would cover another one are left out."""
    taken: list[tuple[float, float, float, float]] = []
    for text, x, y, color in labels:
        left, top = panel.at(x, y)
        font = load_font(30, text)
        width, height = font.getlength(text) + 12, 36
        left = min(max(0, left), panel.image.width - width)
        top = min(max(0, top), panel.image.height - height)
        place = (left, top, left + width, top + height)
        if any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken):
            continue
        taken.append(place)
        panel.canvas.rectangle(place, fill=color)
        panel.canvas.text((left + 6, top + height / 2), text, fill="white", font=font, anchor="lm")


def _shown(seen: Matching) -> list[int]:
    """Objects whose denoising queries are drawn: all, or the largest one that takes part and those nearest to it."""
    part = sorted({noisy.object for noisy in seen.noisy if noisy.group == 0})
    if not part:
        return []
    boxes = {t: seen.objects[t].box for t in part}
    first = max(part, key=lambda t: (boxes[t][2] - boxes[t][0]) * (boxes[t][3] - boxes[t][1]))
    return sorted(part, key=lambda t: sum(abs(a - b) for a, b in zip(boxes[t], boxes[first], strict=True)))[:MOST_NOISY]


def _noisy(image: Image.Image, seen: Matching) -> Image.Image:
    shown = _shown(seen)
    rows = [noisy for noisy in seen.noisy if noisy.group == 0 and noisy.object in shown]
    panel = open_panel(image, _around(image, [seen.objects[t].box for t in shown] + [n.start_box for n in rows]),
                       (WIDE, HIGH), 0.5)  # fmt: skip
    for noisy in sorted(rows, key=lambda n: n.positive):
        panel.box(noisy.start_box, _color(noisy), 2.5)
    for t in shown:
        panel.box(seen.objects[t].box, TRUTH, 2, halo=True)
    named = [n for n in rows if n.positive] + [n for n in rows if not n.positive]
    _labels(panel, [(_label(n), min(n.start_box[::2]), min(n.start_box[1::2]), _color(n)) for n in named])
    return panel.finished()


def _label(noisy: Noisy) -> str:
    """Which object it is a copy of, and if the class is a wrong one, that."""
    wrong = noisy.positive and noisy.start_label != noisy.told
    return f"{noisy.object} as {noisy.start_label}" if wrong else str(noisy.object)


def _color(noisy: Noisy) -> str:
    return POSITIVE if noisy.positive else NEGATIVE


def _around(image: Image.Image, boxes: Sequence[Sequence[float]]) -> Corners:
    """What shows all of these boxes, in the panel's shape."""
    xs, ys = ([v for box in boxes for v in box[k::2]] for k in (0, 1))
    if not boxes:
        xs, ys = [0, image.width], [0, image.height]
    half = 0.53 * max(max(xs) - min(xs), (max(ys) - min(ys)) * WIDE / HIGH, 32)
    x, y, high = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, half * HIGH / WIDE
    return x - half, y - high, x + half, y + high


def _flow(canvas: ImageDraw.ImageDraw, seen: Matching, frame: tuple[int, int, int, int]) -> None:
    """A row per object, a column per stage; under each column how many stayed."""
    left, top, right, bottom = frame
    bottom -= 78
    height = min(44.0, (bottom - top - 30) / max(1, len(seen.objects)))
    named = height >= 15
    first = left + (150 if named else 10)
    width = (right - first) / len(seen.stages)
    before: dict[int, int] = {}
    size = min(18, max(10, height * 0.7))
    for t, thing in enumerate(seen.objects) if named else ():
        y = top + 30 + (t + 0.5) * height
        name = f"{t} {thing.label}"[:14]
        canvas.text((left, y), name, fill=INK, font=load_font(size, name), anchor="lm")
    for n, stage in enumerate(seen.stages):
        x = first + n * width
        canvas.text((x + 4, top + 12), stage.name, fill=INK, font=load_font(18), anchor="lm")
        now = {answer.object: answer.query for answer in stage.answers}
        for t, query in now.items():
            y, below = (round(top + 30 + row * height) for row in (t, t + 1))
            color = FIRST if n == 0 else KEPT if before.get(t) == query else CHANGED
            edge = 1 if height >= 6 else 0
            canvas.rectangle((x + 2, y, x + width - 3, max(y, below - edge - 1)), fill=color)
            if named:
                fill = INK if n == 0 else "white"
                canvas.text((x + width / 2, y + height / 2), f"q{query}", fill=fill, font=load_font(size), anchor="mm")
        end = top + 30 + len(seen.objects) * height + 8
        if stage.kept is not None:
            canvas.text((x + 4, end), f"{100 * stage.kept:.0f}% stayed", fill=INK, font=load_font(18))
            canvas.text((x + 4, end + 26), f"{stage.instability} differ", fill=GREY, font=load_font(18))
        before = now
    if not named:
        canvas.text(
            (first, bottom + 56),
            f"{counted(len(seen.objects), 'object')}, one line each",
            fill=GREY,
            font=load_font(18),
        )


def _colors(seen: Matching) -> dict[str, str]:
    """A colour for each part of the cost; more parts than colours share them."""
    return dict(zip(seen.stages[0].mean_costs(), cycle(PART_COLORS), strict=False))


def _costs(canvas: ImageDraw.ImageDraw, seen: Matching, frame: tuple[int, int, int, int]) -> None:
    """Bars from zero, stacked: parts that cost to the right, parts that are gained to the left."""
    left, top, right, _ = frame
    means = [list(stage.mean_costs().values()) for stage in seen.stages]
    colors = list(_colors(seen).values())
    low = min(0.0, *(sum(v for v in row if v < 0) for row in means))
    high = max(0.0, *(sum(v for v in row if v > 0) for row in means))
    start, end = left + 110, right - 90
    scale = (end - start) / max(high - low, 1e-6)
    zero = start - low * scale
    height = min(110, (HIGH - 60) / len(means))
    for n, (stage, row) in enumerate(zip(seen.stages, means, strict=True)):
        y = top + 20 + n * height
        canvas.text((left, y + height * 0.4), stage.name, fill=INK, font=load_font(18), anchor="lm")
        ends = [zero, zero]
        for value, color in zip(row, colors, strict=True):
            side = int(value > 0)
            away = ends[side] + value * scale
            x0, x1 = sorted((ends[side], away))
            canvas.rectangle((x0, y, x1, y + height * 0.8), fill=color)
            if x1 - x0 > 56:
                place = ((x0 + x1) / 2, y + height * 0.4)
                canvas.text(place, f"{value:+.2f}", fill=INK, font=load_font(16), anchor="mm")
            ends[side] = away
        canvas.text((right, y + height * 0.4), f"{sum(row):+.2f}", fill=INK, font=load_font(20), anchor="rm")
    foot = top + 20 + len(means) * height
    canvas.line((zero, top + 10, zero, foot), fill=INK, width=2)
    canvas.text((zero, foot + 12), "0", fill=INK, font=load_font(16), anchor="mm")
    canvas.text((right, foot + 12), "sum", fill=INK, font=load_font(16), anchor="rm")


def render_matching(
    name: str, image: Image.Image, figure: Image.Image, seen: Matching, history: Sequence[Mapping[str, Cell]] = ()
) -> str:
    """The figure, the image with objects and answers, and the tables; numbers as in `Matching.as_dict`.

    Args:
        history: step, kept and instability of the last layer at each checkpoint.
    """
    sections = [
        Section("Match", [
            Gallery("Who took what, at what cost", [MarkedImage(name, figure)], columns=1),
            Gallery("Objects and answers of the last layer", [MarkedImage(name, image, _marks(seen))], 0.0, columns=2),
            _queries(seen),
            _stages(seen),
        ]),
        Section("Denoising", _denoising(seen)),
    ]  # fmt: skip
    if history:
        rows = [[row["step"], row["kept"], row["instability"]] for row in history]
        caption = (
            "Kept: share of the objects whose query is that of the checkpoint before. Instability: queries that differ."
        )
        sections.append(Section("Checkpoints", [Table("Last layer", ["step", "kept", "instability"], rows, caption)]))
    return render_page(
        Page(
            f"Matching: {name}",
            f"{counted(len(seen.objects), 'object')}, {counted(seen.num_queries, 'query', 'queries')}",
            sections,
        )
    )


def _marks(seen: Matching) -> list[Mark]:
    objects = [Mark(thing.box, f"{t} {thing.label}", "truth") for t, thing in enumerate(seen.objects)]
    answers = [Mark(a.box, f"query {a.query}", "found", a.probability) for a in seen.stages[-1].answers]
    return objects + answers


def _queries(seen: Matching) -> Table:
    columns = [{answer.object: answer for answer in stage.answers} for stage in seen.stages]
    rows = []
    for t, thing in enumerate(seen.objects):
        last = columns[-1].get(t)
        taken = [column[t].query if t in column else None for column in columns]
        rows.append([t, thing.label, *taken, last and last.iou, last and last.probability])
    names = [f"query, {stage.name}" for stage in seen.stages]
    return Table("Objects", ["object", "class", *names, "IoU", "probability"], rows, "The last two: of the last layer.")


def _stages(seen: Matching) -> Table:
    rows = [[stage.name, *stage.means(), stage.kept, stage.instability] for stage in seen.stages]
    parts = [cost_name(part) for part in seen.stages[0].mean_costs()]
    heads = ["stage", *parts, "cost", "IoU", "kept", "instability"]
    return Table("Stages", heads, rows, "Means of the matched pairs, weighted as in the match.")


def _denoising(seen: Matching) -> list[Part]:
    if not seen.noisy:
        return [Facts("", {"denoising": "none in this model"})]
    heads = ["query", "group", "kind", "of object", "starts as", "must answer", "probability", "IoU"]
    caption = "Probability and IoU: of the object it was made from, in the last layer."
    return [Table(counted(seen.num_groups, "group"), heads, [_noisy_row(one) for one in seen.noisy], caption)]


def _noisy_row(one: Noisy) -> list[Cell]:
    kind = "positive" if one.positive else "negative"
    return [one.query, one.group, kind, one.object, one.start_label, one.told, one.probability, one.iou]
