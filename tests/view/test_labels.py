"""Labels are readable: they do not overlap, and their size suits the image."""

import numpy as np
from PIL import Image, ImageDraw

from dinocore.draw import boxes as module
from dinocore.draw.boxes import Box, LabelMemory, draw_boxes, first_free
from dinocore.draw.curves import ticks
from dinocore.draw.figure import Tag, put_tags, write
from dinocore.draw.fonts import load_font, shortened


def places(monkeypatch, size, boxes, memory=None) -> list[module.Rectangle]:
    """The rectangles in which the labels of boxes are drawn."""
    drawn = []
    draw = module._draw_label
    monkeypatch.setattr(module, "_draw_label", lambda *given: (drawn.append(given[-1]), draw(*given)))
    draw_boxes(Image.new("RGB", size), boxes, memory)
    monkeypatch.setattr(module, "_draw_label", draw)
    return drawn


def test_labels_of_boxes_at_one_corner_are_all_there_and_cover_none_of_the_others(monkeypatch):
    boxes = [Box((40 + k, 60 + k, 200, 180), "#D55E00", f"cell {k}") for k in range(5)]
    found = places(monkeypatch, (320, 240), boxes)
    assert len(found) == 5
    for n, (left, top, right, bottom) in enumerate(found):
        assert left >= 0 and right <= 320 and top >= 0 and bottom <= 240
        assert not any(left < r and x < right and top < b and y < bottom for x, y, r, b in found[:n])


def test_labels_of_a_video_stay_where_they_are_though_scores_change_and_objects_come(monkeypatch):
    colors = {"cell": "#D55E00", "platelet": "#0072B2", "germ": "#D55E00"}
    memory, beside = LabelMemory(), {name: set() for name in colors}
    for frame in range(12):
        names = list(colors)[: 2 if frame < 5 else 3]
        if frame % 2:  # the last box has the highest score; in an image, its label is placed first
            names.reverse()
        x, y = 40 + 2 * frame, 60 + frame % 3
        lefts = [x + 4 * list(colors).index(name) for name in names]
        boxes = [Box((x, y, x + 160, y + 120), colors[n], f"{n} 0.5") for n, x in zip(names, lefts, strict=True)]
        for name, left, place in zip(names, lefts, places(monkeypatch, (320, 240), boxes, memory), strict=True):
            beside[name].add((place[0] - left, place[1] - y))
    assert [len(found) for found in beside.values()] == [1, 1, 1]


def test_a_label_of_a_video_makes_way_where_its_place_is_taken_or_leaves_the_image(monkeypatch):
    memory = LabelMemory()
    first = places(monkeypatch, (320, 240), [Box((40, 60, 120, 180), "#D55E00", "cell")], memory)[0]
    up = places(monkeypatch, (320, 240), [Box((40, 5, 120, 140), "#D55E00", "cell")], memory)[0]
    assert first[3] == 60 and up[1] == 5
    other = [Box((200, 60, 280, 180), "#D55E00", "cell"), Box((40, 5, 120, 140), "#D55E00", "cell")]
    (new, same) = places(monkeypatch, (320, 240), other, memory)
    assert same == up and new[3] == 60


def test_many_labels_find_the_places_that_a_search_of_all_pairs_finds(monkeypatch):
    rng, boxes = np.random.default_rng(0), []
    for n in range(1000):
        x, y = rng.uniform(0, 1200), rng.uniform(0, 700)
        boxes.append(Box((x, y, x + rng.uniform(8, 130), y + rng.uniform(8, 100)), "#D55E00", f"class {n}"))

    def all_pairs(options, taken):
        covers = [
            any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken.tolist()) for a in options
        ]
        return covers.index(False) if False in covers else None

    quick = places(monkeypatch, (1333, 800), boxes)
    monkeypatch.setattr(module, "first_free", all_pairs)
    assert places(monkeypatch, (1333, 800), boxes[-200:]) == quick[-200:]
    assert first_free([], np.empty((0, 4))) is None


def test_a_label_alone_is_above_its_box_and_inside_at_the_upper_edge(monkeypatch):
    (above,) = places(monkeypatch, (320, 240), [Box((40, 60, 200, 180), "#D55E00", "cell")])
    assert above[0] == 40 and above[3] == 60
    (inside,) = places(monkeypatch, (320, 240), [Box((40, 2, 200, 180), "#D55E00", "cell")])
    assert inside[1] == 2
    (small,) = places(monkeypatch, (30, 8), [Box((1, 1, 5, 5), "#D55E00", "a cell of a long name")])
    assert small[:2] == (0, 0)


def test_a_label_wider_than_a_third_of_the_image_loses_its_middle_and_keeps_its_score(monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "_draw_label", lambda canvas, box, font, place: drawn.append((box.label, place)))
    long = "a class whose name has more letters than anybody would write on a box 0.53"
    draw_boxes(
        Image.new("RGB", (640, 480)), [Box((40, 60, 200, 180), "#D55E00", label) for label in (long, "cell 0.4")]
    )
    (shortened, place), (short, _) = drawn
    assert shortened.startswith("a class who") and shortened.endswith(" 0.53") and "…" in shortened
    assert place[2] - place[0] <= 0.3 * 640 + 6 and short == "cell 0.4"
    drawn.clear()
    draw_boxes(Image.new("RGB", (100, 80)), [Box((10, 30, 60, 70), "#D55E00", "platelet 0.53")])
    assert drawn[0][0] == "platelet 0.53"


def test_letters_of_a_panorama_are_those_of_an_image_two_and_a_half_times_as_wide_as_high(monkeypatch):
    heights = []
    for width in (1500, 12000):
        ((_, top, _, bottom),) = places(monkeypatch, (width, 600), [Box((40, 200, 200, 300), "#D55E00", "cell")])
        heights.append(bottom - top)
    assert heights[0] == heights[1] < 50


def test_tags_of_near_places_are_all_drawn_and_the_sixth_is_left_out():
    drawn = []
    for count in (1, 5, 6):
        image = Image.new("RGB", (200, 200))
        put_tags(ImageDraw.Draw(image), image.size, [Tag("q", 50, 100, "#FFFFFF")] * count, 15)
        drawn.append(int((np.asarray(image).max(-1) == 255).sum()))
    assert drawn[1] > 4.5 * drawn[0] and drawn[2] == drawn[1]


def test_ticks_are_whole_numbers_at_even_steps_and_five_at_most():
    assert [ticks(end) for end in (1, 3, 5, 18)] == [[0, 1], [0, 1, 2, 3], [0, 2, 4], [0, 5, 10, 15]]
    for end in range(1, 3000):
        found = ticks(end)
        assert (
            2 <= len(found) <= 5 and found[-1] <= end < found[-1] + 2 * found[1] and set(np.diff(found)) == {found[1]}
        )


def test_a_text_in_a_figure_that_has_no_room_loses_its_middle_and_ends_in_time():
    name = "neutrophilic segmented granulocyte of the periphery"
    canvas = ImageDraw.Draw(Image.new("RGB", (400, 40)))
    assert write(canvas, 0, 20, name, room=150) <= 150 < write(canvas, 0, 20, name)
    short = shortened(name, load_font(18), 150)
    assert short.startswith("neutro") and short.endswith("…iphery")
    assert shortened("cell", load_font(18), 1) == "cell"
    drawn = Image.new("RGB", (400, 40))
    put_tags(ImageDraw.Draw(drawn), (400, 40), [Tag(f"3 as {name}", 0, 5, "#0072B2")], 15)
    assert np.flatnonzero(np.asarray(drawn).any((0, 2))).max() < 170
