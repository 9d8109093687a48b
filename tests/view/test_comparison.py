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


def make_results(annotations, offset, chance, seed):
    """The objects as detections, each kept with probability `chance` and moved by `offset` pixels."""
    random = np.random.default_rng(seed)
    return [
        {"image_id": int(annotations.image_ids[owner]), "category_id": annotations.categories[label].id,
         "bbox": (box + np.array([offset, 0, 0, 0])).tolist(), "score": float(random.random())}
        for owner, label, box in zip(annotations.owners(), annotations.labels, annotations.boxes, strict=True)
        if random.random() < chance
    ]  # fmt: skip


@pytest.fixture(scope="module")
def comparison_and_page(tmp_path_factory):
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
    analyses = [analyse(annotations, make_results(annotations, *args), 50) for args in ((0, 0.95, 1), (4, 0.5, 2))]
    comparison = compare(*analyses)
    return comparison, comparison_page(comparison, annotations, {"A": EVIL, "B": "b.json"}, DataConfig())


def parts(page, kind):
    return {part.title: part for section in page.sections for part in section.parts if isinstance(part, kind)}


def test_numbers_of_the_page_equal_those_of_the_json(comparison_and_page):
    comparison, page = comparison_and_page
    data, tables = comparison_json(comparison), parts(page, Table)
    for title, key, first in (("All numbers", "summary", 1), ("AP by class", "classes", 2)):
        assert [row[0] for row in tables[title].rows] == list(data[key])
        for name, *values in tables[title].rows:
            entry = data[key][name]
            a, b, change, low, high, verdict = values[first - 1 :]
            scores = [None if entry[side] is None or entry[side] < 0 else entry[side] for side in "ab"]
            assert [a, b, change, *(entry["interval"] or [None, None])] == [*scores, entry["change"], low, high]
            assert verdict == (None if low is None else "A is better" if high < 0 else "no clear difference")
    assert tables["All numbers"].rows[0][6] == "A is better"
    for name, _, count_a, count_b, a, b, change in tables["Where AP50 is lost"].rows:
        counts = [data["sides"][side]["tide"]["count"][name] for side in "ab"]
        assert [count_a, count_b] == counts and {"a": a, "b": b, "change": change}.items() <= data["tide"][name].items()
    curves = parts(page, Chart)
    for title, key in (("Precision and recall, IoU 0.50", "IoU 0.50"), ("Precision and recall, IoU 0.75", "IoU 0.75")):
        assert [list(line.y) for line in curves[title].lines] == [
            data["sides"][side]["precision"][key] for side in "ab"
        ]
    assert [line.y for line in curves["F1 by score threshold"].lines] == [
        data["sides"][side]["curves"]["f1"] for side in "ab"
    ]


def test_images_whose_errors_differ_most_are_shown_with_both_results(comparison_and_page):
    comparison, page = comparison_and_page
    changes = [entry.change for entry in comparison.images]
    assert 5 < len(changes) <= 10 and 0 not in changes
    assert [abs(n) for n in changes] == sorted(map(abs, changes), reverse=True)
    images = parts(page, Gallery)["A next to B"].images
    assert [image.title for image in images] == ["A: a.png", "B: a.png"] * len(changes)
    for entry, (a, b) in zip(comparison.images, zip(images[::2], images[1::2], strict=True), strict=True):
        assert a.note == f"{entry.a.right} right, {entry.a.wrong} wrong, {entry.a.missed} missed"
        assert b.note == f"{entry.b.right} right, {entry.b.wrong} wrong, {entry.b.missed} missed"
        shown_b = [mark for mark in b.marks if (mark.score or 1) >= comparison.b.threshold]
        assert sum(mark.kind in ("truth", "missed") for mark in b.marks) == 3
        assert sum(mark.kind == "wrong" for mark in shown_b) == entry.b.wrong


def test_the_drawing_has_each_interval_at_its_position(comparison_and_page):
    comparison, page = comparison_and_page
    svg = parts(page, Drawing)["B - A"].svg
    entries = [entry for part in (comparison.summary, comparison.classes) for entry in part.values() if entry.interval]
    positions = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', svg)]
    assert EVIL not in svg and len(positions) == len(entries)
    order = sorted(range(len(entries)), key=lambda n: entries[n].change)
    assert [positions[n] for n in order] == sorted(positions)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_works_in_chromium(comparison_and_page, visit, scheme, width):
    tab = visit(comparison_and_page[1], width=width, scheme=scheme)
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
