"""Positions: sine encodings, valid ratios, token centres and anchors."""

import math

import torch

from dinocore.model.position import encode_boxes, encode_map
from dinocore.model.proposals import token_anchors, token_levels
from dinocore.model.tokens import Tokenizer, token_centers, valid_ratio


def padded(height: int, width: int, extra: int) -> torch.Tensor:
    padding = torch.ones(1, height + extra, width + extra, dtype=torch.bool)
    padding[:, :height, :width] = False
    return padding


def test_padding_moves_no_position():
    plain = encode_map(padded(6, 9, 0), 32, 20.0, 0.0)
    inside = encode_map(padded(6, 9, 4), 32, 20.0, 0.0)[:, :6, :9]
    torch.testing.assert_close(inside, plain)


def test_one_position_by_hand():
    row, column, temperature, offset, dim = 2, 3, 20.0, -0.5, 8
    code = encode_map(padded(4, 5, 0), dim, temperature, offset)[0, row, column]
    expected = []
    for place in ((row + 1 + offset) / 4, (column + 1 + offset) / 5):
        for i in range(2):
            angle = 2 * math.pi * place / temperature ** (2 * i / 4)
            expected += [math.sin(angle), math.cos(angle)]
    torch.testing.assert_close(code, torch.tensor(expected), atol=1e-5, rtol=0)


def test_temperature_and_offset_change_the_code():
    base = encode_map(padded(4, 5, 0), 16, 20.0, 0.0)
    assert not torch.allclose(base, encode_map(padded(4, 5, 0), 16, 10000.0, 0.0))
    assert not torch.allclose(base, encode_map(padded(4, 5, 0), 16, 20.0, -0.5))


def test_boxes_are_encoded_in_the_order_y_x_w_h():
    boxes = torch.tensor([0.1, 0.2, 0.3, 0.4])
    code = encode_boxes(boxes, 16).unflatten(-1, (4, 8))
    alone = [encode_boxes(torch.tensor([v] * 4), 16).unflatten(-1, (4, 8))[0] for v in (0.2, 0.1, 0.3, 0.4)]
    assert torch.equal(code, torch.stack(alone))


def tokens(padding: torch.Tensor, shapes: list[tuple[int, int]]):
    tokenizer = Tokenizer(32, len(shapes), 20.0, 0.0)
    return tokenizer([torch.zeros(len(padding), 32, h, w) for h, w in shapes], padding)


def test_every_level_gets_its_own_learned_vector():
    found = tokens(padded(16, 16, 0), [(2, 2), (2, 2)])
    first, second = found.position[0].split(4)
    difference = second - first
    assert torch.allclose(difference, difference[:1].expand_as(difference), atol=1e-6)
    assert difference.abs().max() > 0.01


def test_the_valid_ratio_is_the_fraction_covered_by_the_image():
    torch.testing.assert_close(valid_ratio(padded(6, 8, 2)), torch.tensor([[0.8, 0.75]]))


def test_token_centers_are_fractions_of_the_unpadded_image():
    found = tokens(padded(16, 16, 16), [(4, 4)])
    centers = token_centers(found).unflatten(1, (4, 4))[0]
    assert centers[0, 0].tolist() == [0.25, 0.25]
    assert centers[1, 1].tolist() == [0.75, 0.75]
    assert (centers[2:] > 1).any()


def test_one_anchor_per_token_doubling_with_the_level_and_unusable_on_padding():
    found = tokens(padded(16, 16, 16), [(4, 4), (2, 2)])
    anchors, usable = token_anchors(found)
    assert torch.allclose(anchors[0, :16, 2:], torch.tensor(0.05))
    assert torch.allclose(anchors[0, 16:, 2:], torch.tensor(0.10))
    assert usable[0].sum() == 4 + 1
    assert token_levels(found).tolist() == [0] * 16 + [1] * 4
