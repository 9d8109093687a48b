"""The page of `dino eval --compare`: its numbers equal the JSON output, and it works in Chromium."""

import re

import numpy as np
import pytest
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data.annotations import Annotations, Category
from dinocore.evaluate.analysis import analyse
from dinocore.evaluate.compare import compare, comparison_json
from dinocore.report.comparison import comparison_page
from dinocore.report.parts import Chart, Drawing, Gallery, Table

EVIL = "<script>window.pwned = 1</script>"
NUM = 12  # images


def rows(annotations, offset, chance, seed):
    """The objects as detections, each kept with probability `chance` and moved by `offset` pixels."""
    random = np.random.default_rng(seed)
    return [
        {"image_id": int(annotations.image_ids[owner]), "category_id": annotations.categories[label].id,
         "bbox": (box + np.array([offset, 0, 0, 0])).tolist(), "score": float(random.random())}
        for owner, label, box in zip(annotations.owners(), annotations.labels, annotations.boxes, strict=True)
        if random.random() < chance
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finds nearly all objects, B half of them, 4 pixels off."""
    folder = tmp_path_factory.mktemp("compared")
    Image.new("RGB", (160, 120), "grey").save(folder / "a.png")
    random = np.random.default_rng(0)
    boxes = np.concatenate([random.uniform(0, 80, (3 * NUM, 2)), random.uniform(20, 40, (3 * NUM, 2))], 1)
    annotations = Annotations(
        file=folder / "annotations.json", image_root=folder, categories=[Category(1, "cell"), Category(2, EVIL)],
        image_ids=np.arange(NUM), file_names=np.array([b"a.png"] * NUM), sizes=np.full((NUM, 2), [160, 120]),
        starts=np.arange(NUM + 1) * 3, boxes=boxes, labels=np.arange(3 * NUM) % 2, area=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(3 * NUM, bool), notes=[],
    )  # fmt: skip
    sides = [analyse(annotations, rows(annotations, *how), 50) for how in ((0, 0.95, 1), (4, 0.5, 2))]
    comparison = compare(*sides)
    return comparison, comparison_page(comparison, annotations, {"A": EVIL, "B": "b.json"}, DataConfig())


def parts(page, kind):
    return {part.title: part for section in page.sections for part in section.parts if isinstance(part, kind)}


def test_its_numbers_are_those_of_json(made):
    comparison, page = made
    answer, tables = comparison_json(comparison), parts(page, Table)
    for title, key, first in (("All numbers", "summary", 1), ("AP by class", "classes", 2)):
        assert [row[0] for row in tables[title].rows] == list(answer[key])
        for name, *values in tables[title].rows:
            one = answer[key][name]
            a, b, change, low, high, verdict = values[first - 1 :]
            sides = [None if one[side] is None or one[side] < 0 else one[side] for side in "ab"]
            assert [a, b, change, *(one["interval"] or [None, None])] == [*sides, one["change"], low, high]
            assert verdict == (None if low is None else "A is better" if high < 0 else "no clear difference")
    assert tables["All numbers"].rows[0][6] == "A is better"
    for name, _, count_a, count_b, a, b, change in tables["Where AP50 is lost"].rows:
        counts = [answer["sides"][side]["tide"]["count"][name] for side in "ab"]
        assert [count_a, count_b] == counts and {"a": a, "b": b, "change": change}.items() <= answer["tide"][
            name
        ].items()
    curves = parts(page, Chart)
    for title, key in (("Precision and recall, IoU 0.50", "IoU 0.50"), ("Precision and recall, IoU 0.75", "IoU 0.75")):
        assert [list(line.y) for line in curves[title].lines] == [
            answer["sides"][side]["precision"][key] for side in "ab"
        ]
    assert [line.y for line in curves["F1 by score threshold"].lines] == [
        answer["sides"][side]["curves"]["f1"] for side in "ab"
    ]


def test_the_images_are_those_whose_errors_differ_most_as_a_and_as_b_has_them(made):
    comparison, page = made
    changes = [one.change for one in comparison.images]
    assert 5 < len(changes) <= 10 and 0 not in changes
    assert [abs(n) for n in changes] == sorted(map(abs, changes), reverse=True)
    shown = parts(page, Gallery)["A next to B"].images
    assert [image.title for image in shown] == ["A: a.png", "B: a.png"] * len(changes)
    for one, (a, b) in zip(comparison.images, zip(shown[::2], shown[1::2], strict=True), strict=True):
        assert a.note == f"{one.a.right} right, {one.a.wrong} wrong, {one.a.missed} missed"
        assert b.note == f"{one.b.right} right, {one.b.wrong} wrong, {one.b.missed} missed"
        of_b = [mark for mark in b.marks if (mark.score or 1) >= comparison.b.threshold]
        assert sum(mark.kind in ("truth", "missed") for mark in b.marks) == 3
        assert sum(mark.kind == "wrong" for mark in of_b) == one.b.wrong


def test_the_drawing_has_a_row_for_each_interval_in_its_place(made):
    comparison, page = made
    svg = parts(page, Drawing)["B - A"].svg
    known = [one for part in (comparison.summary, comparison.classes) for one in part.values() if one.interval]
    places = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', svg)]
    assert EVIL not in svg and len(places) == len(known)
    order = sorted(range(len(known)), key=lambda n: known[n].change)
    assert [places[n] for n in order] == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_works_in_chromium(made, visit, scheme, width):
    tab = visit(made[1], width=width, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("window.pwned") is None and EVIL in tab.locator("table.sortable").nth(1).inner_text()
    charts = tab.locator(".chart svg[tabindex]")
    assert charts.count() == 7 and all(charts.nth(n).locator(".curve").count() >= 2 for n in range(7))
    charts.first.focus()
    charts.first.press("End")
    assert "A" in tab.locator(".tip").first.inner_text() and "B" in tab.locator(".tip").first.inner_text()
    slider = tab.get_by_role("slider")
    before = tab.locator(".kind[data-kind=missed] b").inner_text()
    slider.fill("0.99")
    assert int(tab.locator(".kind[data-kind=missed] b").inner_text()) > int(before)
    assert len(set(tab.locator(".drawing").screenshot())) > 50, "not blank"
    tops = [tab.locator("figure").nth(n).bounding_box()["y"] for n in range(3)]
    assert (tops[0] == tops[1] < tops[2]) if width > 1000 else (tops[0] < tops[1]), "A next to B if there is space"
