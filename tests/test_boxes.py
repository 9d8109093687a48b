"""Box arithmetic, compared with values computed by hand."""

import pytest
import torch

from dinocore import boxes
from dinocore.boxes import generalized_iou, inverse_sigmoid, iou, refine, to_cxcywh, to_xyxy


def xyxy(*corners):
    return torch.tensor(corners, dtype=torch.float64)


def test_boxes_are_converted_to_corners_and_back():
    assert to_xyxy(xyxy(0.5, 0.4, 0.2, 0.6)).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])
    random_boxes = torch.rand(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_cxcywh(to_xyxy(random_boxes)), random_boxes)
    assert to_xyxy(torch.zeros(0, 4)).shape == to_cxcywh(torch.zeros(0, 4)).shape == (0, 4)


def test_area_is_width_times_height():
    assert boxes.area(xyxy(0.1, 0.2, 0.4, 0.6)).item() == pytest.approx(0.12)


@pytest.mark.parametrize(
    ("a", "b", "overlap", "generalized"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1, 1),
        ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), 0, -0.5),  # touch at a corner: the hull is 1, half of it empty
        ((0, 0, 0.2, 0.2), (0.8, 0.8, 1, 1), 0, -0.92),  # apart: 0.92 of the hull is empty
        ((0, 0, 1, 1), (0.25, 0.25, 0.75, 0.75), 0.25, 0.25),  # contained: the hull is the union
        ((0, 0, 0.5, 1), (0.25, 0, 0.75, 1), 1 / 3, 1 / 3),  # overlapping by half
        ((0, 0, 1, 1), (0.5, 0.5, 0.5, 0.5), 0, 0),  # a point inside
        ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0, 0),  # two equal points
    ],
)
def test_overlap_of_two_boxes_computed_by_hand_in_both_orders(a, b, overlap, generalized):
    for first, second in ((a, b), (b, a)):
        assert iou(xyxy(*first), xyxy(*second)).item() == pytest.approx(overlap)
        assert generalized_iou(xyxy(*first), xyxy(*second)).item() == pytest.approx(generalized)


def test_boxes_broadcast_to_every_pair():
    rows, columns = torch.rand(3, 1, 4), torch.rand(1, 2, 4)
    assert iou(rows, columns).shape == generalized_iou(rows, columns).shape == (3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_equal_boxes_of_8_pixels_in_800_x_1333_have_a_giou_of_exactly_1(dtype):
    small = to_xyxy(torch.tensor([0.5, 0.5, 8 / 1333, 8 / 800], dtype=dtype))
    assert generalized_iou(small, small.clone()).item() == 1


def test_empty_boxes_give_finite_values_and_gradients():
    corners = torch.tensor([0, 0.5, 1e-30, 1])
    all_boxes = torch.cartesian_prod(corners, corners, torch.tensor([0, 1e-12]), torch.tensor([0, 1e-12]))  # cxcywh
    a = all_boxes[:, None].clone().requires_grad_()
    score = generalized_iou(to_xyxy(a), to_xyxy(all_boxes))
    score.sum().backward()
    assert score.isfinite().all() and a.grad.isfinite().all()
    assert score.min() >= -1 and score.max() <= 1


def test_inverse_sigmoid_undoes_the_sigmoid_and_is_bounded_at_the_ends():
    x = torch.tensor([0.01, 0.3, 0.5, 0.99], dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0, 1, 2]))
    bound = torch.tensor(0.999 / 0.001).log()  # within rounding, about 6.9
    assert (ends.abs() <= bound + 0.01).all() and (ends[:2] < -6).all() and (ends[2:] > 6).all()


def test_refine_moves_by_the_delta_within_the_image_and_keeps_the_dtype():
    start = torch.tensor([[0.5, 0.25, 0.1, 0.9]])
    torch.testing.assert_close(refine(start, torch.zeros(1, 4)), start)
    assert refine(start, torch.full((1, 4), 1.0)).gt(start).all()
    far = torch.cat([refine(start, torch.full((1, 4), value)) for value in (-50.0, 50.0)])
    assert far.min() >= 0 and far.max() <= 1
    assert refine(start, torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float32


def test_refine_passes_gradients_to_boxes_and_delta():
    start, delta = torch.full((4,), 0.3, requires_grad=True), torch.zeros(4, requires_grad=True)
    refine(start, delta).sum().backward()
    torch.testing.assert_close(start.grad, torch.ones(4))  # the slopes of the sigmoid and its inverse cancel
    torch.testing.assert_close(delta.grad, torch.full((4,), 0.3 * 0.7))
