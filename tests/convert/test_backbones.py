"""Backbones of other codebases: reference implementations on their parameter names match ours after conversion."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from timm.models.focalnet import _create_focalnet
from torch import nn

from dinocore import build_model, convert_state_dict, load_config
from dinocore.errors import CheckpointError
from dinocore.model.backbones import swin
from dinocore.model.backbones import timm as timm_backbone
from dinocore.model.backbones import vit as vit_module
from dinocore.model.backbones.build import NORMED, build_backbone
from dinocore.model.backbones.swin import PatchMerging, Swin, SwinSize
from dinocore.model.layers import direct
from dinocore.presets import list_presets
from dinocore.weights.convert import backbones, known
from dinocore.weights.convert.backbones import backbone_in, detrex_backbone, mmdet_backbone, reordered
from dinocore.weights.convert.known import FileFacts, choose_preset, settings_in
from dinocore.weights.convert.state import convert_tensors
from dinocore.weights.convert.tables import renamed
from dinocore.weights.convert.to_official import official_options, official_state

from .conftest import read_keys

NO_FACTS = FileFacts(None, [], None)


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def converted(state, table, source):
    names = renamed(state, table)
    assert names.keys() == state.keys()
    return {names[key]: reordered(names[key], value, source) for key, value in state.items()}


def layer_norm(state, name, x, eps=1e-5):
    weight = state[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, state[f"{name}.bias"], eps)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


# --- Swin of mmdetection ----------------------------------------------------------------------------------------------


class UnfoldMerging(nn.Module):
    """Patch merging as in mmdetection: nn.Unfold orders by channel, then by neighbour, row by row."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        height, width = (math.ceil(side / 2) for side in x.shape[1:3])
        x = F.pad(x.permute(0, 3, 1, 2), (0, -x.shape[2] % 2, 0, -x.shape[1] % 2))
        x = nn.Unfold(kernel_size=2, stride=2)(x).mT  # (B, N, 4 C)
        return self.reduction(self.norm(x)).unflatten(1, (height, width))


@torch.no_grad()
def test_mmdetection_patch_merging_matches_ours_after_reordering():
    theirs, ours = randomised(UnfoldMerging(6)), PatchMerging(6)
    ours.load_state_dict({key: backbones.merging_from_mmdet(value) for key, value in theirs.state_dict().items()})
    x = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.load_state_dict(theirs.state_dict())
    assert (ours(x) - theirs(x)).abs().max() > 0.1, "without reordering, the outputs differ"


TO_MMDET = [
    ("patch_embed.proj.", "patch_embed.projection."), (r"layers\.", "stages."), (r"\.attn\.", ".attn.w_msa."),
    (r"mlp\.fc1", "ffn.layers.0.0"), (r"mlp\.fc2", "ffn.layers.1"),
]  # fmt: skip


@torch.no_grad()
def test_mmdetection_swin_matches_ours_after_conversion(monkeypatch):
    monkeypatch.setitem(swin.SWINS, "small", SwinSize(32, (2, 2, 2, 2), 3))
    theirs = randomised(Swin("small", (4, 8, 16, 32), -1, 0.0, direct))
    for stage in theirs.layers[:-1]:
        stage.downsample = randomised(UnfoldMerging(stage.blocks[0].norm1.weight.shape[0]))
    state = {}
    for key, value in theirs.state_dict().items():
        for old, new in TO_MMDET:
            key = re.sub(old, new, key)
        state[f"backbone.{key}"] = value
    ours = Swin("small", (4, 8, 16, 32), -1, 0.0, direct).eval()
    tensors = converted(state, mmdet_backbone("swin"), "mmdet")
    ours.load_state_dict({key.removeprefix("backbone."): value for key, value in tensors.items()})
    images = torch.randn(1, 3, 45, 60)
    for a, b in zip(ours(images), theirs(images), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# --- Swin of official DINO --------------------------------------------------------------------------------------------


def official_swin_shapes(name):
    """Parameter shapes of official DINO with Swin: the backbone from detrex, other parts from the ResNet-50 model."""
    theirs = {key: shape for key, shape, _, _ in read_keys(name)}
    levels = theirs["transformer.level_embeds"][0]
    rows = {key.replace("backbone.", "backbone.0.", 1): s for key, s in theirs.items() if key.startswith("backbone.")}
    rows |= {k: s for k, s, _, _ in read_keys("official_r50_4scale") if not k.startswith(("backbone.", "input_proj."))}
    rows |= {"transformer.level_embed": [levels, 256], "transformer.tgt_embed.weight": [900, 256]}
    per_level = [key for key in rows if "sampling_offsets" in key or "attention_weights" in key]
    rows |= {key: [rows[key][0] * levels // 4, *rows[key][1:]] for key in per_level}
    for i, neck in enumerate([*(f"neck.convs.{i}" for i in range(levels - 1)), "neck.extra_convs.0"]):
        for number, part in enumerate(("conv", "norm")):
            rows |= {f"input_proj.{i}.{number}.{k}": theirs[f"{neck}.{part}.{k}"] for k in ("weight", "bias")}
    return rows


def tensors_of(shapes, make=torch.zeros):
    """Tensors of these shapes; the heads of all layers are one tensor, as in official DINO."""
    tensors = {}

    def shared(key):
        return re.sub(r"^(?:transformer\.decoder\.)?((?:class|bbox)_embed)\.\d", r"\1", key)

    return {key: tensors.setdefault(shared(key), make(shape)) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "preset", "options"),
    [
        ("detrex_swinl384_4scale", "swin-l-4scale", []),
        ("detrex_swinl384_5scale", "swin-l-5scale", ["num_feature_levels=5", "return_interm_indices=0,1,2,3"]),
    ],
)
def test_converted_official_swin_l_has_our_names_and_shapes(name, preset, options):
    model = load_config(preset).model
    with torch.device("meta"):
        tensors = convert_state_dict(tensors_of(official_swin_shapes(name)))
        expected = build_model(model).state_dict()
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in expected.items()}
    assert choose_preset("official", settings_in(tensors), None, NO_FACTS) == preset
    assert sorted(official_options(model)) == sorted(["backbone=swin_L_384_22k", *options])


def test_official_swin_t_is_unchanged_by_a_round_trip():
    shapes = official_swin_shapes("detrex_swint_4scale")
    state = tensors_of(shapes, torch.randn)
    state |= {key: swin.relative_position_index(7) for key in shapes if key.endswith("relative_position_index")}
    tensors = convert_state_dict(state)
    model = load_config("swin-l-4scale", ["model.backbone=swin-t-224"]).model
    back = official_state(tensors, model)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert backbone_in(tensors) == settings_in(tensors)["backbone"] == "swin-t-224"


def test_exporting_a_backbone_that_official_dino_lacks_is_refused():
    for name in ("convnext-t", "swin-s-224", "vitdet-b", "timm/resnet50"):
        model = load_config("swin-l-4scale", [f"model.backbone={name}"]).model
        with pytest.raises(CheckpointError, match=f"it has no {name}"):
            official_state({}, model)


@pytest.mark.parametrize("name", [*swin.SWINS, *NORMED, "vitdet-b", "vitdet-l", "resnet50", "resnet101"])
def test_every_backbone_is_recognised_by_its_shapes(name):
    strides = (8, 16, 32, 64) if name.startswith("vitdet") else (8, 16, 32)
    with torch.device("meta"):
        built = build_backbone(name, strides, -1, 0.0, direct)
    assert backbone_in({f"backbone.{key}": value for key, value in built.state_dict().items()}) == name


# --- ConvNeXt, FocalNet and ViTDet of detrex --------------------------------------------------------------------------


def channels_last(x):
    return x.permute(0, 2, 3, 1)


def channels_first(x):
    return x.permute(0, 3, 1, 2)


def map_norm(state, name, x, eps):
    return channels_first(layer_norm(state, name, channels_last(x), eps))


def reference_convnext(state, x, depths):
    maps = []
    for i, depth in enumerate(depths):
        down = [f"backbone.downsample_layers.{i}.{k}" for k in (0, 1)]
        norm, conv = down[::-1] if i == 0 else down
        x = x if i == 0 else map_norm(state, norm, x, 1e-6)
        x = F.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], stride=4 if i == 0 else 2)
        x = map_norm(state, norm, x, 1e-6) if i == 0 else x
        for j in range(depth):
            name = f"backbone.stages.{i}.{j}"
            weight = state[f"{name}.dwconv.weight"]
            y = F.conv2d(x, weight, state[f"{name}.dwconv.bias"], padding=3, groups=len(weight))
            y = layer_norm(state, f"{name}.norm", channels_last(y), 1e-6)
            y = linear(state, f"{name}.pwconv2", F.gelu(linear(state, f"{name}.pwconv1", y)))
            x = x + channels_first(state[f"{name}.gamma"] * y)
        if f"backbone.norm{i}.weight" in state:
            maps.append(map_norm(state, f"backbone.norm{i}", x, 1e-6))
    return maps


def with_detrex_names(ours, family, projected):
    """Our state dict under detrex's names, from the conversion table in reverse."""
    table = detrex_backbone(family, projected)
    by_length = sorted(table.items(), key=lambda rule: -len(rule[1]))
    names = renamed(ours, {new: old for old, new in by_length})
    return {names[key]: value for key, value in ours.items()}


@torch.no_grad()
def test_detrex_convnext_matches_ours_after_conversion():
    backbone = randomised(build_backbone("convnext-t", (8, 16, 32), -1, 0.0, direct))
    ours = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    theirs = with_detrex_names(ours, "convnext", 3)
    assert {"backbone.downsample_layers.3.1.weight", "backbone.stages.2.8.gamma", "backbone.norm1.bias"} <= set(theirs)
    assert backbones.family_of(theirs) == "convnext"
    restored = converted(theirs, detrex_backbone("convnext", 3), "detrex")
    assert restored.keys() == ours.keys() and all(restored[key] is ours[key] for key in ours)
    images = torch.randn(1, 3, 67, 96)
    scale = torch.tensor(0.05)  # keeps the outputs small enough to compare in float32
    for key in theirs:
        if key.endswith("gamma"):
            theirs[key].mul_(scale)
    for a, b in zip(backbone(images), reference_convnext(theirs, images, (3, 3, 9, 3)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def small_timm(monkeypatch, module, **options):
    """Make `module` build a small model with the same code as the published ones, which are large."""
    build = options.pop("build", timm_backbone.feature_extractor)

    def smaller(name, drop_path=0.0, **overrides):
        return build(name, drop_path, **{**options, **overrides})

    monkeypatch.setattr(module, "feature_extractor", smaller)


def reference_focalnet(state, x, depths, levels):
    maps = []
    for i, depth in enumerate(depths):
        name = "backbone.patch_embed" if i == 0 else f"backbone.layers.{i - 1}.downsample"
        size, step, edge = (7, 4, 3) if i == 0 else (3, 2, 1)
        assert state[f"{name}.proj.weight"].shape[-1] == size
        x = F.conv2d(x, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"], stride=step, padding=edge)
        x = map_norm(state, f"{name}.norm", x, 1e-5)
        for j in range(depth):
            name = f"backbone.layers.{i}.blocks.{j}"
            y = channels_first(linear(state, f"{name}.modulation.f", channels_last(x)))
            width = x.shape[1]
            query, context, gates = y.split((width, width, levels + 1), 1)
            total = torch.zeros_like(query)
            for level in range(levels):
                weight = state[f"{name}.modulation.focal_layers.{level}.0.weight"]
                context = F.gelu(F.conv2d(context, weight, padding=weight.shape[-1] // 2, groups=width))
                total = total + context * gates[:, level : level + 1]
            total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, levels:]
            total = F.conv2d(total, state[f"{name}.modulation.h.weight"], state[f"{name}.modulation.h.bias"])
            y = linear(state, f"{name}.modulation.proj", channels_last(query * total))
            x = channels_last(x) + state[f"{name}.gamma_1"] * layer_norm(state, f"{name}.norm1", y)
            y = linear(state, f"{name}.mlp.fc2", F.gelu(linear(state, f"{name}.mlp.fc1", x)))
            x = channels_first(x + state[f"{name}.gamma_2"] * layer_norm(state, f"{name}.norm2", y))
        if f"backbone.norm{i}.weight" in state:
            maps.append(map_norm(state, f"backbone.norm{i}", x, 1e-5))
    return maps


@torch.no_grad()
def test_detrex_focalnet_matches_ours_after_conversion(monkeypatch):
    def build(name, drop_path, **options):
        return _create_focalnet(name, features_only=True, drop_path_rate=drop_path, **options)

    sizes = {"embed_dim": 16, "depths": [1, 1, 2, 1], "focal_levels": [3] * 4, "focal_windows": [5] * 4}
    as_published = {"use_post_norm": True, "use_overlap_down": True, "layerscale_value": 1e-4}
    small_timm(monkeypatch, timm_backbone, build=build, **sizes, **as_published)
    backbone = randomised(build_backbone("focalnet-l-3", (4, 8, 16, 32), -1, 0.0, direct))
    ours = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    theirs = with_detrex_names(ours, "focalnet", 4)
    assert {"backbone.layers.0.downsample.proj.weight", "backbone.layers.2.blocks.1.gamma_2"} <= set(theirs)
    assert {"backbone.patch_embed.norm.bias", "backbone.norm0.weight"} <= set(theirs)
    assert backbones.family_of(theirs) == "focalnet"
    linears = {
        k: v[..., 0, 0] for k, v in theirs.items() if re.search(r"modulation\.(f|proj)\.weight|mlp\.fc..weight", k)
    }
    theirs |= linears  # timm has 1x1 convolutions instead of linear layers
    restored = converted(theirs, detrex_backbone("focalnet", 4), "detrex")
    assert restored.keys() == ours.keys() and all(torch.equal(restored[key], ours[key]) for key in ours)
    images = torch.randn(1, 3, 67, 90)
    for a, b in zip(backbone(images), reference_focalnet(theirs, images, (1, 1, 2, 1), 3), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def reference_vit_attention(state, name, x, heads):
    """Attention over x (H, W, C) with decomposed relative position embeddings, for rows and columns."""
    height, width, channels = x.shape
    q, k, v = linear(state, f"{name}.qkv", x).unflatten(-1, (3, heads, -1)).permute(2, 3, 0, 1, 4)  # (M, H, W, D)
    out = torch.zeros(heads, height, width, channels // heads)
    tables = []
    for axis, side in (("h", height), ("w", width)):
        table = state[f"{name}.rel_pos_{axis}"]
        tables.append(F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T)  # (2 side - 1, D)
    for row in range(height):
        for column in range(width):
            query = q[:, row, column]  # (M, D)
            scores = torch.einsum("md,mhwd->mhw", query / math.sqrt(channels // heads), k)
            by_row = tables[0][[row - r + height - 1 for r in range(height)]]
            by_column = tables[1][[column - c + width - 1 for c in range(width)]]
            scores = scores + (query @ by_row.T)[:, :, None] + (query @ by_column.T)[:, None, :]
            weights = scores.flatten(1).softmax(-1).view_as(scores)
            out[:, row, column] = torch.einsum("mhw,mhwd->md", weights, v)
    return linear(state, f"{name}.proj", out.permute(1, 2, 0, 3).flatten(2))


def reference_vitdet(state, images, patch, heads, window, global_blocks):
    """Feature maps of one image; blocks in `everywhere` have global attention, the others windowed attention."""
    net = "backbone.net"
    images = F.pad(images, (0, -images.shape[3] % patch, 0, -images.shape[2] % patch))
    x = F.conv2d(images, state[f"{net}.patch_embed.proj.weight"], state[f"{net}.patch_embed.proj.bias"], stride=patch)
    grid = state[f"{net}.pos_embed"][:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    x = channels_last(x + F.interpolate(grid, size=x.shape[2:], mode="bicubic", align_corners=False))[0]  # (H, W, C)
    depth = len({key.split(".")[3] for key in state if key.startswith(f"{net}.blocks.")})
    for i in range(depth):
        name = f"{net}.blocks.{i}"
        y = layer_norm(state, f"{name}.norm1", x, 1e-6)
        if i in global_blocks:
            attended = reference_vit_attention(state, f"{name}.attn", y, heads)
        else:
            y = F.pad(y, (0, 0, 0, -x.shape[1] % window, 0, -x.shape[0] % window))
            attended = torch.zeros_like(y)
            for r in range(0, y.shape[0], window):
                for c in range(0, y.shape[1], window):
                    area = (slice(r, r + window), slice(c, c + window))
                    attended[area] = reference_vit_attention(state, f"{name}.attn", y[area], heads)
        x = x + attended[: x.shape[0], : x.shape[1]]
        y = layer_norm(state, f"{name}.norm2", x, 1e-6)
        x = x + linear(state, f"{name}.mlp.fc2", F.gelu(linear(state, f"{name}.mlp.fc1", y)))
    x = channels_first(x[None])
    up = F.conv_transpose2d(x, state["backbone.simfp_3.0.weight"], state["backbone.simfp_3.0.bias"], stride=2)
    maps = [
        smoothed(state, "backbone.simfp_3", up, 1),
        smoothed(state, "backbone.simfp_4", x, 0),
        smoothed(state, "backbone.simfp_5", F.max_pool2d(x, 2), 1),
    ]
    return [*maps, F.max_pool2d(maps[-1], kernel_size=1, stride=2)]


def smoothed(state, name, x, first):
    for number, edge in ((first, 0), (first + 1, 1)):
        x = F.conv2d(x, state[f"{name}.{number}.weight"], padding=edge)
        x = map_norm(state, f"{name}.{number}.norm", x, 1e-6)
    return x


@torch.no_grad()
def test_detrex_vitdet_matches_ours_after_conversion(monkeypatch):
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": [1]}
    small_timm(monkeypatch, vit_module, **sizes)
    backbone = randomised(build_backbone("vitdet-b", (8, 16, 32, 64), -1, 0.0, direct))
    ours = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    theirs = with_detrex_names(ours, "vitdet", 4)
    pos_embed = "backbone.net.pos_embed"
    theirs[pos_embed] = torch.cat([torch.randn(1, 1, 32), theirs[pos_embed].flatten(1, 2)], 1)  # class token first
    assert {"backbone.simfp_3.0.weight", "backbone.simfp_4.0.norm.bias", "backbone.simfp_5.2.weight"} <= set(theirs)
    assert backbones.family_of(theirs) == "vitdet"
    restored = converted(theirs, detrex_backbone("vitdet", 4), "detrex")
    assert restored.keys() == ours.keys() and all(torch.equal(restored[key], ours[key]) for key in ours)
    images = torch.randn(1, 3, 100, 150)
    maps = backbone(images)
    for a, b in zip(maps, reference_vitdet(theirs, images, 16, 2, 3, {1}), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


# --- presets ----------------------------------------------------------------------------------------------------------


def one_of_each_model():
    """One preset for each combination of backbone, levels, neck bias and number of classes."""
    models = {}
    for name in list_presets():
        model = load_config(name).model
        if model.first_stage == "classes" and name != "tiny":
            models.setdefault((model.backbone, model.num_levels, model.neck_bias, model.num_classes), name)
    return sorted(models.values())


@pytest.mark.parametrize("name", one_of_each_model())
def test_a_preset_builds_and_its_model_is_recognised_by_names_and_shapes(name):
    model = load_config(name).model
    with torch.device("meta"):
        settings = settings_in(build_model(model).state_dict())
    settings["denoising"] = model.denoising.model_copy(update=settings["denoising"])
    assert {key: getattr(model, key) for key in settings} == settings


def test_presets_of_published_models_exist_and_have_their_backbone_and_levels():
    presets = {preset for variants in known.PUBLISHED.values() for preset in variants.values()}
    assert presets <= set(list_presets())
    for (_, backbone, levels), variants in known.PUBLISHED.items():
        for preset in variants.values():
            model = load_config(preset).model
            assert (model.backbone, model.num_levels) == (backbone, levels)


def test_complete_detrex_convnext_weights_are_recognised(empty_state):
    """There is no key list of this model: the backbone is our renamed ConvNeXt, the rest is from detrex's Swin-T."""
    state = {k: v for k, v in empty_state("detrex_swint_4scale").items() if not k.startswith("backbone.")}
    with torch.device("meta"):
        ours = build_backbone("convnext-t", (8, 16, 32), -1, 0.0, direct).state_dict()
    state |= with_detrex_names({f"backbone.{key}": value for key, value in ours.items()}, "convnext", 3)
    result = convert_tensors(state)
    settings = settings_in(result.tensors)
    assert choose_preset(result.source, settings, None, NO_FACTS) == "detrex-convnext-t-4scale-12e"
    with torch.device("meta"):
        expected = build_model(load_config("detrex-convnext-t-4scale-12e").model).state_dict()
    assert {k: v.shape for k, v in result.tensors.items()} == {k: v.shape for k, v in expected.items()}
