"""Fused sampling from offsets and logits gives the results of separate steps."""

import importlib.util
import math
import sys

import pytest
import torch

from dinocore.model.ops import dispatch, sample, sample_fused, use_backend

NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs numba")
MAPS = [(5, 7), (3, 2), (1, 1)]
OTHER_MAPS = [(6, 5), (2, 3)]


def inputs(dim=4, maps=MAPS, points=2, size=2, dtype=torch.float32, batch=2, queries=11, heads=2):
    """Random value, padding, maps, reference (points or boxes, some near an edge), offsets and logits."""
    random = torch.Generator().manual_seed(0)
    tokens, levels = sum(height * width for height, width in maps), len(maps)
    value = torch.randn(batch, tokens, heads, dim, generator=random)
    padding = torch.rand(batch, tokens, generator=random) < 0.3
    reference = torch.rand(batch, queries, levels, size, generator=random)
    offsets = 2 * torch.randn(batch, queries, heads, levels * points * 2, generator=random)
    logits = 3 * torch.randn(batch, queries, heads, levels * points, generator=random)
    return value.to(dtype), padding, maps, reference, offsets.to(dtype), logits.to(dtype)


def separate_steps(value, padding, maps, reference, offsets, logits):
    """The reference backend in float64, with negligible rounding."""
    with use_backend("reference"):
        return sample(value.double(), padding, maps, reference.double(), offsets.double(), logits.double())


def fused(*arguments):
    result = sample_fused(*arguments)
    assert not dispatch._failed_devices  # no silent fallback to the reference
    return result


@NUMBA
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("dim", "maps", "points"), [(4, MAPS, 2), (3, OTHER_MAPS, 1), (32, OTHER_MAPS, 4)])
def test_points_and_boxes_of_any_width_agree_with_the_separate_steps(size, dim, maps, points):
    case = inputs(dim, maps, points, size)
    torch.testing.assert_close(fused(*case).double(), separate_steps(*case), atol=1e-5, rtol=1e-4)


@NUMBA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    case = inputs(dtype=dtype)
    actual = fused(*case)
    assert actual.dtype == dtype
    expected = separate_steps(*case).to(dtype)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)
    assert (actual == expected).double().mean() > 0.97


@NUMBA
def test_tokens_on_padding_are_never_read():
    value, padding, *rest = inputs()
    poisoned = value.masked_fill(padding[..., None, None], math.nan)
    assert fused(poisoned, padding, *rest).equal(fused(value, padding, *rest))
    assert not fused(value, torch.zeros_like(padding), *rest).allclose(fused(value, padding, *rest))


@NUMBA
def test_extreme_logits_select_one_sample_and_nan_propagates():
    value, padding, maps, reference, offsets, logits = inputs()
    logits[...] = -1e4
    logits[..., 3] = 1e4
    case = value, padding, maps, reference, offsets, logits
    torch.testing.assert_close(fused(*case).double(), separate_steps(*case), atol=1e-5, rtol=1e-4)
    logits[0, 0, 0, 1] = math.nan
    actual = fused(*case)
    assert actual[0, 0, :4].isnan().all() and actual[0, 0, 4:].isfinite().all() and actual[0, 1:].isfinite().all()


@NUMBA
def test_the_operator_passes_opcheck():
    value, padding, _, *rest = inputs(batch=1, maps=[(2, 3)])
    torch.library.opcheck(torch.ops.dino.sample_fused.default, (value, padding, [2, 3], *rest))


def test_float64_and_the_reference_backend_use_the_separate_steps(monkeypatch):
    monkeypatch.setattr(dispatch, "compiled_backend", lambda device: pytest.fail("it only supports float32"))
    case = inputs()
    with use_backend("reference"):
        torch.testing.assert_close(sample_fused(*case).double(), separate_steps(*case), atol=1e-5, rtol=1e-4)


def test_without_the_compiled_backend_it_warns_once_and_is_still_correct(monkeypatch):
    monkeypatch.setattr(dispatch, "_failed_devices", set())
    monkeypatch.setitem(sys.modules, "dinocore.model.ops.numba.cpu", None)
    monkeypatch.delattr("dinocore.model.ops.numba.cpu", raising=False)
    case = inputs()
    with pytest.warns(UserWarning, match="slow deformable attention on cpu") as caught:
        results = [sample_fused(*case), sample_fused(*case)]
    assert len(caught) == 1
    for result in results:
        torch.testing.assert_close(result.double(), separate_steps(*case), atol=1e-5, rtol=1e-4)
