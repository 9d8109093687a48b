"""Positions: sine encodings, valid ratios, token centres and anchors."""

import math

import torch

from dinocore.model.position import encode_boxes, encode_map
from dinocore.model.proposals import token_anchors, token_levels
from dinocore.model.tokens import Tokenizer, token_centers, valid_ratio


def padding_mask(height: int, width: int, extra: int) -> torch.Tensor:
    padding = torch.ones(1, height + extra, width + extra, dtype=torch.bool)
    padding[:, :height, :width] = False
    return padding


def test_padding_does_not_change_the_encoding():
    plain = encode_map(padding_mask(6, 9, 0), 32, 20.0, 0.0)
    inside = encode_map(padding_mask(6, 9, 4), 32, 20.0, 0.0)[:, :6, :9]
    torch.testing.assert_close(inside, plain)


def test_an_encoding_computed_by_hand():
    row, column, temperature, offset, dim = 2, 3, 20.0, -0.5, 8
    encoding = encode_map(padding_mask(4, 5, 0), dim, temperature, offset)[0, row, column]
    expected = []
    for coordinate in ((row + 1 + offset) / 4, (column + 1 + offset) / 5):
        for i in range(2):
            angle = 2 * math.pi * coordinate / temperature ** (2 * i / 4)
            expected += [math.sin(angle), math.cos(angle)]
    torch.testing.assert_close(encoding, torch.tensor(expected), atol=1e-5, rtol=0)


def test_temperature_and_offset_change_the_encoding():
    base = encode_map(padding_mask(4, 5, 0), 16, 20.0, 0.0)
    assert not torch.allclose(base, encode_map(padding_mask(4, 5, 0), 16, 10000.0, 0.0))
    assert not torch.allclose(base, encode_map(padding_mask(4, 5, 0), 16, 20.0, -0.5))


def test_boxes_are_encoded_in_the_order_y_x_w_h():
    boxes = torch.tensor([0.1, 0.2, 0.3, 0.4])
    encoding = encode_boxes(boxes, 16).unflatten(-1, (4, 8))
    separate = [encode_boxes(torch.tensor([v] * 4), 16).unflatten(-1, (4, 8))[0] for v in (0.2, 0.1, 0.3, 0.4)]
    assert torch.equal(encoding, torch.stack(separate))


def make_tokens(padding: torch.Tensor, shapes: list[tuple[int, int]]):
    tokenizer = Tokenizer(32, len(shapes), 20.0, 0.0)
    return tokenizer([torch.zeros(len(padding), 32, h, w) for h, w in shapes], padding)


def test_each_level_has_its_own_learned_embedding():
    tokens = make_tokens(padding_mask(16, 16, 0), [(2, 2), (2, 2)])
    first, second = tokens.position[0].split(4)
    difference = second - first
    assert torch.allclose(difference, difference[:1].expand_as(difference), atol=1e-6)
    assert difference.abs().max() > 0.01


def test_the_valid_ratio_is_the_fraction_covered_by_the_image():
    torch.testing.assert_close(valid_ratio(padding_mask(6, 8, 2)), torch.tensor([[0.8, 0.75]]))


def test_token_centers_are_fractions_of_the_unpadded_image():
    tokens = make_tokens(padding_mask(16, 16, 16), [(4, 4)])
    centers = token_centers(tokens).unflatten(1, (4, 4))[0]
    assert centers[0, 0].tolist() == [0.25, 0.25]
    assert centers[1, 1].tolist() == [0.75, 0.75]
    assert (centers[2:] > 1).any()


def test_anchors_double_in_size_with_each_level_and_are_unusable_on_padding():
    tokens = make_tokens(padding_mask(16, 16, 16), [(4, 4), (2, 2)])
    anchors, usable = token_anchors(tokens)
    assert torch.allclose(anchors[0, :16, 2:], torch.tensor(0.05))
    assert torch.allclose(anchors[0, 16:, 2:], torch.tensor(0.10))
    assert usable[0].sum() == 4 + 1
    assert token_levels(tokens).tolist() == [0] * 16 + [1] * 4
