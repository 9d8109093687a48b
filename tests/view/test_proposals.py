"""`dino inspect-proposals` shows the model's own proposals, and its recall equals that of a loop over boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore.boxes import iou, to_cxcywh, to_xyxy
from dinocore.data.annotations import Category
from dinocore.errors import ConfigError
from dinocore.inspect.proposals.figure import draw_layers, draw_proposals, draw_scores, render_proposals
from dinocore.inspect.proposals.proposals import (
    COUNTS,
    SIZES,
    ImageObjects,
    Inspected,
    Proposal,
    average,
    journeys,
    list_proposals,
    recalls,
    score_maps,
)  # fmt: skip
from dinocore.model.build import build_model
from dinocore.presets import load_config

SIZE = (64, 96)
NAMES = [Category(1, "disc"), Category(2, "<script>alert(1)</script>")]
SMALL = ["backbone=resnet18", "backbone_weights=none", "hidden_dim=32", "num_heads=4", "ffn_dim=48", "num_queries=20",
         "num_encoder_layers=1", "num_decoder_layers=2", "num_classes=2"]  # fmt: skip
OBJECTS = ImageObjects(
    torch.tensor([[8.0, 8, 40, 40], [50, 20, 90, 60], [2, 50, 12, 60]]),
    torch.tensor([0, 1, 0]),
    torch.tensor([1024.0, 1600, 100]),
)


def make_model(*settings: str):
    torch.manual_seed(0)
    config = load_config("r50-4scale", [f"model.{setting}" for setting in (*SMALL, *settings)])
    return build_model(config.model).eval(), config


@torch.no_grad()
def forward(net):
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return net(images, torch.zeros(1, *SIZE, dtype=torch.bool))


def views(net, config) -> dict[str, bytes]:
    """The pixels or numbers of every view."""
    output, image = forward(net), Image.new("RGB", SIZE[::-1], "gray")
    rows = list_proposals(output, SIZE, NAMES)
    paths = journeys(output, SIZE, OBJECTS, config.loss, NAMES, 5)
    return {
        "boxes": draw_proposals(image, rows, "level").tobytes(),
        "scores": draw_scores(image, score_maps(output), rows).tobytes(),
        "layers": draw_layers(image, paths, OBJECTS, 30).tobytes(),
        "gains": repr(average(paths)).encode(),
    }


@pytest.mark.parametrize("labels", ["classes", "foreground"])
def test_every_view_changes_with_the_weights(labels):
    net, config = make_model(f"first_stage={labels}")
    before = views(net, config)
    assert views(net, config) == before
    with torch.no_grad():
        net.proposer.project[0].weight.neg_()
    after = views(net, config)
    assert all(after[name] != before[name] for name in before)
    with torch.no_grad():
        net.decoder.box_heads[-1][-1].bias.add_(0.7)
    last = views(net, config)
    assert last["scores"] == after["scores"]  # independent of the decoder
    assert all(last[name] != after[name] for name in ("boxes", "layers", "gains"))


def test_tokens_are_selected_by_the_scores_of_the_maps():
    output = forward(make_model()[0])
    all_scores = np.concatenate([scores.ravel() for scores in score_maps(output)])
    chosen = output.proposals.logits[0].sigmoid().amax(-1).numpy()
    assert np.allclose(np.sort(all_scores)[::-1][:20], chosen, atol=1e-6)
    assert [scores.shape for scores in score_maps(output)] == [(8, 12), (4, 6), (2, 3), (1, 2)]


def test_a_journey_has_the_boxes_of_its_query_at_every_stage():
    net, config = make_model()
    output = forward(net)
    scale = torch.tensor([96.0, 64, 96, 64])
    for journey in journeys(output, SIZE, OBJECTS, config.loss, NAMES, 5):
        query, truth = journey.query, OBJECTS.boxes[journey.object]
        stages = [output.proposals.anchors, output.proposals.boxes, *(stage.boxes for stage in output.stages)]
        for box, overlap, stage in zip(journey.boxes, journey.ious, stages, strict=True):
            assert box == pytest.approx((to_xyxy(stage[0, query]) * scale).tolist(), abs=1e-3)
            assert overlap == pytest.approx(float(iou(to_xyxy(stage[0, query]) * scale, truth)), abs=1e-5)
        centers = [to_cxcywh(torch.tensor(box))[:2] for box in journey.boxes]
        assert journey.moved[1] == pytest.approx(float((centers[2] - centers[1]).norm()), abs=1e-3)
    assert len(journeys(output, SIZE, None, config.loss, NAMES, 5)) == 5


def random_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * 200
    return torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 150], dim=1)


def make_inspected(boxes: torch.Tensor, levels: torch.Tensor, objects: torch.Tensor, areas: torch.Tensor) -> Inspected:
    """An image with these proposals, best first, and these objects."""
    rows = enumerate(zip(levels.tolist(), boxes.tolist(), strict=True))
    proposals = [Proposal(n, level, 0.5, "", box, box, box, "", 0.5, 0.0, 1.0) for n, (level, box) in rows]
    return Inspected("a.png", SIZE, proposals, [], [], ImageObjects(objects, torch.zeros(len(objects)).long(), areas))


def test_recall_equals_that_of_a_loop():
    generator = torch.Generator().manual_seed(3)
    images = []
    for count in (0, 3, 9):
        objects = random_boxes(count, generator)
        areas = (objects[:, 2:] - objects[:, :2]).prod(1)
        levels = torch.randint(3, (60,), generator=generator)
        images.append((random_boxes(60, generator), levels, objects, areas))
    rows = recalls([make_inspected(*image) for image in images])
    assert list(rows[0].shares) == [10, 50, 60]
    assert {row.size for row in rows} >= {None, "medium", "large"} and {row.level for row in rows} == {None, 0, 1, 2}
    for row in rows:
        low, high = SIZES[row.size] if row.size else (0, 1e9)
        for count, recall in row.shares.items():
            hits, total = 0, 0
            for boxes, levels, objects, areas in images:
                for box, area in zip(objects, areas, strict=True):
                    if not low <= area < high:
                        continue
                    total += 1
                    first = zip(boxes[:count], levels[:count], strict=True)
                    hits += any(iou(box, p) >= row.iou for p, level in first if row.level in (None, int(level)))
            assert (row.objects, recall) == (total, pytest.approx(hits / total))


def test_recall_without_objects_is_empty_and_counts_end_at_900():
    none = make_inspected(torch.rand(5, 4), torch.zeros(5).long(), torch.zeros(0, 4), torch.zeros(0))
    assert recalls([none]) == []
    many = make_inspected(
        torch.rand(1000, 4), torch.zeros(1000).long(), torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([81.0])
    )
    assert tuple(recalls([many])[0].shares) == COUNTS


def test_static_queries_have_no_first_stage():
    output = forward(make_model("queries=static")[0])
    for inspect in (lambda: score_maps(output), lambda: list_proposals(output, SIZE, NAMES)):
        with pytest.raises(ConfigError, match="static"):
            inspect()


def test_figures_with_one_many_or_no_objects_and_a_page_with_escaped_names():
    net, config = make_model("num_queries=300")
    image, output = Image.new("RGB", SIZE[::-1]), forward(net)
    many = ImageObjects(
        random_boxes(300, torch.Generator().manual_seed(0)) / 4, torch.zeros(300).long(), torch.ones(300)
    )
    for objects in (
        ImageObjects(*(part[:1] for part in OBJECTS)),
        many,
        ImageObjects(*(part[:0] for part in OBJECTS)),
    ):
        paths = journeys(output, SIZE, objects, config.loss, NAMES, 5)
        assert draw_layers(image, paths, objects, 30).width == 1200
    rows = list_proposals(output, SIZE, NAMES)
    inspected = Inspected("<script>alert(1)</script>.png", SIZE, rows, score_maps(output), [], None)
    page = render_proposals([inspected], [[image] * 3], [], 5)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
