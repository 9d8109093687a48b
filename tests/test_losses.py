"""The loss and the matching, compared with simple, slow implementations."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from dinocore import Target
from dinocore.boxes import iou, to_xyxy
from dinocore.config import LossConfig
from dinocore.errors import DivergedError
from dinocore.losses import criterion, detection_loss
from dinocore.matching import hungarian, matching_cost, negative_focal, positive_focal
from dinocore.model.dino import DinoOutput
from dinocore.structures import Match, Predictions, Queries

LOSS = LossConfig()


def predictions(num_queries: int, num_classes: int = 4, batch: int = 1, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_queries, num_classes, generator=generator)
    return Predictions(logits, torch.rand(batch, num_queries, 4, generator=generator) * 0.4 + 0.3)


def targets(*counts: int) -> list[Target]:
    generator = torch.Generator().manual_seed(7)
    return [
        Target(torch.randint(4, (n,), generator=generator), torch.rand(n, 4, generator=generator) * 0.4 + 0.3)
        for n in counts
    ]


def test_the_denoising_loss_is_averaged_over_participating_objects():
    (target,), stage = targets(5), predictions(4)
    two = torch.arange(2)
    match = Match(torch.zeros(4, dtype=torch.long), torch.arange(4), two.repeat(2))  # two groups of objects 0 and 1
    noise = SimpleNamespace(match=match, num_groups=2)
    output = DinoOutput([stage], None, Queries(torch.zeros(1, 4, 8), stage.boxes), [stage], noise)
    expected = (stage.boxes[0] - target.boxes[two.repeat(2)]).abs().sum() / 4
    assert criterion(output, [target], 5, LOSS)["denoising0/box"].item() == pytest.approx(5 * expected.item())
    larger_step = criterion(output, [target], 50, LOSS, num_denoised=20)
    assert larger_step["denoising0/box"].item() == pytest.approx(5 * expected.item() / 10)


@pytest.mark.parametrize("logit", [-8.0, -0.5, 0.0, 3.0])
def test_focal_loss_equals_its_formula(logit):
    p = 1 / (1 + math.exp(-logit))
    x = torch.tensor(logit)
    assert positive_focal(x, 0.25, 2.0).item() == pytest.approx(-0.25 * (1 - p) ** 2 * math.log(p), rel=1e-4)
    assert negative_focal(x, 0.25, 2.0).item() == pytest.approx(-0.75 * p**2 * math.log(1 - p), rel=1e-3)


def test_the_match_has_the_lowest_possible_cost():
    stage, (target,) = predictions(5), targets(3)
    (match,) = hungarian([stage], [target], LOSS)
    cost = matching_cost(stage.logits[0], stage.boxes[0], target, LOSS).total
    cheapest = min(itertools.permutations(range(5), 3), key=lambda rows: sum(cost[q, t] for t, q in enumerate(rows)))
    query_of = dict(zip(match.target.tolist(), match.query.tolist(), strict=True))
    assert [query_of[t] for t in range(3)] == list(cheapest)


def test_the_cost_of_a_pair_computed_by_hand():
    """Two boxes of 0.2 x 0.2 side by side, 0.1 apart: L1 0.3, IoU 0, hull 0.5 x 0.2, GIoU -0.2."""
    stage = Predictions(torch.zeros(1, 1, 2), torch.tensor([[[0.2, 0.5, 0.2, 0.2]]]))
    target = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    cost = matching_cost(stage.logits[0], stage.boxes[0], target, LOSS)
    label = (0.25 - 0.75) * 0.5**2 * math.log(2)  # positive minus negative focal loss of a score of 0.5
    assert cost.label.item() == pytest.approx(2 * label, rel=1e-5)
    assert cost.box.item() == pytest.approx(5 * 0.3, rel=1e-5)
    assert cost.giou.item() == pytest.approx(2 * 0.2, rel=1e-5)


def test_the_box_with_more_overlap_is_matched_if_distances_are_equal():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.1], [0.55, 0.55, 0.2, 0.2]]])  # both at L1 distance 0.1
    target = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    (match,) = hungarian([Predictions(torch.zeros(1, 2, 1), boxes)], [target], LOSS)
    overlap = iou(to_xyxy(boxes[0]), to_xyxy(target.boxes))
    assert match.query.tolist() == [int(overlap.argmax())]


@pytest.mark.parametrize(("num_objects", "divisor"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (3.0, 3.0)])
def test_the_loss_is_divided_by_the_number_of_objects_but_at_least_1(num_objects, divisor):
    stage, batch_targets = predictions(4, batch=2), targets(2, 1)
    output = DinoOutput([stage], None, Queries(torch.zeros(2, 4, 8), stage.boxes))
    (match,) = hungarian([stage], batch_targets, LOSS)
    expected = detection_loss(stage, batch_targets, match, divisor, LOSS)
    for name, value in criterion(output, batch_targets, num_objects, LOSS).items():
        torch.testing.assert_close(value, expected[name.removeprefix("stage0/")])


def test_each_stage_and_image_is_matched_separately():
    stages, batch_targets = [predictions(6, batch=3, seed=s) for s in range(2)], targets(2, 0, 3)
    together = hungarian(stages, batch_targets, LOSS)
    for stage, match in zip(stages, together, strict=True):
        (alone,) = hungarian([stage], batch_targets, LOSS)
        assert all(torch.equal(a, b) for a, b in zip(match, alone, strict=True))
        assert match.image.tolist() == [0, 0, 2, 2, 2]
        assert sorted(match.target.tolist()) == [0, 1, 2, 3, 4]


def test_with_more_objects_than_queries_the_most_expensive_stay_unmatched():
    stage, (target,) = predictions(2), targets(5)
    (match,) = hungarian([stage], [target], LOSS)
    assert len(match.target) == 2
    cost = matching_cost(stage.logits[0], stage.boxes[0], target, LOSS).total
    best = min(sum(cost[q, t] for q, t in enumerate(ts)) for ts in itertools.permutations(range(5), 2))
    assert cost[match.query, match.target].sum() == pytest.approx(float(best), rel=1e-5)


def test_without_objects_nothing_is_matched():
    (match,) = hungarian([predictions(3, batch=2)], targets(0, 0), LOSS)
    assert len(match.query) == 0


def test_non_finite_predictions_raise_an_error_instead_of_being_matched():
    stage = predictions(3)
    stage.boxes[0, 0, 0] = math.nan
    with pytest.raises(DivergedError, match="not finite"):
        hungarian([stage], targets(2), LOSS)


def test_the_loss_equals_an_explicit_implementation():
    stage, batch_targets = predictions(4, batch=2), targets(2, 1)
    match = Match(torch.tensor([0, 0, 1]), torch.tensor([3, 1, 2]), torch.tensor([0, 1, 2]))
    actual = detection_loss(stage, batch_targets, match, 3.0, LOSS)
    labels, boxes = torch.cat([t.labels for t in batch_targets]), torch.cat([t.boxes for t in batch_targets])
    label = box = 0.0
    for image, query, kind in itertools.product(range(2), range(4), range(4)):
        positive = any(
            (image, query, kind) == (i, q, int(labels[t])) for i, q, t in zip(*(x.tolist() for x in match), strict=True)
        )
        p = torch.sigmoid(stage.logits[image, query, kind]).item()
        label += -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)
    for image, query, t in zip(*(x.tolist() for x in match), strict=True):
        box += (stage.boxes[image, query] - boxes[t]).abs().sum().item()
    assert actual["label"].item() == pytest.approx(label / 3, rel=1e-4)
    assert actual["box"].item() == pytest.approx(5 * box / 3, rel=1e-4)


def test_the_order_of_the_objects_does_not_matter():
    stage, (target,) = predictions(6), targets(4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Target(target.labels[order], target.boxes[order])
    sums = []
    for permuted in (target, shuffled):
        (match,) = hungarian([stage], [permuted], LOSS)
        sums.append(sum(detection_loss(stage, [permuted], match, 4.0, LOSS).values()).item())
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
