"""Products of bytes give what the layers give, to within the rounding of a byte; and who may ask for them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

pytest.importorskip("numba")

from dinocore import load_detector
from dinocore.data.synthetic.smear import draw_smear
from dinocore.errors import ConfigError
from dinocore.model.inference import FusedBlock, FusedConv, for_inference
from dinocore.model.int8 import (
    Int8Conv,
    Int8FeedForward,
    Int8Linear,
    Int8Product,
    quantize_blocks,
    quantize_layers,
)
from dinocore.model.ops.numba.int8 import quantize, quantize_hidden, scale_sums
from dinocore.system import device
from dinocore.system.device import pick_precision

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="without VNNI, sums may be cut off")


def tokens(number: int, channels: int, dtype=torch.float32) -> torch.Tensor:
    torch.manual_seed(number)
    return (torch.randn(number, channels) * torch.logspace(-3, 3, max(number, 1))[:number, None]).to(dtype)


def near(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """How far a sum may be off: half a step of the token with each weight, half a step of a weight with each number."""
    step = x.float().abs().amax(-1, keepdim=True) / 127
    weight = linear.weight.abs()
    return 0.51 * step * weight.sum(1) + 0.51 * x.float().abs().sum(-1, keepdim=True) * weight.amax(1) / 127 + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 24, 31, 192])
def test_a_token_becomes_bytes_that_are_off_by_half_a_step(dtype, channels):
    x = tokens(7, channels, dtype)
    data, steps = quantize(x)
    assert data.dtype == torch.uint8 and data.shape == x.shape
    torch.testing.assert_close(steps, x.float().abs().amax(1) / 127)
    off = ((data.float() - 128) * steps[:, None] - x.float()).abs()
    assert (off <= 0.5001 * steps[:, None]).all()
    assert (data.float() - 128).abs().amax(1).eq(127).all()  # the whole range is used


@pytest.mark.parametrize("channels", [16, 24, 31, 192])
def test_hidden_numbers_have_all_bytes_for_what_is_positive(channels):
    torch.manual_seed(0)
    sums, scales, bias = torch.randn(9, channels), torch.rand(9) + 0.1, torch.randn(channels)
    data, steps = quantize_hidden(sums, scales, bias)
    expected = (sums * scales[:, None] + bias).relu()
    assert ((data * steps[:, None] - expected).abs() <= 0.5001 * steps[:, None]).all()
    assert data[expected == 0].eq(0).all() and data.amax(1).eq(255).all()
    output = scale_sums(sums, scales, bias, torch.float32)
    torch.testing.assert_close(output, sums * scales[:, None] + bias)


def test_rows_of_zeros_and_the_largest_and_smallest_numbers_are_kept():
    x = torch.ones(5, 40) * torch.tensor([0.0, 1e-38, 1e-25, 1e25, 3e38])[:, None]
    x[:, ::2] *= -1
    data, steps = quantize(x)
    back = (data.float() - 128) * steps[:, None]
    assert data[:2].eq(128).all() and steps.isfinite().all()
    torch.testing.assert_close(back[2:], x[2:])
    data, steps = quantize_hidden(torch.zeros(2, 40), torch.ones(2), -torch.ones(40))
    assert data.eq(0).all() and steps.isfinite().all()


@needs_vnni
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_not_hidden_and_stays_in_its_token(number):
    linear = nn.Linear(48, 32)
    x = torch.randn(3, 48)
    x[1, 17] = number
    for layer in (Int8Linear(linear), Int8FeedForward(nn.Linear(48, 64), nn.Linear(64, 48))):
        y = layer(x)
        assert not y[1].isfinite().any() and y[[0, 2]].isfinite().all()


@needs_vnni
@pytest.mark.parametrize("channels", [(16, 16), (24, 40), (31, 17), (192, 96)])
def test_a_product_of_bytes_is_the_exact_sum(channels):
    torch.manual_seed(0)
    product = Int8Product(nn.Linear(*channels))
    data = torch.randint(0, 256, (37, channels[0]), dtype=torch.uint8)
    for zero in (0, 128):
        sums = (data.long() - zero) @ product.matrix.long().T
        found = product(data, zero, torch.float32)
        torch.testing.assert_close(found, sums.float() * product.scale, rtol=1e-6, atol=0)


@needs_vnni
def test_products_of_the_largest_bytes_are_not_cut_off():
    linear = nn.Linear(2048, 16)
    nn.init.constant_(linear.weight, 1.0)
    sums = Int8Product(linear)(torch.full((2, 2048), 255, dtype=torch.uint8), 0, torch.float32)
    torch.testing.assert_close(sums, torch.full((2, 16), 255.0 * 2048))


@needs_vnni
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 24), (2, 50, 24), (1, 1500, 24), (2, 0, 24), (0, 24)])
def test_a_layer_gives_the_same_to_within_the_rounding_of_bytes(shape, dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    x = torch.randn(shape).to(dtype)
    y, expected = Int8Linear(linear)(x), linear(x.float())
    assert y.shape == expected.shape and y.dtype == dtype
    allowed = near(linear, x) + (expected.abs() / 128 if dtype == torch.bfloat16 else 0)
    assert ((y.float() - expected).abs() <= allowed).all()


@needs_vnni
def test_tokens_do_not_depend_on_their_neighbours_or_their_order_in_memory():
    torch.manual_seed(0)
    layer = Int8FeedForward(nn.Linear(32, 80), nn.Linear(80, 32))
    x = torch.randn(2, 30, 32)
    whole = layer(x)
    assert layer(x[:, 7:9]).equal(whole[:, 7:9])
    turned = x.transpose(0, 1)
    assert layer(turned).equal(whole.transpose(0, 1))


@needs_vnni
def test_a_feed_forward_block_is_near_and_its_relu_is_there():
    torch.manual_seed(0)
    first, second = nn.Linear(64, 256).requires_grad_(False), nn.Linear(256, 64).requires_grad_(False)
    x = torch.randn(2, 40, 64)
    expected = second(first(x).relu())
    off = Int8FeedForward(first, second)(x) - expected
    assert off.abs().max() < 0.05 * expected.abs().max() and off.std() < 0.02 * expected.std()


@needs_vnni
def test_copies_and_pickles_give_the_same_numbers():
    layer = Int8Linear(nn.Linear(32, 48))
    x = torch.randn(5, 32)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other(x).equal(layer(x))


@needs_vnni
def test_the_forms_for_the_compiler_give_the_bytes_of_the_kernels(monkeypatch):
    x, sums, scales, bias = tokens(7, 24), torch.randn(9, 24), torch.rand(9) + 0.1, torch.randn(24)
    layer = Int8FeedForward(nn.Linear(24, 40), nn.Linear(40, 24))
    calls = [
        lambda: quantize(x),
        lambda: quantize_hidden(sums, scales, bias),
        lambda: scale_sums(sums, scales, bias, torch.float32),
        lambda: layer(x),
    ]
    by_kernels = [call() for call in calls]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for call, expected in zip(calls, by_kernels, strict=True):
        torch.testing.assert_close(call(), expected, atol=1e-5, rtol=1e-5)


def block(kind, width: int) -> FusedBlock:
    torch.manual_seed(0)
    channels = width * kind.expansion
    folded = kind(channels, width, norm_layer=lambda width: nn.Identity()).eval().requires_grad_(False)
    return FusedBlock(folded)


@needs_vnni
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_multiplies_bytes_in_its_wide_kernel_that_a_relu_follows(kind, dtype):
    plain = block(kind, 32).to(dtype)
    quick = copy.deepcopy(plain)
    quantize_blocks([quick])
    replaced = [isinstance(conv, Int8Conv) for conv in quick.convs]
    assert replaced == ([True, False] if kind is BasicBlock else [False, True, False])
    x = torch.rand(2, 32 * kind.expansion, 9, 13).to(dtype).contiguous(memory_format=torch.channels_last)
    found, expected = quick(x).float(), plain(x).float()
    assert found.shape == expected.shape and quick(x).dtype == dtype
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


@needs_vnni
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [16, 24, 31])
def test_a_convolution_of_bytes_is_off_by_what_rounding_explains(stride, channels):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 20, 3, stride, padding=1).requires_grad_(False)
    x = torch.rand(1, channels, 12, 17)
    expected = conv(x).relu()
    step, weight = x.max() / 255, conv.weight.abs()
    allowed = 0.51 * step * weight.sum((1, 2, 3)) + 0.51 * weight.amax((1, 2, 3)) / 127 * x.sum()  # generous
    off = (Int8Conv(FusedConv(conv))(x) - expected).abs()
    assert (off <= allowed[:, None, None]).all() and off.max() < 0.02 * expected.max()


@needs_vnni
def test_an_image_does_not_depend_on_its_batch_and_one_that_is_not_finite_not_on_others():
    torch.manual_seed(0)
    conv = Int8Conv(FusedConv(nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)))
    images = torch.rand(3, 16, 8, 8) * torch.tensor([1.0, 1e-3, 1e3])[:, None, None, None]
    together = conv(images)
    for k in range(3):
        assert conv(images[k : k + 1]).equal(together[k : k + 1])
    images[1, 3, 2, 2] = float("nan")
    broken = conv(images)
    assert broken[[0, 2]].equal(together[[0, 2]]) and not broken[1].isfinite().all()
    assert conv(torch.zeros(1, 16, 8, 8)).isfinite().all()


@needs_vnni
def test_copies_of_a_convolution_give_the_same_numbers():
    conv = Int8Conv(FusedConv(nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)))
    x = torch.rand(1, 16, 8, 8)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other(x).equal(conv(x))


@pytest.fixture(scope="module")
def detectors():
    if not torch.cpu._is_vnni_supported():
        pytest.skip("without VNNI, int8 is refused")
    return {amp: load_detector("cells", "cpu", amp) for amp in ("off", "int8")}


def test_products_are_replaced_in_encoder_and_decoder_layers_and_nowhere_else(detectors):
    model = detectors["int8"].model
    replaced = [name for name, part in model.named_modules() if isinstance(part, Int8Linear | Int8FeedForward)]
    layers = [f"encoder.layers.{k}.attn" for k in range(3)] + [f"decoder.layers.{k}.cross_attn" for k in range(3)]
    attention = {f"{layer}.{name}" for layer in layers for name in ("value", "output")}
    blocks = {f"{part}.layers.{k}.ffn.module.net" for part in ("encoder", "decoder") for k in range(3)}
    assert set(replaced) == attention | blocks
    assert not any(isinstance(part, Int8Product) for part in detectors["off"].model.modules())


def test_the_same_cells_are_found_with_products_of_bytes(detectors):
    smear = draw_smear(5, 0, (320, 240))[0]
    found = {amp: detector(smear) for amp, detector in detectors.items()}
    for one, other in (("off", "int8"), ("int8", "off")):
        sure, any_of_other = found[one].scores > 0.5, found[other].scores > 0.35
        assert sure.sum() >= 5
        apart = found[one].boxes_xyxy[sure][:, None] - found[other].boxes_xyxy[any_of_other][None]
        assert apart.abs().amax(-1).amin(1).max() < 4
    again = pickle.loads(pickle.dumps(detectors["int8"]))(smear)
    assert again.boxes_xyxy.equal(found["int8"].boxes_xyxy) and again.scores.equal(found["int8"].scores)


def test_layers_too_narrow_for_a_row_of_lanes_stay_as_they_are():
    from dinocore.model.encoder import EncoderLayer

    layers = nn.ModuleList([EncoderLayer(8, 2, 1, 2, 12, 0.0)])
    quantize_layers(layers)
    assert not any(isinstance(part, Int8Product) for part in layers.modules())


def test_it_is_refused_where_it_would_be_slow_or_wrong(monkeypatch):
    with pytest.raises(ConfigError, match="int8 is for CPUs, and this is cuda"):
        pick_precision("int8", torch.device("cuda"))
    with monkeypatch.context() as patched:
        patched.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
        with pytest.raises(ConfigError, match="AVX-512 VNNI"):
            pick_precision("int8", CPU)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="numba"):
        pick_precision("int8", CPU)


def test_a_model_prepared_without_it_is_not_touched(detectors):
    source = detectors["off"].model
    assert not any(isinstance(part, Int8Product) for part in for_inference(source, None, CPU).modules())
