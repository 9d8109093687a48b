"""`dino inspect-matching` shows the matching used by the loss, and the model's denoising queries."""

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import ImageDraw

import dinocore.inspect.matching.matching
import dinocore.losses
import dinocore.matching
from dinocore import Target
from dinocore.inspect.matching.figure import draw_matching, render_matching
from dinocore.inspect.matching.matching import final_objects, fraction_kept, instability, look_at_matching
from dinocore.losses import criterion


def make_batch(detector, image, num_objects=3):
    generator = torch.Generator().manual_seed(5)
    boxes = torch.rand(num_objects, 4, generator=generator) * 0.3 + 0.2
    target = Target(torch.randint(4, (num_objects,), generator=generator), boxes, seed=1)
    return detector.batch(image)._replace(targets=[target])


def test_costs_equal_those_given_to_the_hungarian_algorithm(detector, image, monkeypatch):
    costs, solve = [], dinocore.matching.linear_sum_assignment
    monkeypatch.setattr(dinocore.matching, "linear_sum_assignment", lambda cost: (costs.append(cost), solve(cost))[1])
    result = look_at_matching(detector, make_batch(detector, image))
    assert [stage.name for stage in result.stages] == ["first stage", "layer 0", "layer 1"]
    assert len(costs) == len(result.stages)
    for cost, stage in zip(costs, result.stages, strict=True):
        assert [answer.object for answer in stage.answers] == [0, 1, 2]
        for a in stage.answers:
            assert a.cost == pytest.approx(float(cost[a.query, a.object]), abs=1e-6)
            assert a.cost == pytest.approx(sum(a.costs.values()), abs=1e-5)


class CostWithAspect(NamedTuple):
    """A matching cost with one part more than DINO's."""

    label: torch.Tensor
    box: torch.Tensor
    giou: torch.Tensor
    aspect: torch.Tensor

    @property
    def total(self):
        return self.label + self.box + self.giou + self.aspect


def test_a_new_term_of_the_matching_cost_is_shown_in_every_view(detector, image, monkeypatch):
    batch = make_batch(detector, image)
    before = draw_matching(image, look_at_matching(detector, batch)).tobytes()
    original = dinocore.matching.matching_cost

    def cost_with_aspect(logits, boxes, target, loss):
        cost = original(logits, boxes, target, loss)
        return CostWithAspect(*cost, 0.3 * boxes[..., :1].expand_as(cost.label))

    for module in (dinocore.matching, dinocore.inspect.matching.matching):
        monkeypatch.setattr(module, "matching_cost", cost_with_aspect)
    result = look_at_matching(detector, batch)
    for stage in result.stages:
        assert all(a.cost == pytest.approx(sum(a.costs.values()), abs=1e-5) for a in stage.answers)
        assert stage.mean_costs()["aspect"] == pytest.approx(np.mean([a.costs["aspect"] for a in stage.answers]))
    answer = result.as_dict()["stages"][0]["answers"][0]
    assert list(answer)[:6] == ["object", "query", "cost_class", "cost_l1", "cost_giou", "cost_aspect"]
    assert ">aspect</button>" in render_matching("a.png", image, image, result)
    assert draw_matching(image, result).tobytes() != before


def test_several_first_stage_queries_matched_to_one_object_are_shown(detector, image):
    loss = detector.config.loss.model_copy(update={"proposal_positives": 3})
    changed_detector = copy.copy(detector)
    changed_detector.config = detector.config.model_copy(update={"loss": loss})
    result = look_at_matching(changed_detector, make_batch(detector, image))
    answers = result.stages[0].answers
    assert sorted(answer.object for answer in answers) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({answer.query for answer in answers}) == 9
    assert draw_matching(image, result).width > 0 and render_matching("a.png", image, image, result)


def test_matches_equal_those_that_the_loss_uses(detector, image, monkeypatch):
    batch = make_batch(detector, image)
    used = []
    original = dinocore.losses.detection_loss
    monkeypatch.setattr(
        dinocore.losses, "detection_loss", lambda p, t, m, *rest: (used.append(m), original(p, t, m, *rest))[1]
    )
    with torch.inference_mode():
        criterion(detector.forward(batch, batch.targets), batch.targets, 3.0, detector.config.loss)
    result = look_at_matching(detector, batch)
    for match, stage in zip(used, result.stages, strict=False):  # the rest of `used` is denoising
        pairs = sorted(zip(match.target.tolist(), match.query.tolist(), strict=True))
        assert pairs == [(a.object, a.query) for a in stage.answers]


def perturb(part):
    for parameter in part.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))


EDITS = {  # an edit, and whether it changes the first stage, the last layer, and denoising
    "last class head": (lambda m: perturb(m.decoder.class_heads[-1]), False, True, True),
    "first box head": (lambda m: perturb(m.decoder.box_heads[0]), False, True, True),
    "first stage": (
        lambda m: perturb(m.proposer.box_head),
        True,
        True,
        True,
    ),  # denoising queries attend to all matching queries
    "neck": (lambda m: perturb(m.neck), True, True, True),
    "label embedding": (lambda m: perturb(m.denoiser.label_embed), False, False, True),
}


@pytest.mark.parametrize("part", EDITS)
def test_a_changed_weight_only_changes_the_views_that_depend_on_it(make_detector, detector, image, part):
    batch = make_batch(detector, image)
    edit, first, last, denoising = EDITS[part]
    before, after = look_at_matching(detector, batch), look_at_matching(make_detector(edit), batch)
    assert changed(before.stages[0].answers, after.stages[0].answers) == first
    assert changed(before.stages[-1].answers, after.stages[-1].answers) == last
    assert changed(denoising_numbers(before), denoising_numbers(after)) == denoising
    assert [n.start_box for n in before.noisy] == [n.start_box for n in after.noisy]  # noise depends on data only
    figures = [draw_matching(image, result).tobytes() for result in (before, after)]
    pages = [render_matching("a.png", image, image, result) for result in (before, after)]
    assert (figures[0] != figures[1]) == (first or last) and pages[0] != pages[1]


def denoising_numbers(result):
    return [(n.probability, n.iou, n.box) for n in result.noisy]


def changed(before, after) -> bool:
    """Whether any number of two lists of rows differs by more than rounding."""
    one, two = (np.array([[v for x in row for v in numbers(x)] for row in rows], float) for rows in (before, after))
    return not np.allclose(one, two, atol=1e-4)


def numbers(value) -> list[float]:
    return [] if isinstance(value, str) else list(value.values()) if isinstance(value, dict) else list(np.ravel(value))


def test_positives_have_their_object_as_target_and_negatives_none(detector, image):
    result = look_at_matching(detector, make_batch(detector, image))
    assert len(result.noisy) == result.num_groups * 2 * 3
    for noisy in result.noisy:
        annotated = result.objects[noisy.object]
        half = [(annotated.box[2] - annotated.box[0]) / 2, (annotated.box[3] - annotated.box[1]) / 2] * 2
        moved = [abs(a - b) / h for a, b, h in zip(noisy.start_box, annotated.box, half, strict=True)]
        if noisy.positive:
            assert (noisy.target_label, noisy.target_box) == (annotated.label, annotated.box)
            assert max(moved) < 1 + 1e-3
        else:
            assert (noisy.target_label, noisy.target_box) == ("no object", None)
            edge = [v in (0, side) for v, side in zip(noisy.start_box, image.size * 2, strict=True)]
            assert all(m > 1 - 1e-3 or near for m, near in zip(moved, edge, strict=True))


def test_the_seed_changes_the_noise_but_not_the_matches(detector, image):
    batch = make_batch(detector, image)
    other = batch._replace(targets=[batch.targets[0]._replace(seed=2)])
    one, two = look_at_matching(detector, batch), look_at_matching(detector, other)
    assert [n.start_box for n in one.noisy] != [n.start_box for n in two.noisy]
    assert [[a.query for a in s.answers] for s in one.stages] == [[a.query for a in s.answers] for s in two.stages]


def test_instability_computed_by_hand():
    before, after = torch.tensor([0, -1, 1, 2, -1]), torch.tensor([0, 1, -1, 2, -1])  # object 1 goes from query 2 to 1
    assert instability(before, after) == 2
    assert fraction_kept(before, after) == pytest.approx(2 / 3)
    assert (instability(before, before), fraction_kept(before, before)) == (0, 1.0)


def test_stages_are_compared_with_the_previous_one(detector, image):
    batch = make_batch(detector, image)
    result = look_at_matching(detector, batch)
    queries = [{a.object: a.query for a in stage.answers} for stage in result.stages]
    assert result.stages[0].kept is None
    for n in (1, 2):
        same = sum(queries[n][t] == queries[n - 1][t] for t in queries[n])
        assert result.stages[n].kept == pytest.approx(same / 3)
    owners = final_objects(detector, batch)
    assert {int(owners[q]): q for q in range(len(owners)) if owners[q] >= 0} == queries[-1]


@pytest.mark.parametrize("num_objects", [1, 40])
def test_figures_of_one_object_and_of_more_objects_than_queries_are_not_blank(detector, image, num_objects):
    result = look_at_matching(detector, make_batch(detector, image, num_objects))
    figure = draw_matching(image, result)
    assert len(figure.resize((60, 50)).getcolors(10**6)) > 20  # not blank
    assert len(result.stages[-1].answers) == min(num_objects, 12)


@pytest.mark.parametrize("num_stages", [1, 7])
def test_long_names_are_shortened_and_end_before_the_queries(detector, image, monkeypatch, num_stages):
    result = look_at_matching(detector, make_batch(detector, image))
    name = "neutrophilic segmented granulocyte of the periphery"
    stages = [result.stages[-1]] * num_stages
    result = result._replace(objects=[annotated._replace(label=name) for annotated in result.objects], stages=stages)
    ends, draw = {}, ImageDraw.ImageDraw.text

    def text(canvas, position, string, *args, **keywords):
        ends[string] = canvas.textbbox(position, string, font=keywords["font"], anchor=keywords["anchor"])[2]
        draw(canvas, position, string, *args, **keywords)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_matching(image, result)
    (shown,) = (string for string in ends if string.startswith("0 neutro"))
    assert shown.endswith("…iphery") and ends[shown] < 24 + (150 if num_stages == 7 else 0.3 * 828)
