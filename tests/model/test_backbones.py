"""Backbones by name: map sizes, gradients, frozen stages, and invalid settings."""

import math

import pytest
import torch
from torch import nn

from dinocore.errors import ConfigError
from dinocore.model.alignment import align
from dinocore.model.backbones.build import NORMED, build_backbone
from dinocore.model.backbones.swin import SWINS, SwinSize
from dinocore.model.backbones.timm import TimmBackbone
from dinocore.model.build import build_model
from dinocore.model.layers import checkpointed, direct
from dinocore.presets import load_config

BACKBONES = [
    ("swin-t-224", (4, 8, 16, 32)),
    ("convnext-t", (8, 16, 32)),
    ("timm/vit_tiny_patch16_224", (8, 16, 32)),
    pytest.param("timm/vit_small_patch14_dinov2", (7, 14, 28), marks=pytest.mark.slow),
    pytest.param("timm/swin_tiny_patch4_window7_224", (8, 16, 32), marks=pytest.mark.slow),
]


@pytest.fixture
def small_backbones(monkeypatch):
    """Smaller versions of two backbones."""
    monkeypatch.setitem(SWINS, "swin-t-224", SwinSize(32, (2, 2, 2, 2), 7))
    monkeypatch.setitem(NORMED, "convnext-t", ("convnext_atto", 1e-6))


def build(name, strides=(8, 16, 32), frozen=-1, rate=0.0, run=direct):
    torch.manual_seed(0)
    return build_backbone(name, strides, frozen, rate, run)


@pytest.mark.parametrize(("name", "strides"), BACKBONES)
def test_maps_have_their_strides_at_any_image_size_and_every_parameter_gets_a_gradient(name, strides, small_backbones):
    backbone = build(name, strides, rate=0.1).train()
    for size in ((64, 96), (75, 130)):
        maps = backbone(torch.randn(2, 3, *size))
        for x, channels, stride in zip(maps, backbone.channels, strides, strict=True):
            assert x.shape[:2] == (2, channels)
            for length, side in zip(x.shape[2:], size, strict=True):
                assert side // stride <= length <= math.ceil(side / stride) + 3  # a ViT pads to whole patches
    sum(x.square().mean() for x in maps).backward()
    assert [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [x.shape[0] for x in backbone.eval()(torch.zeros(1, 3, 1, 1))] == [1] * len(maps)


@pytest.mark.parametrize("name", [*SWINS, *NORMED, "vitdet-b", "vitdet-l"])
def test_every_backbone_gives_maps_at_the_configured_strides(name):
    with torch.device("meta"):
        backbone = build(name)
        maps = backbone(torch.empty(1, 3, 96, 128))
    assert [tuple(x.shape) for x in maps] == [
        (1, c, 96 // s, 128 // s) for c, s in zip(backbone.channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["dla46x_c", "tresnet_l", "resnet10t"])
def test_maps_of_timm_models_have_the_configured_strides(name):
    """For DLA and TResNet, timm omits the first map by default, so indices do not start at 0."""
    with torch.device("meta"):
        maps = build(f"timm/{name}")(torch.empty(1, 3, 96, 128))
    assert [tuple(x.shape[2:]) for x in maps] == [(12, 16), (6, 8), (3, 4)]


@pytest.mark.parametrize(
    ("name", "least", "alignment"),
    [("hrnet_w18_small_v2", 32, 32), ("inception_v4", 96, 1), ("bat_resnext26ts", 256, 256), ("resnet10t", 1, 1)],
)
@torch.no_grad()
def test_the_sizes_that_a_timm_model_supports_are_detected(name, least, alignment):
    backbone = build(f"timm/{name}").eval()
    assert (backbone.least, backbone.alignment) == (least, alignment)
    for height, width in ((1, 3 * alignment), (alignment, 1)):
        images, _, _ = align(torch.zeros(1, 3, height, width), torch.zeros(1, height, width).bool(), alignment)
        assert len(backbone(images)) == 3


def test_a_timm_model_that_supports_no_tested_size_is_refused(monkeypatch):
    monkeypatch.setattr(TimmBackbone, "_takes", lambda self, height, width: height == width == 64)
    with pytest.raises(ConfigError, match="`resnet10t` takes only images of certain sizes, not of multiples of 32"):
        build("timm/resnet10t")


@pytest.mark.parametrize("name", ["swin-t-224", "convnext-t", "timm/vit_tiny_patch16_224"])
def test_recomputed_blocks_give_the_same_gradients(name, small_backbones):
    gradients = []
    images = torch.randn(1, 3, 64, 64)
    for run in (direct, checkpointed):
        backbone = build(name, run=run).train()
        sum(x.square().mean() for x in backbone(images)).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_activation_checkpointing_stores_fewer_activations(small_backbones):
    def saved_elements(run):
        backbone, saved = build("swin-t-224", run=run).train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            backbone(torch.randn(1, 3, 64, 64))
        return sum(saved)

    assert saved_elements(checkpointed) < 0.4 * saved_elements(direct)


def test_the_pyramid_of_a_vit_has_finer_and_coarser_maps_than_the_patches():
    backbone = build("timm/vit_tiny_patch16_224", (4, 8, 16, 32, 64)).eval()
    sizes = [tuple(x.shape[2:]) for x in backbone(torch.randn(1, 3, 128, 192))]
    assert sizes == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


def test_freezing_two_stages_of_a_vit_freezes_its_embeddings_and_first_two_blocks():
    frozen = {key for key, p in build("timm/vit_tiny_patch16_224", frozen=2).named_parameters() if not p.requires_grad}
    blocks = {key.split(".")[3] for key in frozen if ".blocks." in key}
    assert blocks == {"0", "1"} and {"body.model.pos_embed", "body.model.patch_embed.proj.weight"} <= frozen
    assert not any(key.startswith("pyramid") for key in frozen)


@pytest.mark.parametrize(
    ("name", "strides", "rate", "message"),
    [
        ("swin-t", (8, 16, 32), 0.0, "unknown backbone `swin-t`; did you mean swin-t-224"),
        ("swin-t-224", (8, 16, 64), 0.0, r"features at strides \[4, 8, 16, 32\], not at \[64\]"),
        ("resnet50", (8, 16, 32), 0.2, "resnet50 cannot skip blocks; set model.drop_path = 0"),
        ("timm/vgg11", (8, 16, 32), 0.2, "`vgg11` cannot skip blocks"),
        ("timm/beit_base_patch16_224", (8, 16, 32), 0.0, "takes only images of 224 x 224"),
        ("timm/vit_tiny_patch16_224", (8, 32), 0.0, r"must be neighbours in \[4, 8, 16, 32, 64"),
        ("timm/vit_small_patch14_dinov2", (8, 16, 32), 0.0, r"neighbours in \[7, 14, 28"),
        ("convnext-t", (8, 64), 0.0, r"not at \[64\]"),
    ],
)
def test_an_unsupported_backbone_is_refused_with_the_reason(name, strides, rate, message):
    with pytest.raises(ConfigError, match=message):
        build(name, strides, rate=rate)


def test_stochastic_depth_applies_to_timm_models():
    rates = [m.drop_prob for m in build("convnext-t", rate=0.3).modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3) and isinstance(build("convnext-t").body.body["stages_0"], nn.Module)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("timm/resnet18", "resnet18"), ("timm/regnety_002", "resnet18"), ("timm/rexnet_100", "resnet18")],
)
@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 3])
def test_frozen_stages_has_the_same_meaning_for_every_backbone_family(name, reference, frozen):
    """A stage is frozen if the loss of its map has no trainable parameters."""

    def trainable_levels(backbone_name):
        with torch.device("cpu"):
            backbone = build(backbone_name, (4, 8, 16, 32), frozen=frozen)
        image = torch.randn(1, 3, 64, 64)
        counts = [None] * 4
        for level in range(4):
            backbone.zero_grad(set_to_none=True)
            maps = backbone(image)
            if maps[level].requires_grad:
                maps[level].square().mean().backward()
            counts[level] = sum(p.grad is not None for p in backbone.parameters())
        return [count > 0 for count in counts]

    assert trainable_levels(name) == trainable_levels(reference)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "timm/tf_efficientnet_lite0"])
def test_without_pretrained_weights_every_layer_and_norm_of_the_backbone_is_trainable(name):
    def frozen(weights):
        config = load_config("r50-4scale", [f"model.backbone={name}", f"model.backbone_weights={weights}",
                                            "model.frozen_stages=2"])  # fmt: skip
        backbone = build_model(config.model).backbone
        names = {key for key, value in backbone.named_parameters() if not value.requires_grad}
        return names, {key for key, _ in backbone.named_buffers()}, backbone.state_dict()

    scratch_frozen, scratch_buffers, scratch_state = frozen("none")
    assert scratch_frozen == set() and not any(key.endswith(("weight", "bias")) for key in scratch_buffers)
    pretrained_frozen, pretrained_buffers, pretrained_state = frozen("imagenet")
    assert pretrained_frozen and any(key.endswith("weight") for key in pretrained_buffers)
    assert sorted(scratch_state) == sorted(pretrained_state), "weights files fit both"


def test_a_whole_detector_is_refused_as_a_backbone_and_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("it must not download"))
    with pytest.raises(
        ConfigError, match=r"`fasterrcnn_resnet50_fpn` is a torchvision model but not a ResNet.*resnet50"
    ):
        build("fasterrcnn_resnet50_fpn")
