"""Report pages, as text and in Chromium."""

import base64
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocli.commands.train.view import loss_parts
from dinocore.data.annotations import Annotations, Category
from dinocore.draw.curves import draw_curves
from dinocore.evaluate.matches import match
from dinocore.report.examples import image_marks
from dinocore.report.page import _gallery_data, render_page, shrink
from dinocore.report.parts import (  # fmt: skip
    Chart,
    Curve,
    Drawing,
    Facts,
    Gallery,
    Mark,
    MarkedImage,
    Matrix,
    Page,
    Section,
    Table,
)
from dinocore.report.training import RunFacts, training_page

EVIL = "<script>window.pwned = 1</script><img src=x onerror=window.pwned=2>\"'&"
MARKS = [
    Mark((10, 10, 60, 50), "cell", "truth", 0.6), Mark((12, 11, 61, 52), "cell", "found", 0.6),
    Mark((80, 20, 110, 70), EVIL, "wrong", 0.4), Mark((70, 75, 115, 88), "cell", "missed"),
]  # fmt: skip


def make_image(title="a.jpg", marks=MARKS, size=(120, 90)):
    ramp = np.linspace(40, 220, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    return MarkedImage(title, Image.fromarray(ramp.astype(np.uint8)), marks)


def make_page(*parts):
    return Page(f"report {EVIL}", EVIL, [Section(f"section {EVIL}", parts, EVIL), Section("end", [])])


def full_page():
    rows = [["b", 0.5, 3], ["a", 0.25, 20], [EVIL, None, 100]]
    return make_page(
        Facts("facts", {EVIL: EVIL, "yes": True, "none": None, "share": 0.123456}, EVIL),
        Table("table", ["class", "AP", EVIL], rows, EVIL),
        Chart(
            "chart", "step", "loss", [Curve("single", [1, 2, 3], [3.5, 2.5, None]), Curve(EVIL, [1, 2, 3], [1, 2, 3])]
        ),
        Matrix("matrix", ["cat", EVIL], ["cat", EVIL], [[5, 1], [0, 7]], "annotated", "found"),
        Drawing("drawing", '<svg viewBox="0 0 2000 50" width="2000" height="50"><rect width="99" height="9"/></svg>'),
        Gallery("gallery", [make_image(f"{EVIL}.jpg"), make_image("b\udc80.jpg", [])], text=EVIL),
    )


def embedded_json(html):
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html)]


# the text


def test_names_are_escaped_everywhere_and_unchanged_in_the_data():
    html = render_page(full_page())
    assert EVIL not in html and "<script>" not in html and "<img src=x" not in html
    assert html.count("<script") == html.count("</script>") == 3, "for the chart, the gallery and the page"
    chart, gallery = embedded_json(html)
    assert chart["lines"][1]["name"] == EVIL and EVIL in gallery["labels"]
    html.encode("utf-8")
    assert "b\\udc80.jpg" in html


def test_the_content_security_policy_allows_only_our_script():
    html = render_page(full_page())
    script = re.search(r'<script id="script">(.*?)</script>', html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html and "default-src 'none'" in html
    assert not re.search(r"\bon\w+=\"|(src|href)=\"(?!data:|#)|@import|url\(", html)


def test_numbers_are_rounded_for_display_and_exact_in_the_data():
    html_of_fractions = render_page(make_page(Table("", ["AP"], [[0.5], [-0.00004], [None]])))
    assert 'data-v="0.5">0.5000</td>' in html_of_fractions and 'data-v="-4e-05">-0.0000</td>' in html_of_fractions
    html = render_page(make_page(Table("", ["AP"], [[0.123456789], [12345], [float("nan")]])))
    assert '<td class="n" data-v="0.123456789">0.1235</td>' in html and ">12345</td>" in html and ">–</td>" in html  # noqa: RUF001
    assert '"y":[1.0,null]' in render_page(make_page(Chart("", "", "", [Curve("a", [1, 2], [1, float("inf")])])))


def test_images_are_shrunk_to_limit_the_size_of_the_page():
    noise = np.random.default_rng(0).integers(0, 256, (100, 240, 320, 3), dtype=np.uint8)
    marks = [Mark((1, 2, 30, 40), "cell", "found", 0.5)] * 100
    images = [MarkedImage(f"{n}.jpg", Image.fromarray(pixels), marks) for n, pixels in enumerate(noise)]
    html = render_page(make_page(Gallery("noise, which JPEG keeps worst", images)))
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(encoded) == 100 and 3_000_000 < len(html.encode()) < 5_000_000
    sizes = {Image.open(io.BytesIO(base64.b64decode(text))).size for text in encoded}
    assert len(sizes) == 1 and 100 < sizes.pop()[0] < 320, "of equal size, and no smaller than necessary"
    assert 'viewBox="0 0 320 240"' in html, "boxes stay in pixels of the original image"


def test_boxes_are_scaled_with_a_shrunk_image():
    small = shrink(MarkedImage("", Image.new("RGB", (400, 200)), [Mark((100, 50, 200, 100), "", "truth")]), 100)
    assert small.image.size == (100, 50) and list(small.marks[0].xyxy) == [25, 12.5, 50, 25]


def test_the_box_with_the_highest_score_gets_the_object_and_others_are_wrong():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 10, 10], [50, 50, 40, 40.0]])  # x y width height
    annotations = Annotations(
        Path(), Path(), [Category(0, "a"), Category(1, "b")], np.array([7]), np.array([b"7.jpg"]),
        np.array([[100, 100]]), np.array([0, 3]), boxes, np.array([0, 1, 0]), boxes[:, 2:].prod(1),
        np.array([False, False, True]), [],
    )  # fmt: skip
    detections = zip(
        [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 10, 10], [60, 60, 10, 10]], [0.9, 0.8, 0.7, 0.6], strict=True
    )
    rows = [{"image_id": 7, "category_id": 0, "bbox": box, "score": score} for box, score in detections]
    marks = [(mark.kind, mark.label, mark.score) for mark in image_marks(match(annotations, rows), 7)]
    assert marks == [
        ("truth", "a", 0.9), ("missed", "b", None), ("found", "a", 0.9), ("wrong", "a", 0.8), ("wrong", "a", 0.7),
    ], "the last detection lies in a crowd and is ignored"  # fmt: skip
    assert [mark.kind for mark in image_marks(match(annotations, []), 7)] == ["missed", "missed"]


def test_the_report_of_a_run_shows_the_numbers_of_its_log(tmp_path):
    steps = [
        {"step": n, "epoch": 1 + n // 500, "loss": 3.0, "matching/label": 1.0, "matching/box": 2.0, "grad_norm": None,
         "lr": 1e-4, "seconds": 0.5, "data_seconds": 0.1, "memory_mb": 900}
        for n in range(1, 901)
    ]  # fmt: skip
    scores = [
        {"step": 450 * n, "epoch": n, "AP": ap, "AP50": 0.9, "AP75": 0.3, "APs": -1}
        for n, ap in [(1, 0.4321), (2, 0.4)]
    ]
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(json.dumps(row) for row in [*steps, *scores]))
    page = training_page(log, RunFacts("runs/x", {}, {}, {"train": {"lr": 1e-4, "amp": "auto"}}, [], 0))
    assert "Best AP 0.4321 after epoch 1" in page.subtitle
    html = render_page(page)
    assert 'data-v="0.4321"' in html and re.search(r">train\.lr</td><td[^>]*>0\.0001</td>", html)
    charts = {chart["title"]: {line["name"]: line for line in chart["lines"]} for chart in embedded_json(html)}
    assert charts["By IoU threshold"]["AP"]["y"] == [0.4321, 0.4]
    assert charts["By object size"]["small"]["y"] == [None, None]
    assert set(charts["By stage"]) == {"all", "matching"} and set(charts["By term"]) == {"all", "class", "box (L1)"}
    curve = charts["By stage"]["all"]
    assert len(curve["x"]) == 300 and curve["x"][-1] == 900 and set(curve["y"]) == {3.0}


def test_curves_include_unknown_stages_and_terms_and_add_up_to_the_loss(tmp_path):
    parts = {"matching/label": 1.0, "matching/box": 2.0, "extra/label": 0.5, "matching/l7_novelty": 0.25}
    rows = [{"step": n, "epoch": 1, "loss": 3.75, "lr": 1e-4, "seconds": 0.5, "data_seconds": 0.1, "memory_mb": 9,
             "grad_norm": 1.0} | parts for n in (1, 2, 3)]  # fmt: skip
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    facts = RunFacts("runs/x", {}, {}, {}, [], 0)
    charts = {chart["title"]: {line["name"]: line["y"] for line in chart["lines"]}
              for chart in embedded_json(render_page(training_page(log, facts)))}  # fmt: skip
    assert charts["By stage"] == {"all": [3.75] * 3, "matching": [3.25] * 3, "extra": [0.5] * 3}
    assert charts["By term"]["l7_novelty"] == [0.25] * 3 and charts["By term"]["class"] == [1.5] * 3
    assert len(charts["Each term of each stage"]) == len(parts)
    with_all = draw_curves(log).tobytes()
    log.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "extra/label"}) for row in rows))
    assert draw_curves(log).tobytes() != with_all


def test_curves_terminal_and_report_use_the_same_name_for_the_first_stage(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("dinocore.draw.curves._plot", lambda image, left, title, curves, top: drawn.extend(curves))
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps({"step": 1, "epoch": 1, "loss": 1.0, "proposals/box": 1.0}))
    draw_curves(log)
    assert "first stage" in [curve.name for curve in drawn] and "first stage" in loss_parts({"proposals/box": 1.0})


def test_a_training_report_of_one_image_and_one_step_uses_the_singular(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps({"step": 1, "epoch": 1, "loss": 1.0, "lr": 1e-4, "seconds": 0.5, "data_seconds": 0.1,
                               "memory_mb": 9, "grad_norm": 1.0, "matching/label": 1.0}) + "\n")  # fmt: skip
    page = training_page(log, RunFacts("runs/x", {}, {}, {}, [make_image()], 1))
    beginning = "In 1 validation image, the model after epoch 1"
    assert page.headline == f"{beginning} finds 1 of 2 objects at threshold 0.60, with 0 false alarms."
    html = render_page(page)
    assert "1 validation image, evenly spaced" in html and "1 step, epoch 1." in html


# in Chromium


def column(tab, number):
    return tab.locator(f"table.sortable tbody td:nth-child({number})").all_inner_texts()


@pytest.mark.slow
def test_facts_are_in_two_columns_on_a_phone(visit):
    tab = visit(Page("x", "", [Section("", [Facts("", dict.fromkeys(("AP", "AP50", "AP75", "APs"), "0.1234"))])]))
    tab.set_viewport_size({"width": 390, "height": 844})
    tops = tab.evaluate("[...document.querySelectorAll('.facts div')].map(e => e.getBoundingClientRect().top)")
    assert tops[0] == tops[1] < tops[2] == tops[3]


@pytest.mark.slow
def test_names_are_not_executed_and_shown_unchanged(visit):
    tab = visit(full_page())
    tab.locator(".open").first.click()
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.pwned") is None and tab.locator("img[src=x]").count() == 0
    assert EVIL in tab.title() and EVIL in tab.locator("h1").inner_text()
    assert EVIL in tab.locator("dialog .list").inner_text() and EVIL in tab.locator(".legend").inner_text()


@pytest.mark.slow
def test_the_content_security_policy_blocks_injected_scripts(visit, tmp_path):
    html = render_page(full_page()).replace("<main>", "<main><script>window.pwned = 1</script>")
    file = tmp_path / "pierced.html"
    file.write_text(html, encoding="utf-8")
    tab = visit(full_page()).context.new_page()
    tab.goto(file.as_uri())
    assert tab.evaluate("window.pwned") is None and tab.locator(".chart svg path").count() > 0


def test_a_score_equal_to_the_threshold_is_not_below_it_in_the_page():
    score = 0.241549999  # below the threshold if rounded to four digits
    image = MarkedImage("a", Image.new("RGB", (20, 20)), [Mark((1, 1, 9, 9), "cat", "found", score)])
    data = _gallery_data(Gallery("Found", [image], threshold=score))
    assert data["images"][0]["marks"][0][-1] >= data["threshold"] > 0.2415


@pytest.mark.slow
def test_the_threshold_redraws_boxes_and_counts_them(visit):
    tab = visit(full_page())
    slider, figure = tab.get_by_label("score"), tab.locator("figure").first
    figure.scroll_into_view_if_needed()

    def drawn():
        tab.wait_for_timeout(50)
        kinds = ("truth", "found", "wrong", "missed")
        return [figure.locator(f".marks g[data-kind={kind}]").count() for kind in kinds]

    counts = tab.locator(".kind b")
    assert drawn() == [1, 1, 1, 1] and counts.all_inner_texts() == ["2", "1", "1", "1"], (
        "annotated objects include missed ones"
    )
    slider.fill("0.4")
    assert drawn() == [1, 1, 1, 1], "a box at the threshold is shown"
    slider.press("ArrowRight")
    assert drawn() == [1, 1, 0, 1] and tab.locator(".slider output").inner_text() == "0.41"
    slider.fill("0.7")
    assert drawn() == [0, 0, 0, 2], "an object is missed if its detection is below the threshold"
    assert "2 annotated, 2 missed, 0 found" in figure.inner_text() and counts.first.text_content() == "2"
    tab.locator(".kind[data-kind=missed]").press("Enter")
    assert drawn() == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_flat_box_is_visible(visit):
    tab = visit(make_page(Gallery("", [make_image(marks=[Mark((20, 45, 100, 45), "", "truth")])])))
    tab.locator("figure").scroll_into_view_if_needed()
    tab.wait_for_timeout(100)
    tab.locator("figure .halo").evaluate("e => e.remove()")
    before = tab.locator("figure .open").screenshot()
    tab.locator("figure .marks").evaluate("e => e.replaceChildren()")
    assert tab.locator("figure .open").screenshot() != before


@pytest.mark.slow
def test_a_long_label_is_shortened_and_shown_in_full_when_selected(visit):
    name = "neutrophilic segmented granulocyte"
    tab = visit(
        make_page(Gallery("", [make_image(marks=[Mark((20, 45, 100, 70), name, "found", 0.53)], size=(480, 360))]))
    )
    tab.locator("figure").scroll_into_view_if_needed()
    tab.wait_for_timeout(100)
    label = tab.locator("figure .marks text").text_content()
    assert label.startswith("neutro") and label.endswith("…e 0.53") and len(label) < len(name)
    tab.locator(".open").first.press("Enter")
    tab.locator("dialog .list button").first.focus()
    assert tab.locator("dialog .marks .pick text").text_content() == f"{name} 0.53"


@pytest.mark.slow
def test_boxes_differ_in_colour_and_in_dashes(visit):
    tab = visit(full_page())
    tab.locator("figure").first.scroll_into_view_if_needed()
    tab.wait_for_timeout(100)
    look = "e => [getComputedStyle(e).stroke, getComputedStyle(e).strokeDasharray]"
    styles = [
        tab.locator(f".marks rect.{kind}").first.evaluate(look)
        for kind in ("truth", "found", "wrong", "missed")
    ]  # fmt: skip
    assert len({stroke for stroke, _ in styles}) == len({dashes for _, dashes in styles}) == 4
    assert styles[1][1] == "none"


@pytest.mark.slow
def test_a_table_is_sorted_by_mouse_and_by_keyboard(visit):
    tab = visit(full_page())
    heads = tab.locator("table.sortable th")
    assert column(tab, 1)[:2] == ["b", "a"]
    heads.nth(2).locator("button").click()
    assert column(tab, 3) == ["100", "20", "3"] and heads.nth(2).get_attribute("aria-sort") == "descending"
    heads.nth(1).locator("button").focus()
    for expected, order in [(["0.5000", "0.2500", "–"], "descending"), (["0.2500", "0.5000", "–"], "ascending")]:  # noqa: RUF001
        tab.keyboard.press("Enter")
        assert column(tab, 2) == expected and heads.nth(1).get_attribute("aria-sort") == order
    assert heads.nth(2).get_attribute("aria-sort") is None


@pytest.mark.slow
def test_curves_and_matrices_show_their_values(visit):
    tab = visit(full_page())
    chart, tip = tab.locator(".chart svg[tabindex]"), tab.locator(".tip")
    chart.hover(position={"x": 60, "y": 100})
    assert "step 1" in tip.inner_text() and "3.5" in tip.inner_text()
    tab.mouse.move(0, 0)
    chart.focus()
    chart.press("End")
    assert "step 3" in tip.inner_text() and "single" not in tip.inner_text(), "a gap has no value"
    chart.press("ArrowLeft")
    assert re.sub(r"\s+", " ", tip.inner_text()).startswith("step 2 single 2.5")
    tab.locator(".wide[aria-label=matrix]").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".readout").inner_text() == f"annotated cat, found {EVIL}: 1"


@pytest.mark.slow
def test_an_image_is_enlarged_and_switched_by_keyboard(visit):
    tab = visit(full_page())
    tab.locator(".open").first.press("Enter")
    box = tab.locator("dialog")
    assert "(1 of 2)" in box.inner_text() and box.locator(".marks g[data-kind]").count() == 4
    box.locator(".list button").first.focus()
    assert box.locator(".marks g.pick[data-kind]").count() == 1
    tab.keyboard.press("ArrowRight")
    assert "(2 of 2)" in box.inner_text() and box.locator(".marks g").count() == 0
    tab.keyboard.press("Escape")
    assert not box.is_visible()


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_the_page_works_in_dark_and_light_mode_and_fits_a_phone(visit, scheme, width):
    tab = visit(full_page(), width=width, scheme=scheme)
    pixels = np.asarray(Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("L"))
    corner = pixels[5, 5]
    assert (corner < 60) if scheme == "dark" else (corner > 200)
    assert 0.02 < (np.abs(pixels.astype(int) - corner) > 60).mean() < 0.6, "neither blank nor too dense"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.locator("#theme").click()
    other = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))[5, 5]
    assert (other > 200) if scheme == "dark" else (other < 60)


@pytest.mark.slow
def test_the_page_prints_in_light_mode(visit):
    tab = visit(full_page(), scheme="dark")
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("nav").is_visible() and len(tab.pdf()) > 10_000
