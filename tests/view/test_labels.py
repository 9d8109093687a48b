"""Labels are readable: they do not overlap, and their size suits the image."""

import numpy as np
from PIL import Image, ImageDraw

from dinocore.draw import boxes as module
from dinocore.draw.boxes import Box, LabelMemory, draw_boxes, first_free
from dinocore.draw.curves import ticks
from dinocore.draw.figure import Tag, put_tags, write
from dinocore.draw.fonts import load_font, shortened


def label_rectangles(monkeypatch, size, boxes, memory=None) -> list[module.Rectangle]:
    """The rectangles in which the labels of boxes are drawn."""
    drawn = []
    draw = module._draw_label
    monkeypatch.setattr(module, "_draw_label", lambda *args: (drawn.append(args[-1]), draw(*args)))
    draw_boxes(Image.new("RGB", size), boxes, memory)
    monkeypatch.setattr(module, "_draw_label", draw)
    return drawn


def test_labels_of_boxes_at_the_same_corner_do_not_overlap(monkeypatch):
    boxes = [Box((40 + k, 60 + k, 200, 180), "#D55E00", f"cell {k}") for k in range(5)]
    rectangles = label_rectangles(monkeypatch, (320, 240), boxes)
    assert len(rectangles) == 5
    for n, (left, top, right, bottom) in enumerate(rectangles):
        assert left >= 0 and right <= 320 and top >= 0 and bottom <= 240
        assert not any(left < r and x < right and top < b and y < bottom for x, y, r, b in rectangles[:n])


def test_video_labels_keep_their_positions_when_scores_change_and_objects_appear(monkeypatch):
    colors = {"cell": "#D55E00", "platelet": "#0072B2", "germ": "#D55E00"}
    memory, offsets = LabelMemory(), {name: set() for name in colors}
    for frame in range(12):
        names = list(colors)[: 2 if frame < 5 else 3]
        if frame % 2:  # the last box has the highest score; in an image, its label is placed first
            names.reverse()
        x, y = 40 + 2 * frame, 60 + frame % 3
        lefts = [x + 4 * list(colors).index(name) for name in names]
        boxes = [Box((x, y, x + 160, y + 120), colors[n], f"{n} 0.5") for n, x in zip(names, lefts, strict=True)]
        for name, left, rectangle in zip(
            names, lefts, label_rectangles(monkeypatch, (320, 240), boxes, memory), strict=True
        ):
            offsets[name].add((rectangle[0] - left, rectangle[1] - y))
    assert [len(positions) for positions in offsets.values()] == [1, 1, 1]


def test_a_video_label_moves_if_its_position_is_taken_or_outside_the_image(monkeypatch):
    memory = LabelMemory()
    first = label_rectangles(monkeypatch, (320, 240), [Box((40, 60, 120, 180), "#D55E00", "cell")], memory)[0]
    moved = label_rectangles(monkeypatch, (320, 240), [Box((40, 5, 120, 140), "#D55E00", "cell")], memory)[0]
    assert first[3] == 60 and moved[1] == 5
    other = [Box((200, 60, 280, 180), "#D55E00", "cell"), Box((40, 5, 120, 140), "#D55E00", "cell")]
    (new, same) = label_rectangles(monkeypatch, (320, 240), other, memory)
    assert same == moved and new[3] == 60


def test_many_labels_are_placed_as_by_a_search_of_all_pairs(monkeypatch):
    rng, boxes = np.random.default_rng(0), []
    for n in range(1000):
        x, y = rng.uniform(0, 1200), rng.uniform(0, 700)
        boxes.append(Box((x, y, x + rng.uniform(8, 130), y + rng.uniform(8, 100)), "#D55E00", f"class {n}"))

    def all_pairs(options, taken):
        overlaps = [
            any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken.tolist()) for a in options
        ]
        return overlaps.index(False) if False in overlaps else None

    fast = label_rectangles(monkeypatch, (1333, 800), boxes)
    monkeypatch.setattr(module, "first_free", all_pairs)
    assert label_rectangles(monkeypatch, (1333, 800), boxes[-200:]) == fast[-200:]
    assert first_free([], np.empty((0, 4))) is None


def test_a_single_label_is_above_its_box_or_inside_at_the_upper_edge(monkeypatch):
    (above,) = label_rectangles(monkeypatch, (320, 240), [Box((40, 60, 200, 180), "#D55E00", "cell")])
    assert above[0] == 40 and above[3] == 60
    (inside,) = label_rectangles(monkeypatch, (320, 240), [Box((40, 2, 200, 180), "#D55E00", "cell")])
    assert inside[1] == 2
    (small,) = label_rectangles(monkeypatch, (30, 8), [Box((1, 1, 5, 5), "#D55E00", "a cell of a long name")])
    assert small[:2] == (0, 0)


def test_a_label_wider_than_a_third_of_the_image_is_shortened_and_keeps_its_score(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        module, "_draw_label", lambda canvas, box, font, rectangle: drawn.append((box.label, rectangle))
    )
    long = "a class whose name has more letters than anybody would write on a box 0.53"
    draw_boxes(
        Image.new("RGB", (640, 480)), [Box((40, 60, 200, 180), "#D55E00", label) for label in (long, "cell 0.4")]
    )
    (shortened, rectangle), (short, _) = drawn
    assert shortened.startswith("a class who") and shortened.endswith(" 0.53") and "…" in shortened
    assert rectangle[2] - rectangle[0] <= 0.3 * 640 + 6 and short == "cell 0.4"
    drawn.clear()
    draw_boxes(Image.new("RGB", (100, 80)), [Box((10, 30, 60, 70), "#D55E00", "platelet 0.53")])
    assert drawn[0][0] == "platelet 0.53"


def test_the_font_size_of_very_wide_images_is_limited(monkeypatch):
    heights = []
    for width in (1500, 12000):
        ((_, top, _, bottom),) = label_rectangles(
            monkeypatch, (width, 600), [Box((40, 200, 200, 300), "#D55E00", "cell")]
        )
        heights.append(bottom - top)
    assert heights[0] == heights[1] < 50


def test_up_to_five_tags_at_one_position_are_drawn():
    drawn = []
    for count in (1, 5, 6):
        image = Image.new("RGB", (200, 200))
        put_tags(ImageDraw.Draw(image), image.size, [Tag("q", 50, 100, "#FFFFFF")] * count, 15)
        drawn.append(int((np.asarray(image).max(-1) == 255).sum()))
    assert drawn[1] > 4.5 * drawn[0] and drawn[2] == drawn[1]


def test_ticks_are_at_most_five_evenly_spaced_integers():
    assert [ticks(end) for end in (1, 3, 5, 18)] == [[0, 1], [0, 1, 2, 3], [0, 2, 4], [0, 5, 10, 15]]
    for end in range(1, 3000):
        actual = ticks(end)
        assert (
            2 <= len(actual) <= 5
            and actual[-1] <= end < actual[-1] + 2 * actual[1]
            and set(np.diff(actual)) == {actual[1]}
        )


def test_a_text_without_enough_room_is_shortened_in_the_middle():
    name = "neutrophilic segmented granulocyte of the periphery"
    canvas = ImageDraw.Draw(Image.new("RGB", (400, 40)))
    assert write(canvas, 0, 20, name, room=150) <= 150 < write(canvas, 0, 20, name)
    short = shortened(name, load_font(18), 150)
    assert short.startswith("neutro") and short.endswith("…iphery")
    assert shortened("cell", load_font(18), 1) == "cell"
    drawn = Image.new("RGB", (400, 40))
    put_tags(ImageDraw.Draw(drawn), (400, 40), [Tag(f"3 as {name}", 0, 5, "#0072B2")], 15)
    assert np.flatnonzero(np.asarray(drawn).any((0, 2))).max() < 170
