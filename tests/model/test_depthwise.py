"""Depthwise convolutions for training on a CPU: faster than PyTorch's, with the same results."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn

from dinocore import build_model, load_config
from dinocore.model.backbones.timm import TimmBackbone
from dinocore.model.ops import depthwise, dispatch, use_backend
from dinocore.model.ops.depthwise import DepthwiseConv, replace_depthwise_convs
from dinocore.model.ops.numba import cpu


def gradients(conv, images, grad):
    """Gradients of the images and every parameter."""
    images = images.clone().requires_grad_()
    return torch.autograd.grad(conv(images), [images, *conv.parameters()], grad)


CASES = [  # channels, kernel size, stride, padding, bias
    (16, 3, 1, 1, True), (32, 5, 2, 2, False), (48, 7, 1, 3, True), (16, 3, 2, 0, False), (32, 5, 1, 0, True)
]  # fmt: skip


@pytest.mark.parametrize("size", [(9, 11), (10, 8), (7, 7)])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_those_of_a_plain_convolution(case, size):
    channels, kernel_size, stride, padding, bias = case
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels, bias=bias).double()
    images = torch.randn(3, channels, *size, dtype=torch.float64)
    expected = conv(images)
    grad = torch.randn_like(expected)
    fast = DepthwiseConv(conv)
    assert fast(images).equal(expected)
    for ours, plain in zip(gradients(fast, images, grad), gradients(conv, images, grad), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-12)


def test_bfloat16_gradients_are_summed_in_float32():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    images, fast = torch.randn(2, 16, 40, 40), DepthwiseConv(conv)
    grad = torch.randn(2, 16, 40, 40).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, ours, _ = gradients(fast, images, grad)
    _, expected, _ = gradients(copy.deepcopy(conv).double(), images.bfloat16().double(), grad.double())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, atol=1e-4, rtol=1e-4)


def test_the_weights_keep_their_names_and_values():
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True)
    fast = copy.deepcopy(plain)
    replace_depthwise_convs(fast)
    assert sum(isinstance(module, DepthwiseConv) for module in fast.modules()) == 16
    before, after = plain.state_dict(), fast.state_dict()
    assert list(before) == list(after) and all(before[name].equal(after[name]) for name in before)
    images = torch.randn(1, 3, 61, 77)
    with torch.no_grad():
        for a, b in zip(plain.eval()(images), fast.eval()(images), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
def test_a_backbone_gets_the_same_gradients_as_in_plain_pytorch(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, [8, 16, 32], 0, 0.0)
    images = torch.randn(2, 3, 64, 96)

    def backbone_gradients(backend):
        backbone.zero_grad()
        with use_backend(backend):
            sum(x.square().mean() for x in backbone(images)).backward()
        return {key: p.grad.clone() for key, p in backbone.named_parameters() if p.grad is not None}

    plain, fast = backbone_gradients("reference"), backbone_gradients("auto")
    assert plain.keys() == fast.keys() and len(plain) > 20
    for key, grad in plain.items():
        torch.testing.assert_close(fast[key], grad, atol=1e-4 * float(grad.abs().max()) + 1e-12, rtol=1e-3)


def test_replacing_convolutions_draws_no_random_numbers():
    body = timm.create_model("tf_efficientnet_lite0", features_only=True)
    before = torch.get_rng_state()
    replace_depthwise_convs(body)
    assert torch.get_rng_state().equal(before)


def test_unsupported_convolutions_are_not_replaced():
    others = nn.Sequential(
        nn.Conv2d(16, 16, 3, groups=8), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(16, 16, (1, 3), groups=16),
        nn.Conv2d(16, 16, 3, groups=16, dilation=2), nn.Conv2d(16, 32, 3, groups=16),
        nn.Conv2d(16, 16, 3, groups=16, padding="same"), nn.Conv2d(16, 16, 3, groups=16, padding_mode="reflect"),
    )  # fmt: skip
    replace_depthwise_convs(others)
    assert not any(isinstance(module, DepthwiseConv) for module in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_if_the_kernel_fails_it_warns_once_and_results_are_the_same(monkeypatch, dtype):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpu, "depthwise_weight_gradient", fail)
    monkeypatch.setattr(depthwise, "_kernel_works", True)
    conv = nn.Conv2d(16, 16, 3, 2, 1, groups=16, dtype=dtype)
    images, grad = torch.randn(1, 16, 9, 12, dtype=dtype), torch.randn(1, 16, 5, 6, dtype=dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = gradients(DepthwiseConv(conv), images, grad)
        gradients(DepthwiseConv(conv), images, grad)
    assert len(caught) == 1, "it warns once"
    assert not dispatch._failed_devices, "the sampling kernels are still used"
    assert "no compiler" in str(caught[0].message)
    for a, b in zip(ours, gradients(conv, images, grad), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_weight_gradient_has_the_strides_of_the_weight():
    conv = nn.Conv2d(16, 16, 3, groups=16).to(memory_format=torch.channels_last)
    assert conv.weight.stride() == (9, 1, 3, 1)
    _, weight_grad, *_ = gradients(DepthwiseConv(conv), torch.randn(1, 16, 9, 12), torch.randn(1, 16, 7, 10))
    assert weight_grad.stride() == conv.weight.stride()


def test_gradients_do_not_depend_on_the_number_of_threads():
    conv = DepthwiseConv(nn.Conv2d(64, 64, 5, groups=64))
    images, grad = torch.randn(2, 64, 20, 20), torch.randn(2, 64, 16, 16)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            results.append(gradients(conv, images, grad)[1])
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1])


def test_tiny_uses_the_faster_convolutions():
    backbone = build_model(load_config("tiny").model).backbone
    assert any(isinstance(module, DepthwiseConv) for module in backbone.modules())
