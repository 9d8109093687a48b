"""A row of the mask in words, and the drawing as SVG and HTML, follow the model's own mask and noise."""

import re
from xml.etree import ElementTree

import pytest
import torch

from dinocore.draw.canvas import Line, Text
from dinocore.errors import ConfigError
from dinocore.inspect.mask.explain import explain, to_json, to_lines
from dinocore.inspect.mask.figure import draw_image, draw_mask, draw_svg, render_mask
from dinocore.inspect.mask.mask import MaskBatch, MaskView, batch_mask, mask_of
from dinocore.model import denoising
from dinocore.model.build import build_denoiser
from dinocore.presets import load_config
from dinocore.structures import Target

SVG = "{http://www.w3.org/2000/svg}"


def model_config(*overrides: str):
    return load_config("r50-4scale", [f"model.{override}" for override in ("hidden_dim=32", *overrides)]).model


def mask(num_groups: int, *num_objects: int) -> MaskView:
    return mask_of(model_config(f"denoising.num_groups={num_groups}"), num_objects)


def test_a_positive_query_is_explained():
    assert to_lines(explain(mask(2, 2, 1), 1)) == [
        "query 1: a positive of denoising group 0",
        "  image 0: a noisy copy of object 1, which it must recover",
        '  image 1: a padding slot (this image has fewer objects); like a negative, it must predict "no object"',
        "  may attend to its own group, 4 queries (0-3): a group is one set of noisy copies, predicted together like "
        "objects at inference",
        "  may attend to matching queries, 900 queries (8-907): they contain nothing of the annotated objects, so "
        "nothing leaks",
        "  may NOT attend to other groups, 4 queries (4-7): they are other noisy copies of the same objects and would "
        "reveal the targets",
        "  is seen by 4 queries (0-3)",
    ]


def test_a_negative_and_a_matching_query_are_explained():
    view = mask(2, 2)
    assert to_lines(explain(view, 7))[1] == (
        '  image 0: a copy of object 1 with too much noise, so it must predict "no object"'
    )
    explanation = explain(view, 8)
    assert (explanation.kind, explanation.group, explanation.images) == ("matching", None, [])
    assert [(s.may, s.queries) for s in explanation.sights] == [(True, [[8, 908]]), (False, [[0, 8]])]


def test_explanations_equal_the_mask_for_every_query():
    view = mask(3, 2, 1)
    for query in range(len(view.blocked)):
        row = torch.full((len(view.blocked),), -1)
        for sight in explain(view, query).sights:
            for first, end in sight.queries:
                assert (row[first:end] == -1).all()  # no query is listed twice
                row[first:end] = int(not sight.may)
        assert row.equal(view.blocked[query].long())


def test_the_explained_object_is_the_one_that_the_denoiser_selected():
    """Two of three objects take part; without noise, positives equal the objects that they are copies of."""
    config = model_config("denoising.num_groups=2", "denoising.max_queries=8", "denoising.box_noise=0.0")
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2], [0.8, 0.8, 0.3, 0.3]])
    target = Target(torch.tensor([0, 1, 2]), boxes, seed=5)
    noise = build_denoiser(config)([target])
    view = batch_mask(config, MaskBatch([target], ["a.jpg"], [["disc", "ring", "<b>"]]))
    for query in range(8):
        copy = explain(view, query).images[0]
        assert boxes[copy.object].allclose(noise.boxes[0, query], atol=1e-6)
        assert copy.label == ["disc", "ring", "<b>"][copy.object] and copy.file == "a.jpg"
    assert noise.target_index[noise.match.image, noise.match.query].equal(noise.match.target)


def test_the_explanation_reports_a_mask_that_violates_the_rule(monkeypatch):
    monkeypatch.setattr(denoising, "attention_mask", lambda group: torch.eye(len(group), dtype=torch.bool))
    shown = "\n".join(to_lines(explain(mask(2, 1), 0)))
    assert "may NOT attend to its own group, 1 query (0): so the model's mask says, which violates DINO's rule" in shown
    assert "may attend to other groups, 2 queries (2-3): so the model's mask says, which violates DINO's rule" in shown


def test_an_unknown_query_is_refused():
    for query in (-1, 908):
        with pytest.raises(ConfigError, match="queries 0 to 907"):
            explain(mask(2, 2), query)


@pytest.mark.parametrize(
    "make_view", [lambda: mask(2, 2, 1), lambda: mask(33, 3), lambda: mask(1, 300), lambda: mask(0, 3)]
)
def test_svg_has_the_pixels_of_the_png(make_view):
    """The filled rectangles of the SVG, painted in order, give the PNG's colours along each row."""
    view = make_view()
    root = ElementTree.fromstring(draw_svg(view))
    light = root.find(f"{SVG}style").text.split("@media")[0]
    colors = dict(re.findall(r"\.f(\w+) \{ fill: #(\w+) \}", light))
    image = draw_image(view)
    painted = torch.zeros(image.height, image.width, 3, dtype=torch.uint8)
    for rect in root.findall(f"{SVG}rect"):  # those of explanations are nested
        kind = re.match(r"f(\w+)", rect.get("class"))
        x, y, width, height = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
        if kind:
            rgb = torch.tensor(list(bytes.fromhex(colors[kind[1]])), dtype=torch.uint8)
            painted[int(y) : round(y + height), int(x) : round(x + width)] = rgb
    spots = [spot.find(f"{SVG}rect") for spot in root.iter(f"{SVG}g") if spot.get("class") == "spot"]
    for rect in spots:
        y = int(float(rect.get("y")) + float(rect.get("height")) / 3)
        start, end = int(float(rect.get("x"))) + 60, int(float(rect.get("x")) + float(rect.get("width")))
        shown = torch.tensor([image.getpixel((x, y)) for x in range(start, end)])
        lines = (shown != painted[y, start:end]).any(1)  # outlines and group borders
        assert lines.float().mean() < 0.1


def test_each_row_of_the_svg_is_explained_for_pointer_and_keyboard():
    view = mask(2, 2, 1)
    root = ElementTree.fromstring(draw_svg(view))
    spots = [spot for spot in root.iter(f"{SVG}g") if spot.get("class") == "spot"]
    assert len(spots) == 8 + 1 and all(spot.get("tabindex") == "0" for spot in spots)
    shown = ["".join(text.text for text in spot.iter(f"{SVG}text")) for spot in spots]
    assert shown[0].startswith("query 0: a positive of denoising group 0") and "900 matching queries" in shown[-1]
    expected = " ".join(" ".join(to_lines(explain(view, 3))).split())
    assert " ".join(" ".join(text.text for text in spots[3].iter(f"{SVG}text")).split()) == expected


def test_names_are_escaped():
    config = model_config("denoising.num_groups=2")
    evil = '<script>alert(1)</script>&"'
    target = Target(torch.tensor([0]), torch.full((1, 4), 0.5), seed=0)
    view = batch_mask(config, MaskBatch([target], [evil], [[evil]]))
    assert evil in to_lines(explain(view, 0))[1]
    for text in (draw_svg(view), render_mask(view)):
        assert "<script>alert" not in text and "&lt;script&gt;" in text
    ElementTree.fromstring(draw_svg(view))


def test_html_loads_no_other_files():
    page = render_mask(mask(2, 2, 1))
    assert page.startswith("<!doctype html>") and not re.search(r"(src|href)=\"(http|//)|@import|url\(", page)
    assert page.count('class="spot"') == 9 and "prefers-color-scheme: dark" in page
    assert len(render_mask(mask(100, 100)).encode()) < 2_000_000


def test_the_json_of_a_query_equals_its_explanation():
    data = to_json(explain(mask(2, 2, 1), 1))
    assert data["images"][0] == {"image": 0, "file": None, "object": 1, "label": None, "must_answer": "the object"}
    assert data["images"][1]["object"] is None and data["images"][1]["must_answer"] == "no object"
    assert data["seen_by"] == [[0, 4]] and len(data["sights"]) == 3


def test_the_drawing_changes_with_the_mask(monkeypatch):
    before = draw_mask(mask(2, 1)).shapes
    monkeypatch.setattr(denoising, "attention_mask", lambda group: torch.eye(len(group), dtype=torch.bool))
    assert draw_mask(mask(2, 1)).shapes != before


def test_style_rules_of_the_svg_apply_only_to_the_drawing_and_its_theme():
    """The page around it has its own styles, and rules for dark mode must not apply in a light page."""
    style = ElementTree.fromstring(draw_svg(mask(2, 2, 1))).find(f"{SVG}style").text
    selectors = re.findall(r"([^{}]+)\{[^{}]*\}", re.sub(r"@media[^{]*\{", "", style).replace("}\n}", "}"))
    assert len(selectors) > 20 and all("svg.sheet" in selector for selector in selectors)
    assert all("svg.sheet" in part for selector in selectors for part in re.split(r",(?![^()]*\))", selector))
    for theme in re.findall(r"@media[^{]*\{(.*?)\n\}", style, re.DOTALL):
        rules = theme.strip().splitlines()
        assert rules and all(re.match(r":(is\(svg\.sheet:root|root\[data-theme)", rule) for rule in rules)
        assert all(rule.count("{") == 1 for rule in rules), "a second rule on the line would have no scope"


@pytest.mark.parametrize("objects", [(2, 2, 1), (100, 1)])
def test_padding_in_the_legend_is_drawn_as_in_the_mask(objects):
    shapes = draw_mask(mask(3, *objects)).shapes
    crosses = [shape for shape in shapes if isinstance(shape, Line) and shape.width == 2]
    (text,) = [shape for shape in shapes if isinstance(shape, Text) and shape.text.startswith("a padding slot")]
    near_text = [line for line in crosses if abs((line.y0 + line.y1) / 2 - text.y) < 5 and line.x1 < text.x]
    assert len(near_text) == (2 if len(crosses) > len(near_text) else 0), "crossed out if the strips are"
    assert (len(near_text) == 2) == (objects == (2, 2, 1))
