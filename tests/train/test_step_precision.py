"""The image width up to which batches are computed in float32 on a CPU."""

import pytest
import torch

from dinocore.presets import load_config
from dinocore.train.step import narrowest_width

CONV = torch.nn.Conv2d(64, 64, 3, stride=2, padding=1)


@pytest.mark.parametrize(("preset", "pixels"), [("r50-4scale", 32), ("r50-5scale", 32), ("tiny", 32)])
def test_images_of_the_narrowest_width_have_a_map_of_one_column(preset, pixels):
    model = load_config(preset).model
    assert narrowest_width(model) == pixels
    columns = -(-pixels // max(model.feature_strides))
    for _ in range(model.num_levels - len(model.feature_strides) - 1):
        columns = -(-columns // 2)
    assert columns == 1


def test_float32_gradients_on_a_map_of_one_column_are_finite():
    images = torch.randn(1, 64, 42, 1)
    for _ in range(20):
        torch.full((CONV.weight.numel(),), float("nan"))  # NaN that may remain in freed memory
        CONV.zero_grad()
        CONV(images).pow(2).sum().backward()
        grad = CONV.weight.grad
        assert grad is not None and grad.isfinite().all()
        assert (grad[..., [0, 2]] == 0).all()  # beyond the only column
