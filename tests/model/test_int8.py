"""Int8 layers equal the originals within rounding; int8 is refused where it is unsupported."""

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
    Int8PointwiseConv,
    Int8Weights,
    quantize_blocks,
    quantize_layers,
)
from dinocore.model.layers import FeedForward
from dinocore.system import device
from dinocore.system.device import pick_precision

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="without VNNI, sums may saturate")


def tokens(number: int, channels: int, dtype=torch.float32) -> torch.Tensor:
    torch.manual_seed(number)
    return (torch.randn(number, channels) * torch.logspace(-3, 3, max(number, 1))[:number, None]).to(dtype)


def rounding_bound(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The largest rounding error of each output: half a step per input value and per weight."""
    step = x.float().abs().amax(-1, keepdim=True) / 127
    weight = linear.weight.abs()
    return 0.51 * step * weight.sum(1) + 0.51 * x.float().abs().sum(-1, keepdim=True) * weight.amax(1) / 127 + 1e-5


def identity(channels: int) -> nn.Linear:
    """A layer whose weights are exact in int8, so that only the tokens are rounded."""
    linear = nn.Linear(channels, channels, bias=False)
    linear.weight.data = torch.eye(channels)
    return linear


def make_ffn(first: nn.Linear, second: nn.Linear) -> FeedForward:
    """A feed-forward block of two layers, with random norm parameters."""
    block = FeedForward(first.in_features, first.out_features, 0.0).eval()
    block.net[0], block.net[3] = first, second
    nn.init.uniform_(block.norm.weight, 0.5, 2.0)
    nn.init.normal_(block.norm.bias)
    return block.requires_grad_(False)


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 24, 31, 192])
def test_quantized_tokens_differ_by_at_most_half_a_step(dtype, channels):
    x = tokens(7, channels, dtype)
    actual, steps = Int8Linear(identity(channels))(x).float(), x.float().abs().amax(1, keepdim=True) / 127
    rounded = actual.abs() / 256 if dtype == torch.bfloat16 else 1e-6 * actual.abs()
    assert ((actual - x.float()).abs() <= 0.5001 * steps + rounded).all()
    largest = x.float().abs().argmax(1, keepdim=True)
    torch.testing.assert_close(actual.gather(1, largest), x.float().gather(1, largest))  # the full range is used


@needs_vnni
@pytest.mark.parametrize("channels", [16, 24, 31, 192])
def test_hidden_activations_use_all_256_levels(channels):
    x = tokens(9, channels)
    block = make_ffn(identity(channels), identity(channels))
    hidden = Int8Linear(identity(channels))(x).relu()
    summed, actual = (x + hidden).double(), Int8FeedForward(block)(x).double()
    step = hidden.amax(1, keepdim=True) / 255
    allowed = 1.01 * step / summed.std(1, keepdim=True) * block.norm.weight  # half for the value, half for the mean
    eps = block.norm.eps
    expected = (summed - summed.mean(1, keepdim=True)) / (summed.var(1, keepdim=True, correction=0) + eps).sqrt()
    assert ((actual - expected * block.norm.weight - block.norm.bias).abs() <= allowed + 1e-5).all()


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 24, 31, 256])
def test_residual_sum_and_layer_norm_equal_pytorchs(channels, dtype):
    torch.manual_seed(0)
    block = make_ffn(nn.Linear(channels, 40), nn.Linear(40, channels))
    nn.init.zeros_(block.net[3].weight)  # so that int8 has no effect
    x = (3 * torch.randn(2, 300, channels) + torch.randn(2, 300, 1)).to(dtype)
    expected = block.norm(x.float() + block.net[3].bias)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(Int8FeedForward(block)(x).float(), expected, **tolerance)


@needs_vnni
def test_zero_rows_and_extreme_values_are_preserved():
    x = torch.ones(5, 40) * torch.tensor([0.0, 1e-38, 1e-25, 1e25, 3e38])[:, None]
    x[:, ::2] *= -1
    actual = Int8Linear(identity(40))(x)
    assert actual[:2].eq(0).all()
    torch.testing.assert_close(actual[2:], x[2:], rtol=1e-5, atol=0)
    assert Int8FeedForward(make_ffn(identity(40), identity(40)))(x[:3]).isfinite().all()


@needs_vnni
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_value_only_affects_its_own_token(value):
    linear = nn.Linear(48, 32)
    x = torch.randn(3, 48)
    x[1, 17] = value
    for layer in (Int8Linear(linear), Int8FeedForward(make_ffn(nn.Linear(48, 64), nn.Linear(64, 48)))):
        output = layer(x)
        assert not output[1].isfinite().any() and output[[0, 2]].isfinite().all()


def random_integers(shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
    """Random integers; each row ends with the largest, so that the step is 1 and nothing is rounded."""
    x = torch.randint(low, high + 1, shape)
    x[..., -1] = high
    return x.float()


@needs_vnni
@pytest.mark.parametrize(
    "shape", [(37, 16, 16), (1, 24, 40), (200, 31, 17), (500, 192, 96), (7, 2500, 70), (0, 64, 64)]
)
def test_an_int8_product_of_integers_is_exact(shape):
    torch.manual_seed(0)
    number, channels, outputs = shape
    linear = nn.Linear(channels, outputs)
    linear.weight.data, linear.bias.data = random_integers((outputs, channels), -127, 127), torch.randn(outputs)
    x = random_integers((number, channels), -127, 127)
    expected = x.double() @ linear.weight.double().T + linear.bias
    torch.testing.assert_close(Int8Linear(linear)(x), expected.float(), rtol=1e-6, atol=1e-4)


@needs_vnni
def test_products_of_the_largest_bytes_do_not_saturate():
    linear = nn.Linear(2048, 16, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    assert Int8Linear(linear)(torch.full((2, 2048), 3.0)).allclose(torch.tensor(3.0 * 2048))


@needs_vnni
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 24), (2, 50, 24), (1, 1500, 24), (2, 0, 24), (0, 24)])
def test_an_int8_layer_equals_the_original_within_rounding(shape, dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    x = torch.randn(shape).to(dtype)
    output, expected = Int8Linear(linear)(x), linear(x.float())
    assert output.shape == expected.shape and output.dtype == dtype
    allowed = rounding_bound(linear, x) + (expected.abs() / 128 if dtype == torch.bfloat16 else 0)
    assert ((output.float() - expected).abs() <= allowed).all()


@needs_vnni
def test_tokens_do_not_depend_on_their_neighbours_or_their_order_in_memory():
    torch.manual_seed(0)
    layer = Int8FeedForward(make_ffn(nn.Linear(32, 80), nn.Linear(80, 32)))
    x = torch.randn(2, 30, 32)
    expected = layer(x)
    assert layer(x[:, 7:9]).equal(expected[:, 7:9])
    transposed = x.transpose(0, 1)
    assert layer(transposed).equal(expected.transpose(0, 1))


@needs_vnni
def test_an_int8_feed_forward_block_is_close_to_the_original():
    torch.manual_seed(0)
    block = make_ffn(nn.Linear(64, 256), nn.Linear(256, 64))
    x = torch.randn(2, 40, 64)
    difference = Int8FeedForward(block)(x) - block(x)
    assert difference.abs().max() < 0.05 and difference.std() < 0.01


@needs_vnni
def test_copies_and_pickles_give_the_same_results():
    x = torch.randn(5, 32)
    for layer in (Int8Linear(nn.Linear(32, 48)), Int8FeedForward(make_ffn(nn.Linear(32, 48), nn.Linear(48, 32)))):
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other(x).equal(layer(x))


@needs_vnni
def test_the_operators_fake_implementations_match():
    torch.manual_seed(0)
    ops, x = torch.ops.dino, torch.randn(2, 7, 24).bfloat16()
    first, second = nn.Linear(24, 40).requires_grad_(False), nn.Linear(40, 24).requires_grad_(False)
    block, image = Int8FeedForward(make_ffn(first, second)), torch.rand(2, 16, 9, 8).bfloat16()
    conv = Int8Conv(FusedConv(nn.Conv2d(16, 40, 3, 2, padding=(0, 1)).requires_grad_(False)))
    residual = torch.randn(2, 7, 40).bfloat16()
    torch.library.opcheck(ops.int8_linear.default, (x, Int8Linear(first).layer(), 128, None, False))
    torch.library.opcheck(ops.int8_linear.default, (x, Int8Linear(first).layer(), 128, residual, True))
    torch.library.opcheck(ops.int8_feed_forward.default, (x, block.first(), block.second(), block.norm, block.eps))
    torch.library.opcheck(ops.int8_convolution.default, (image, conv.layer(), [3, 3], [0, 1], [2, 2]))


def residual_block(kind, width: int) -> FusedBlock:
    torch.manual_seed(0)
    channels = width * kind.expansion
    folded = kind(channels, width, norm_layer=lambda width: nn.Identity()).eval().requires_grad_(False)
    return FusedBlock(folded)


@needs_vnni
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_uses_int8_for_inputs_after_a_relu(kind, dtype):
    plain = residual_block(kind, 32).to(dtype)
    quantized = copy.deepcopy(plain)
    quantize_blocks([quantized])
    types = [FusedConv, Int8Conv, Int8PointwiseConv]
    assert [types.index(type(conv)) for conv in quantized.convs] == ([1, 0] if kind is BasicBlock else [2, 1, 2])
    x = torch.rand(2, 32 * kind.expansion, 9, 13).to(dtype).contiguous(memory_format=torch.channels_last)
    actual, expected = quantized(x).float(), plain(x).float()
    assert actual.shape == expected.shape and quantized(x).dtype == dtype
    assert (actual - expected).abs().max() < 0.03 * expected.abs().max()


@needs_vnni
@pytest.mark.parametrize(("conv", "relu"), [({"stride": 2}, False), ({"stride": (1, 3)}, True)])
def test_a_pointwise_convolution_quantizes_each_pixel_separately(conv, relu):
    torch.manual_seed(0)
    plain = FusedConv(nn.Conv2d(24, 40, 1, **conv).requires_grad_(False))
    plain.act = ("relu" if relu else "none", [])
    x = torch.rand(2, 24, 9, 13) * torch.logspace(-3, 3, 13)  # each column has its own scale
    residual = torch.randn(plain(x).shape)
    quantized, tokens = Int8PointwiseConv(plain), x.permute(0, 2, 3, 1)
    expected = plain(x)
    tolerance = 0.02 * tokens[:, :: plain.options[1][0], :: plain.options[1][1]].amax(-1)[:, None]
    assert ((quantized(x) - expected).abs() <= tolerance).all()
    added = expected + residual if not relu else (plain_without_relu(plain, x) + residual).relu()
    assert ((quantized(x, residual) - added).abs() <= tolerance).all()


def plain_without_relu(conv: FusedConv, x: torch.Tensor) -> torch.Tensor:
    padding, stride, dilation, groups = conv.options
    return nn.functional.conv2d(x, conv.weight, conv.bias, stride, padding, dilation, groups)


@needs_vnni
@pytest.mark.parametrize("options", [{"dilation": 2, "padding": 2}, {"groups": 2, "padding": 1}])
def test_dilated_and_grouped_convolutions_are_not_replaced(options):
    bottleneck = residual_block(Bottleneck, 32)
    bottleneck.convs[1] = FusedConv(nn.Conv2d(32, 32, 3, **options))
    quantize_blocks([bottleneck])
    assert isinstance(bottleneck.convs[1], FusedConv) and isinstance(bottleneck.convs[0], Int8PointwiseConv)


@needs_vnni
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("channels", [16, 24, 31])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 0), ((1, 3), (0, 2)), (2, 1)])
def test_a_convolution_of_integers_is_exact(stride, channels, kernel, padding):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 20, kernel, stride, padding).requires_grad_(False)
    conv.weight.copy_(torch.randint(-126, 127, conv.weight.shape))
    conv.weight[:, 0, 0, 0] = 127
    x = torch.randint(0, 255, (1, channels, 12, 17)).float()
    x[0, 3, 2, 1] = 255
    expected = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, padding).relu()
    torch.testing.assert_close(Int8Conv(FusedConv(conv))(x), expected.float(), rtol=1e-6, atol=1e-2)


@needs_vnni
def test_an_int8_convolution_differs_by_rounding_only():
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 20, 3, padding=1).requires_grad_(False)
    x = torch.rand(1, 24, 12, 17)
    expected = conv(x).relu()
    step, weight = x.max() / 255, conv.weight.abs()
    allowed = 0.51 * step * weight.sum((1, 2, 3)) + 0.51 * weight.amax((1, 2, 3)) / 127 * x.sum()  # a loose bound
    difference = (Int8Conv(FusedConv(conv))(x) - expected).abs()
    assert (difference <= allowed[:, None, None]).all() and difference.max() < 0.02 * expected.max()


@needs_vnni
def test_images_of_a_batch_are_independent_even_if_one_is_not_finite():
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
def test_copies_of_a_convolution_give_the_same_results():
    conv = Int8Conv(FusedConv(nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)))
    x = torch.rand(1, 16, 8, 8)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other(x).equal(conv(x))


@pytest.fixture(scope="module")
def detectors():
    if not torch.cpu._is_vnni_supported():
        pytest.skip("without VNNI, int8 is refused")
    return {amp: load_detector("cells", "cpu", amp) for amp in ("off", "int8")}


def test_only_encoder_and_decoder_layers_are_quantized(detectors):
    model = detectors["int8"].model
    replaced = [name for name, part in model.named_modules() if isinstance(part, Int8Linear | Int8FeedForward)]
    layers = [f"encoder.layers.{k}.attn" for k in range(3)] + [f"decoder.layers.{k}.cross_attn" for k in range(3)]
    attention = {f"{layer}.{name}" for layer in layers for name in ("value", "output")}
    blocks = {f"{part}.layers.{k}.ffn" for part in ("encoder", "decoder") for k in range(3)}
    assert set(replaced) == attention | blocks
    assert not any(isinstance(part, Int8Weights) for part in detectors["off"].model.modules())


def test_int8_detects_the_same_cells(detectors):
    smear = draw_smear(5, 0, (320, 240))[0]
    detections = {amp: detector(smear) for amp, detector in detectors.items()}
    for first, second in (("off", "int8"), ("int8", "off")):
        confident, candidates = detections[first].scores > 0.5, detections[second].scores > 0.35
        assert confident.sum() >= 5
        distances = detections[first].boxes_xyxy[confident][:, None] - detections[second].boxes_xyxy[candidates][None]
        assert distances.abs().amax(-1).amin(1).max() < 4
    restored = pickle.loads(pickle.dumps(detectors["int8"]))(smear)
    assert restored.boxes_xyxy.equal(detections["int8"].boxes_xyxy) and restored.scores.equal(detections["int8"].scores)


def test_layers_narrower_than_a_simd_row_are_not_replaced():
    from dinocore.model.encoder import EncoderLayer

    layers = nn.ModuleList([EncoderLayer(8, 2, 1, 2, 12, 0.0)])
    quantize_layers(layers)
    assert not any(isinstance(part, Int8Weights) for part in layers.modules())


def test_int8_is_refused_where_it_would_be_slow_or_wrong(monkeypatch):
    with pytest.raises(ConfigError, match="int8 only works on CPUs, but this is cuda"):
        pick_precision("int8", torch.device("cuda"))
    with monkeypatch.context() as patched:
        patched.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
        with pytest.raises(ConfigError, match="AVX-512 VNNI"):
            pick_precision("int8", CPU)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="numba"):
        pick_precision("int8", CPU)


@needs_vnni
@pytest.mark.parametrize(("name", "value"), [("CPU_NAME", "generic"), ("CPU_FEATURES", "+sse2"), ("DISABLE_JIT", "1")])
def test_int8_is_refused_if_numba_compiles_for_another_cpu(monkeypatch, name, value):
    """Otherwise LLVM would abort the process."""
    monkeypatch.setenv(f"NUMBA_{name}", value)
    with pytest.raises(ConfigError, match=f"unset NUMBA_{name} in the environment"):
        pick_precision("int8", CPU)
    monkeypatch.setenv(f"NUMBA_{name}", {"CPU_NAME": "host", "CPU_FEATURES": "+avx512vnni", "DISABLE_JIT": "0"}[name])
    pick_precision("int8", CPU)


def test_a_model_prepared_without_int8_is_unchanged(detectors):
    source = detectors["off"].model
    assert not any(isinstance(part, Int8Weights) for part in for_inference(source, None, CPU).modules())
