"""Swin, compared with slow loops over tokens, also at sizes that are no multiple of the window."""

import math

import pytest
import torch
from torch import nn

from dinocore.model.backbones import swin
from dinocore.model.backbones.swin import Swin, SwinBlock, SwinSize, relative_position_index, shifted_mask
from dinocore.model.layers import checkpointed, direct


def reference_block(block: SwinBlock, x):
    """A block with loops: tokens of a shifted window attend to each other if they were neighbours before the shift."""
    batch, height, width, channels = x.shape
    window, shift, heads = block.window, block.shift, block.attn.num_heads
    full = [math.ceil(side / window) * window for side in (height, width)]
    normed = block.norm1(x)
    out = torch.zeros(batch, height, width, channels)
    q_all, k_all, v_all = block.attn.qkv(
        nn.functional.pad(normed, (0, 0, 0, full[1] - width, 0, full[0] - height))
    ).split(channels, -1)

    def locate(row, column):  # after the shift: window, position in it, borders crossed
        r, c = (row - shift) % full[0], (column - shift) % full[1]
        crossed = (shift > 0 and row < shift, shift > 0 and column < shift)
        return (r // window, c // window), (r % window, c % window), crossed

    locations = {(r, c): locate(r, c) for r in range(full[0]) for c in range(full[1])}
    for (row, column), (where, inside, crossed) in locations.items():
        if row >= height or column >= width:
            continue
        others = [p for p, (w, _, x) in locations.items() if w == where and x == crossed]
        rows, columns = zip(*others, strict=True)
        for head in range(heads):
            part = slice(head * channels // heads, (head + 1) * channels // heads)
            bias = [
                block.attn.relative_position_bias_table[
                    (inside[0] - locations[p][1][0] + window - 1) * (2 * window - 1)
                    + inside[1]
                    - locations[p][1][1]
                    + window
                    - 1,
                    head,
                ]
                for p in others
            ]
            keys, values = k_all[:, rows, columns, part], v_all[:, rows, columns, part]
            scores = (keys @ q_all[:, row, column, part, None])[..., 0] / math.sqrt(channels // heads)
            out[:, row, column, part] = ((scores + torch.stack(bias)).softmax(-1)[:, None] @ values)[:, 0]
    x = x + block.attn.proj(out)
    return x + block.mlp(block.norm2(x))


def randomise(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(3, 3), (5, 7), (6, 4), (1, 8)])
def test_a_block_equals_the_reference_with_loops(size, shift):
    block = randomise(SwinBlock(8, 2, 3, shift, 0.0))
    x = torch.randn(2, *size, 8)
    mask = shifted_mask(*size, 3, x.device)
    torch.testing.assert_close(block(x, mask), reference_block(block, x), atol=1e-4, rtol=1e-4)


def test_the_mask_of_a_shifted_map():
    mask = shifted_mask(4, 4, 4, torch.device("cpu"))[0]  # one window, shifted by two
    rows = ["".join(".#"[int(pair < 0)] for pair in row) for row in mask[[0, 2, 8, 10]]]
    assert rows == ["..##..##########", "##..##..########", "########..##..##", "##########..##.."]


def test_the_relative_position_index_of_a_2x2_window():
    index = relative_position_index(2)
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.fixture
def make_swin(monkeypatch):
    monkeypatch.setitem(swin.SWINS, "small", SwinSize(32, (2, 2, 2, 2), 3))
    return lambda strides=(8, 16, 32), frozen=-1, rate=0.0, run=direct: randomise(
        Swin("small", strides, frozen, rate, run)
    )


def reference_swin(model: Swin, images):
    """The whole network with slow blocks, explicit padding, and patch merging by strided slices."""
    x = nn.functional.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
    x = model.patch_embed.norm(model.patch_embed.proj(x).permute(0, 2, 3, 1))
    maps = []
    for i, stage in enumerate(model.layers):
        for block in stage.blocks:
            x = reference_block(block, x)
        if hasattr(model, f"norm{i}"):
            maps.append(getattr(model, f"norm{i}")(x).permute(0, 3, 1, 2))
        if i + 1 < len(model.layers):
            x = nn.functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            quarters = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = stage.downsample.reduction(stage.downsample.norm(torch.cat(quarters, -1)))
    return maps


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_a_whole_swin_equals_the_reference_at_any_size(make_swin, size):
    model = make_swin((4, 8, 16, 32)).eval()
    images = torch.randn(1, 3, *size)
    maps = model(images)
    assert [x.shape[1:] for x in maps] == [
        (c, math.ceil(size[0] / s), math.ceil(size[1] / s)) for c, s in zip(model.channels, (4, 8, 16, 32), strict=True)
    ]
    for actual, expected in zip(maps, reference_swin(model, images), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_images_of_a_batch_are_independent(make_swin):
    model = make_swin().eval()
    images = torch.randn(3, 3, 40, 56)
    together = model(images)
    for i in range(3):
        for a, b in zip(together, model(images[i : i + 1]), strict=True):
            torch.testing.assert_close(a[i : i + 1], b, atol=1e-4, rtol=1e-4)


def test_only_needed_layers_are_built_and_all_of_them_get_gradients(make_swin):
    model = make_swin((8, 16))
    assert len(model.layers) == 3 and "norm3" not in dict(model.named_children())
    sum(x.sum() for x in model(torch.randn(1, 3, 40, 40))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_freezing_one_stage_of_a_swin_freezes_its_patch_embedding_and_first_stage(make_swin):
    model = make_swin(frozen=1)
    frozen = {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj", "patch_embed.norm", "layers.0"}
    assert all(p.requires_grad for p in make_swin(frozen=-1).parameters())


def test_stochastic_depth_increases_with_depth_depends_on_the_seed_and_is_off_in_evaluation(make_swin):
    model = make_swin(rate=0.9)
    rates = [block.drop_path.p for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.9 * i / 7 for i in range(8)])
    images = torch.randn(4, 3, 32, 32)

    def run(seed):
        torch.manual_seed(seed)
        return model(images)[-1]

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))


def test_recomputed_blocks_give_the_same_gradients_even_with_stochastic_depth(make_swin):
    gradients = []
    for run in (direct, checkpointed):
        model = make_swin(rate=0.5, run=run)
        torch.manual_seed(3)
        sum(x.square().mean() for x in model(torch.randn(2, 3, 40, 40))).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_swin_t_equals_timms_if_no_padding_is_needed():
    """224 pixels need no padding. The last stage is omitted: it is one window, which timm does not shift."""
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, out_indices=(0, 1, 2)).eval()
    ours = Swin("swin-t-224", (4, 8, 16), -1, 0.0, direct).eval()
    state = {key.replace("layers_", "layers."): value for key, value in theirs.state_dict().items()}
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if len(parts) > 2 and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts)] = value
    renamed |= {k: v for k, v in ours.state_dict().items() if k.startswith("norm")}
    ours.load_state_dict({k: v for k, v in renamed.items() if k in ours.state_dict()})
    images = torch.randn(2, 3, 224, 224)
    for i, (a, b) in enumerate(zip(ours(images), theirs(images), strict=True)):
        expected = getattr(ours, f"norm{i}")(b).permute(0, 3, 1, 2)
        torch.testing.assert_close(a, expected, atol=1e-3, rtol=1e-3)
