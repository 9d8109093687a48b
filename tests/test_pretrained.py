"""Trained weights are loaded into backbones by several naming schemes. Random weights replace downloads."""

import re

import pytest
import timm
import torch
from torch import nn

from dinocore import load_config
from dinocore.errors import CheckpointError, EnvironmentFault
from dinocore.model.backbones.build import build_backbone
from dinocore.model.backbones.swin import SWINS
from dinocore.model.layers import direct
from dinocore.weights import backbone as pretrained
from dinocore.weights.backbone import IMAGENET, load_backbone_weights, swin_names

CONVNEXT = "model.backbone=timm/convnext_femto"


def build(name, strides=(8, 16, 32)):
    torch.manual_seed(1)
    return build_backbone(name, strides, -1, 0.0, direct)


def load(backbone, name, source, *overrides):
    config = load_config(overrides=[f"model.backbone={name}", f"model.backbone_weights={source}", *overrides])
    return load_backbone_weights(backbone, config.model)


@pytest.fixture
def downloads(monkeypatch):
    """The names of weights requested from timm, which returns random ones."""
    requested = []

    def download(name):
        requested.append(name)
        torch.manual_seed(2)
        return timm.create_model(name).state_dict()

    monkeypatch.setattr(pretrained, "_download_timm", download)
    return requested


@pytest.fixture
def official_swin(tmp_path):
    """A Swin-T in its publisher's format: the file and its state dict."""
    state = build("swin-t-224", (4, 8, 16, 32)).state_dict()
    state = {key: torch.randn(v.shape) for key, v in state.items() if not re.match(r"norm\d\.", key)}
    state |= {"norm.weight": torch.ones(768), "head.weight": torch.ones(1000, 768), "head.bias": torch.ones(1000)}
    state |= {f"layers.{i}.blocks.1.attn_mask": torch.zeros(4, 49, 49) for i in range(3)}
    state |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}
    torch.save({"model": state}, tmp_path / "swin_tiny_patch4_window7_224.pth")
    return tmp_path / "swin_tiny_patch4_window7_224.pth", state


def test_a_published_swin_is_loaded_except_for_its_output_norms(official_swin):
    file, state = official_swin
    backbone = build("swin-t-224")
    load(backbone, "swin-t-224", file)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, torch.ones(len(value)) * key.endswith("weight") if key[:4] == "norm" else state[key])


def test_a_swin_of_another_window_or_size_is_refused_with_the_differences(official_swin, monkeypatch):
    file, _ = official_swin
    monkeypatch.setitem(SWINS, "swin-t-384", SWINS["swin-t-224"]._replace(window=12))
    with pytest.raises(CheckpointError, match=r"12 of 169 .*bias_table \(\(169, 3\) in the file, \(529, 3\) in the"):
        load(build("swin-t-384"), "swin-t-384", file)
    with pytest.raises(CheckpointError, match=r"325 of 325 .*\(\(96, 3, 4, 4\) in the file, \(128, 3, 4, 4\) in"):
        load(build("swin-b-224"), "swin-b-224", file)
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        load(build("resnet18"), "resnet18", file)


def test_patch_merging_of_timms_swin_is_moved_by_one_stage(downloads):
    backbone = build("swin-t-224")
    assert load(backbone, "swin-t-224", "imagenet") == "imagenet"
    assert downloads == ["swin_tiny_patch4_window7_224.ms_in1k"]
    torch.manual_seed(2)
    theirs = timm.create_model(downloads[0])
    for i in range(3):
        merging = theirs.layers[i + 1].downsample
        assert torch.equal(backbone.layers[i].downsample.reduction.weight, merging.reduction.weight)
    assert torch.equal(backbone.layers[3].blocks[1].mlp.fc2.weight, theirs.layers[3].blocks[1].mlp.fc2.weight)


@pytest.mark.parametrize("name", SWINS)
def test_every_swin_has_the_shapes_of_its_imagenet_weights(name):
    with torch.device("meta"):
        theirs = swin_names(timm.create_model(IMAGENET[name]).state_dict())
        ours = build(name).state_dict()
    expected = {key: value.shape for key, value in ours.items() if not re.match(r"norm\d\.", key)}
    assert {key: theirs[key].shape for key in expected} == expected


@pytest.mark.parametrize("name", IMAGENET.values())
def test_timm_has_all_imagenet_weights(name):
    assert name in timm.list_pretrained()


def test_timm_has_the_weights_named_in_presets():
    from dinocore.presets import list_presets

    requested = {load_config(name).model.backbone_weights for name in list_presets()} - {"imagenet", "none"}
    assert len(requested) == 9 and all(name.removeprefix("timm/") in timm.list_pretrained() for name in requested)


def test_other_weights_can_be_requested_by_their_timm_name(downloads):
    load(build("swin-t-224"), "swin-t-224", "timm/swin_tiny_patch4_window7_224.ms_in22k_ft_in1k")
    assert downloads == ["swin_tiny_patch4_window7_224.ms_in22k_ft_in1k"]
    with pytest.raises(CheckpointError, match="does not fit"):
        load(build("swin-t-224"), "swin-t-224", "timm/resnet18.a1_in1k")


def test_convnext_blocks_are_loaded_and_norms_on_maps_are_not(downloads):
    backbone = build("convnext-t")
    load(backbone, "convnext-t", "imagenet")
    torch.manual_seed(2)
    theirs = timm.create_model("convnext_tiny")
    weight = backbone.body.body["stages_2"].blocks[4].mlp.fc1.weight
    assert torch.equal(weight, theirs.stages[2].blocks[4].mlp.fc1.weight)
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in backbone.norms)


def test_a_file_with_its_publishers_tensor_names_is_loaded_with_timms_renaming(tmp_path):
    """Like Facebook's ConvNeXt with 22k classes, which has downsample_layers, stages, norm and head."""
    theirs = timm.create_model("convnext_tiny", num_classes=21841).state_dict()
    rules = [(r"^stem\.", "downsample_layers.0."), (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
             (r"blocks\.", ""), ("conv_dw", "dwconv"), (r"mlp\.fc", "pwconv"), (r"head\.norm", "norm"),
             (r"head\.fc", "head")]  # fmt: skip
    state = {}
    for key, value in theirs.items():
        for old, new in rules:
            key = re.sub(old, new, key)
        state[key] = value
    torch.save({"model": state}, tmp_path / "convnext_tiny_22k_224.pth")
    backbone = build("convnext-t")
    load(backbone, "convnext-t", tmp_path / "convnext_tiny_22k_224.pth")
    assert torch.equal(backbone.body.body["stages_1"].downsample[1].weight, state["downsample_layers.1.1.weight"])
    assert torch.equal(backbone.body.body["stages_3"].blocks[0].gamma, state["stages.3.0.gamma"])


@pytest.mark.slow
def test_weights_of_a_masked_autoencoder_are_loaded_into_a_vitdet(downloads):
    backbone = build("vitdet-b", (8, 16, 32, 64))
    message = load(backbone, "vitdet-b", "imagenet")
    assert downloads == ["vit_base_patch16_224.mae"] and message == "imagenet"
    torch.manual_seed(2)
    theirs, ours = timm.create_model(downloads[0]), backbone.body.model
    assert torch.equal(ours.blocks[7].attn.qkv.weight, theirs.blocks[7].attn.qkv.weight)
    assert torch.equal(ours.pos_drop.pos_embed[0, 2, 3], theirs.pos_embed[0, 1 + 2 * 14 + 3])
    assert ours.blocks[2].attn.rel_pos_h.abs().max() == 0


def test_a_plain_vit_of_timm_recommends_its_pixel_normalization(downloads):
    name = "timm/vit_tiny_patch16_224"
    backbone = build(name)
    message = load(backbone, name, "imagenet")
    assert "--set model.pixel_mean=[0.5, 0.5, 0.5] --set model.pixel_std=[0.5, 0.5, 0.5]" in message
    assert load(backbone, name, "imagenet", "model.pixel_mean=[0.5, 0.5, 0.5]", "model.pixel_std=[0.5, 0.5, 0.5]") == (
        "imagenet"
    )
    torch.manual_seed(2)
    assert torch.equal(backbone.body.model.pos_embed, timm.create_model("vit_tiny_patch16_224").pos_embed)


def test_unknown_tensor_names_are_accepted_only_if_the_shapes_match_in_order(tmp_path):
    theirs = timm.create_model("convnext_femto").state_dict()
    torch.save({f"a{i}": value for i, value in enumerate(theirs.values())}, tmp_path / "numbered.pth")
    backbone = build(CONVNEXT.split("=")[1])
    load(backbone, "timm/convnext_femto", tmp_path / "numbered.pth")
    assert torch.equal(backbone.body["stages_0"].blocks[0].conv_dw.weight, theirs["stages.0.blocks.0.conv_dw.weight"])
    torch.save({f"a{i}": value for i, value in enumerate(reversed(theirs.values()))}, tmp_path / "reversed.pth")
    with pytest.raises(CheckpointError, match="neither the names nor, in order, the shapes"):
        load(backbone, "timm/convnext_femto", tmp_path / "reversed.pth")


def test_a_failed_download_is_an_environment_fault(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    backbone = nn.Identity()
    with pytest.raises(EnvironmentFault, match=r"huggingface\.co/timm/swin_large.*\(no route\).*backbone_weights=none"):
        load(backbone, "swin-l-384", "imagenet")
    with pytest.raises(CheckpointError, match="has no weights `nothing_like_it`"):
        load(backbone, "swin-l-384", "timm/nothing_like_it")
