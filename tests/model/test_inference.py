"""The model optimized for inference gives the same results."""

import copy

import pytest
import torch
from torch import nn

from dinocore import build_model, load_config
from dinocore.model.inference import (
    ChunkedModule,
    FusedBlock,
    FusedConv,
    QueryAttention,
    _fuse_convolutions,
    _pack_layers,
    fold_batch_norm,
    for_inference,
    pack_linear,
)

CPU = torch.device("cpu")


def small_model(backbone: str):
    overrides = [f'model.backbone="{backbone}"', "model.hidden_dim=64", "model.num_heads=4", "model.ffn_dim=96"]
    overrides += [
        "model.num_encoder_layers=2",
        "model.num_decoder_layers=2",
        "model.num_queries=20",
        "model.num_classes=5",
    ]
    torch.manual_seed(0)
    model = build_model(load_config("r50-4scale", overrides).model).eval()
    with torch.no_grad():
        for name, buffer in model.backbone.named_buffers():  # not 0 and 1, which would hide errors in folding
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name or "weight" in name else -0.5))
    return model


def inputs():
    torch.manual_seed(1)
    return torch.randn(1, 3, 96, 128), torch.zeros(1, 96, 128, dtype=torch.bool)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "timm/tf_efficientnet_lite0", "timm/mobilenetv2_050"])
def test_batch_norm_is_folded_without_changing_the_features(backbone):
    model = small_model(backbone)
    images, _ = inputs()
    with torch.no_grad():
        before = model.backbone(images)
        optimized = for_inference(model, None, CPU)
        after = optimized.backbone(images)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3 * float(a.abs().max()), rtol=1e-3)
    assert not any("BatchNorm" in type(module).__name__ for module in optimized.modules())
    assert any("BatchNorm" in type(module).__name__ for module in model.modules())  # the original is unchanged


def test_folding_uses_the_running_mean():
    model = small_model("resnet18")
    images, _ = inputs()
    before = model.backbone(images)[0]
    model.backbone.body["bn1"].running_mean.add_(1)
    fold_batch_norm(model.backbone)
    assert not torch.allclose(before, model.backbone(images)[0], rtol=0.01, atol=0.01)


def test_convolutions_include_the_relu_and_the_residual_sum():
    optimized = for_inference(small_model("resnet50"), None, CPU)
    kinds = [type(module) for module in optimized.backbone.modules()]
    assert kinds.count(FusedBlock) == 16 and nn.Conv2d not in kinds
    assert kinds.count(nn.ReLU) == 1  # the stem's, which follows a folded batch norm
    optimized = for_inference(small_model("timm/mobilenetv2_050"), None, CPU)
    acts = [module.act[0] for module in optimized.backbone.modules() if isinstance(module, FusedConv)]
    assert "hardtanh" in acts and "none" in acts


def test_a_relu_after_a_sum_is_not_fused_before_it():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(x + self.conv(x))

    block, images = Block(), torch.randn(1, 4, 5, 6)
    with torch.inference_mode():
        expected = block(images)
        _fuse_convolutions(block)
        torch.testing.assert_close(block(images), expected)
    assert isinstance(block.conv, FusedConv) and isinstance(block.act, nn.ReLU)


def test_a_convolution_with_a_hook_is_not_fused():
    shapes = []
    body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    body[0].register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    images = torch.randn(1, 4, 8, 9)
    with torch.inference_mode():
        expected = body(images)
        shapes.clear()
        _fuse_convolutions(body)
        torch.testing.assert_close(body(images), expected)
    assert shapes == [(1, 4, 8, 9)] and [type(layer).__name__ for layer in body] == [
        "Conv2d", "ReLU", "FusedConv", "Identity"
    ]  # fmt: skip


def test_a_backbone_that_loses_accuracy_in_bf16_stays_in_float32_for_inference():
    for name, dtype in (("timm/mobilenetv2_050", torch.float32), ("timm/convnext_atto", torch.bfloat16)):
        optimized = for_inference(small_model(name), torch.bfloat16, CPU)
        assert {p.dtype for p in optimized.backbone.parameters()} == {dtype}
        assert {p.dtype for p in optimized.decoder.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("backbone", ["resnet18", "timm/tf_efficientnet_lite0", "swin-t-224"])
def test_bf16_outputs_are_close_to_float32_and_boxes_stay_float32(backbone):
    model = small_model(backbone)
    images, padding = inputs()
    optimized = for_inference(model, torch.bfloat16, CPU)
    with torch.inference_mode():
        expected = model(images, padding).proposals
        actual = optimized(images.to(next(optimized.backbone.parameters()).dtype), padding)
    assert actual.final.boxes.dtype == torch.float32
    assert actual.final.logits.dtype == torch.bfloat16
    best = expected.logits.amax(-1).sort().values
    torch.testing.assert_close(actual.proposals.logits.amax(-1).sort().values.float(), best, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", ["none", "relu"])
def test_a_packed_layer_equals_the_original(dtype, act):
    layer = torch.nn.Linear(24, 40, bias=act == "relu").to(dtype).requires_grad_(False)
    packed = pack_linear(layer)
    packed.act = act
    for shape in ((3, 24), (2, 5, 24), (1, 2000, 24), (1, 0, 24)):
        x = torch.randn(shape).to(dtype)
        expected = layer(x).relu() if act == "relu" else layer(x)
        torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=2 * torch.finfo(dtype).eps)
    transposed = torch.randn(24, 7).to(dtype).T
    torch.testing.assert_close(packed(transposed), packed(transposed.contiguous()))


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("shape", [(7, 1, 64), (50, 3, 64)])
def test_query_attention_equals_pytorchs_up_to_rounding(shape, compiling, monkeypatch):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4).eval().requires_grad_(False)
    for parameter in attention.parameters():
        parameter.copy_(parameter + torch.randn_like(parameter) / 8)  # scores from about -6 to 7, non-zero biases
    attention = attention.bfloat16()
    q, v = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    k = q + torch.randn(shape).bfloat16() / 4
    expected = attention.float()(q.float(), k.float(), v.float(), need_weights=False)[0]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    actual, weights = QueryAttention(attention.bfloat16())(q, k, v, attn_mask=None, need_weights=False)
    assert weights is None and actual.dtype == torch.bfloat16 and actual.shape == shape
    torch.testing.assert_close(actual.float(), expected, atol=0.03 * expected.std().item(), rtol=0.03)


def test_query_attention_is_replaced_only_in_bf16():
    model = small_model("resnet18")
    for dtype, replaced in ((torch.bfloat16, 2), (None, 0)):
        layers = for_inference(model, dtype, CPU).decoder.layers
        assert sum(isinstance(layer.self_attn, QueryAttention) for layer in layers) == replaced
    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in model.decoder.layers)


def test_a_relu_is_fused_only_into_a_preceding_linear_layer():
    nn = torch.nn
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU()))
    packed = copy.deepcopy(net).requires_grad_(False)
    _pack_layers(packed)
    x = torch.randn(5, 8)
    torch.testing.assert_close(packed(x), net(x).detach())
    assert [type(layer).__name__ for layer in packed.modules() if not list(layer.children())] == [
        "PackedLinear", "Identity", "PackedLinear", "LayerNorm", "ReLU",
    ]  # fmt: skip


def test_chunks_of_any_number_of_tokens_give_the_same_result():
    net = torch.nn.Linear(8, 8)
    x = torch.randn(2, 37, 8)
    for num_tokens in (1, 10, 74, 100):
        torch.testing.assert_close(ChunkedModule(net, num_tokens)(x), net(x))


def test_static_query_boxes_stay_float32_in_bf16():
    torch.manual_seed(0)
    settings = ['model.backbone="resnet18"', 'model.queries="static"', "model.num_queries=50"]
    model = build_model(load_config("r50-4scale", settings).model).eval()
    optimized = for_inference(model, torch.bfloat16, CPU)
    assert optimized.proposer.boxes.dtype == torch.float32 and optimized.proposer.boxes.equal(model.proposer.boxes)
    assert optimized.proposer.content.dtype == torch.bfloat16


@pytest.mark.parametrize("setting", ['model.queries="static"', 'model.heads="per-layer"', 'model.queries="pure"'])
def test_every_model_gives_the_same_results_when_optimized_for_inference(setting):
    torch.manual_seed(0)
    sizes = ["model.hidden_dim=64", "model.num_heads=4", "model.ffn_dim=96", "model.num_queries=20"]
    model = build_model(load_config("r50-4scale", ['model.backbone="resnet18"', *sizes, setting]).model).eval()
    images, padding = torch.randn(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 64:], padding[1, :, 96:] = True, True
    optimized = for_inference(model, None, CPU)
    with torch.inference_mode():
        actual, expected = optimized(images, padding).final, model(images, padding).final
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.boxes, expected.boxes, atol=1e-5, rtol=1e-4)
