"""Denoising queries: groups, noise, targets, and the attention mask."""

import pytest
import torch

from dinocore import Target, load_config
from dinocore.boxes import to_xyxy
from dinocore.model.build import build_denoiser
from dinocore.model.denoising import attention_mask, join
from dinocore.structures import MATCHING, Queries


def target(num_objects: int, seed: int | None = 0) -> Target:
    generator = torch.Generator().manual_seed(num_objects)
    boxes = torch.rand(num_objects, 4, generator=generator) * 0.3 + 0.3
    return Target(torch.arange(num_objects) % 7, boxes, seed)


def denoiser(*overrides: str):
    config = load_config("r50-4scale", [f"model.denoising.{override}" for override in overrides])
    return build_denoiser(config.model)


def test_the_attention_mask_of_two_groups():
    group = torch.tensor([0, 0, 1, 1, MATCHING, MATCHING, MATCHING])
    rows = ["".join(".#"[int(blocked)] for blocked in row) for row in attention_mask(group)]
    assert rows == [
        "..##...",
        "..##...",
        "##.....",
        "##.....",
        "####...",
        "####...",
        "####...",
    ]


def test_without_denoising_queries_nothing_is_blocked():
    assert not attention_mask(torch.full((5,), MATCHING)).any()


@pytest.mark.parametrize(
    "counts, groups", [((2, 1), 50), ((5, 3), 20), ((1, 1), 100), ((100, 7), 1), ((99, 7), 1), ((3, 0), 33)]
)
def test_the_number_of_groups_depends_on_the_image_with_the_most_objects(counts, groups):
    noise = denoiser()([target(n) for n in counts])
    assert noise.num_groups == groups
    assert noise.boxes.shape == (2, groups * 2 * max(counts), 4)
    assert noise.content.shape == (2, groups * 2 * max(counts), 256)


def test_a_fixed_number_of_groups_gives_the_expected_shapes():
    noise = denoiser("num_groups=5")([target(3), target(1)])
    assert noise.boxes.shape == (2, 5 * 2 * 3, 4)
    assert noise.valid.sum(1).tolist() == [30, 10]
    assert noise.negative.tolist() == ([False] * 3 + [True] * 3) * 5
    assert noise.group.tolist() == [g for g in range(5) for _ in range(6)]


def test_plain_denoising_has_positives_only():
    noise = denoiser('kind="plain"', "num_groups=4")([target(3)])
    assert noise.boxes.shape == (1, 12, 4)
    assert not noise.negative.any()


def test_the_number_of_queries_is_limited_on_dense_images_and_every_object_is_used_for_some_seed():
    layer = denoiser()
    used = set()
    for seed in range(12):
        noise = layer([target(250, seed)])
        assert noise.boxes.shape[1] == 200  # 100 pairs: one group with 100 random objects
        used |= set(noise.match.target.tolist())
    assert len(used) == 250
    assert denoiser("num_groups=10", "max_queries=300")([target(200)]).boxes.shape[1] == 300


def test_every_positive_has_its_own_target_and_negatives_have_none():
    targets = [target(3), target(0), target(2)]
    noise = denoiser("num_groups=2")(targets)
    pairs = sorted(
        zip(noise.match.image.tolist(), noise.match.query.tolist(), noise.match.target.tolist(), strict=True)
    )
    assert pairs == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 6, 0), (0, 7, 1), (0, 8, 2),
                     (2, 0, 3), (2, 1, 4), (2, 6, 3), (2, 7, 4)]  # fmt: skip
    assert not noise.negative[noise.match.query].any()


def test_without_noise_positives_are_the_targets_themselves():
    targets = [target(3)]
    noise = denoiser("box_noise=0.0", "label_noise=0.0", "num_groups=1")(targets)
    torch.testing.assert_close(noise.boxes[0, :3], targets[0].boxes)


def test_positives_move_by_less_than_half_a_box_and_negatives_by_more():
    boxes = torch.tensor([[0.3, 0.4, 0.1, 0.2], [0.5, 0.6, 0.2, 0.1]])  # too far from the edges to be clipped
    noise = denoiser("num_groups=20")([Target(torch.tensor([0, 1]), boxes, 3)])
    half = boxes[:, 2:].tile(40, 1) / 2
    first = noise.boxes[0, :, :2] - noise.boxes[0, :, 2:] / 2  # the noisy first corner: noise does not sort corners
    moved = (first - (boxes[:, :2].tile(40, 1) - half)).abs() / half  # in half box sizes
    assert (moved[~noise.negative] < 1 + 1e-4).all() and (moved[~noise.negative] > 0.5).any()
    assert (moved[noise.negative] > 1 - 1e-4).all() and (moved[noise.negative] < 2 + 1e-4).all()


def test_noisy_boxes_are_clipped_to_the_image():
    boxes = torch.tensor([[0.1, 0.9, 0.2, 0.2]])  # touches two edges
    noise = denoiser("num_groups=50")([Target(torch.tensor([0]), boxes, 3)])
    corners = to_xyxy(noise.boxes[0])
    assert corners.min() > -1e-6 and corners.max() < 1 + 1e-6
    assert (corners[:, 0].abs() < 1e-6).any() and ((corners[:, 3] - 1).abs() < 1e-6).any()


def test_a_quarter_of_the_labels_is_replaced():
    layer = denoiser("num_groups=50")
    labels = torch.full((20,), 90)
    noise = layer([Target(labels, torch.full((20, 4), 0.5), 3)])
    replaced = (noise.content[0] != layer.label_embed.weight[90]).any(1).float().mean()
    assert 0.20 < replaced < 0.30  # label_noise 0.5 / 2, of which 1 in 91 draws the same label


def test_noise_of_an_image_does_not_depend_on_the_rest_of_the_batch():
    layer = denoiser("num_groups=4")
    alone, together = layer([target(3, 5)]), layer([target(3, 5), target(3, 6)])
    assert torch.equal(alone.boxes[0], together.boxes[0])
    assert not torch.equal(together.boxes[0], together.boxes[1])
    with_more = layer([target(3, 5), target(5, 6)])  # of five slots per copy and group, two are padding
    assert torch.equal(alone.boxes[0].view(8, 3, 4), with_more.boxes[0].view(8, 5, 4)[:, :3])


@pytest.mark.parametrize("overrides", [('kind="none"',), ("num_groups=0",)])
def test_denoising_can_be_disabled(overrides):
    assert denoiser(*overrides)([target(3)]) is None


def test_a_batch_without_objects_has_no_denoising_queries_but_keeps_the_embedding_in_the_graph():
    layer = denoiser()
    noise = layer([target(0), target(0)])
    assert noise.boxes.shape == (2, 0, 4)
    noise.content.sum().backward()
    assert layer.label_embed.weight.grad is not None


def test_join_puts_denoising_queries_first():
    noise = denoiser("num_groups=2")([target(1)])
    joined = join(noise, Queries(torch.zeros(1, 3, 256), torch.full((1, 3, 4), 0.5)))
    rows = ["".join(".#"[int(blocked)] for blocked in row) for row in joined.blocked]
    assert rows == ["..##...", "..##...", "##.....", "##.....", "####...", "####...", "####..."]
