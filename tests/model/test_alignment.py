"""Backbones whose grid depends on the image size give the same results with padding; others get images unchanged."""

import pytest
import torch

from dinocore.config import LossConfig
from dinocore.losses import criterion
from dinocore.model.alignment import align, within
from dinocore.model.build import build_model
from dinocore.model.denoising import attention_mask
from dinocore.presets import list_presets, load_config
from dinocore.structures import EXTRA, MATCHING, Target

SMALL = [
    "model.hidden_dim=32", "model.num_heads=4", "model.ffn_dim=32", "model.num_queries=10", "model.num_classes=4",
    "model.num_encoder_layers=1", "model.num_decoder_layers=2", "model.denoising.num_pairs=4",
]  # fmt: skip


def make_model(backbone, *changes):
    torch.manual_seed(0)
    config = load_config("r50-4scale", [f"model.backbone={backbone}", *SMALL, *changes])
    model = build_model(config.model).eval()
    for parameter in model.decoder.box_heads.parameters():  # initial ones do not move boxes
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def pad_to(image, height, width):
    """An image (3, h, w) in the top left corner of a canvas, and the padding mask."""
    images, padding = torch.zeros(1, 3, height, width), torch.ones(1, height, width, dtype=torch.bool)
    images[0, :, : image.shape[1], : image.shape[2]] = image
    padding[0, : image.shape[1], : image.shape[2]] = False
    return images, padding


@pytest.mark.parametrize("backbone", ["timm/tf_efficientnet_lite0", "timm/tf_efficientnet_b0", "timm/hrnet_w18_small"])
@torch.no_grad()
def test_the_output_of_an_aligned_model_does_not_depend_on_the_padding(backbone):
    """Lite0 has no squeeze-and-excitation, B0 has; HRNet supports aligned sizes only."""
    model, image = make_model(backbone), torch.randn(3, 75, 109)
    multiple = model.alignment
    assert multiple >= 32
    maps, boxes = [], []
    for height, width in ((75, 109), (2 * multiple, 3 * multiple)):
        images, _, extents = align(*pad_to(image, height, width), multiple)
        with within(extents):
            maps.append(model.backbone(images))
        boxes.append(model(*pad_to(image, height, width)).final.boxes[0])
    for alone, padded in zip(*maps, strict=True):
        rows, columns = alone.shape[2:]
        torch.testing.assert_close(padded[:, :, :rows, :columns], alone, atol=1e-4, rtol=1e-3)
    pixels = torch.tensor([109.0, 75.0, 109.0, 75.0])
    assert ((boxes[0] - boxes[1]) * pixels).abs().max() < 0.1


@pytest.mark.parametrize("backbone", ["resnet18", "swin-t-224", "convnext-t", "timm/resnet18"])
def test_images_of_other_backbones_are_not_padded(backbone):
    with torch.device("meta"):
        model = build_model(load_config("r50-4scale", [f"model.backbone={backbone}", *SMALL]).model)
    assert model.alignment == model.backbone.alignment == 1
    images, padding = pad_to(torch.ones(3, 75, 109), 75, 109)
    aligned, mask, extents = align(images, padding, 1)
    assert aligned is images and mask is padding and extents is None


def test_extra_queries_and_other_queries_do_not_attend_to_each_other():
    group = torch.tensor([0, 0, 1, MATCHING, MATCHING, EXTRA, EXTRA])
    blocked = attention_mask(group)
    extra = group == EXTRA
    assert blocked[extra][:, ~extra].all() and blocked[~extra][:, extra].all() and not blocked[extra][:, extra].any()
    without = attention_mask(group[~extra])
    assert torch.equal(blocked[~extra][:, ~extra], without)


@pytest.fixture
def targets():
    return [Target(torch.tensor([1, 2]), torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.2, 0.3]]), seed=5)]


def test_extra_queries_have_losses_and_do_not_change_other_outputs(targets):
    plain, extra = make_model("resnet18"), make_model("resnet18", "model.extra_queries=6")
    extra.load_state_dict(plain.state_dict() | {"extra.content": extra.state_dict()["extra.content"]})
    images, padding = pad_to(torch.randn(3, 64, 96), 64, 96)
    assert extra(images, padding).extra is None
    torch.testing.assert_close(extra(images, padding).final.boxes, plain(images, padding).final.boxes)
    a, b = (model.train()(images, padding, targets) for model in (plain, extra))
    for before, now in zip([*a.stages, *a.denoising], [*b.stages, *b.denoising], strict=True):
        torch.testing.assert_close(before.logits, now.logits, atol=1e-5, rtol=1e-4)
    assert a.extra is None and [stage.boxes.shape for stage in b.extra] == [(1, 6, 4)] * 2
    terms = criterion(b, targets, 2, LossConfig(extra_positives=3))
    assert terms.keys() - criterion(a, targets, 2, LossConfig()).keys() == {
        f"extra{layer}/{term}" for layer in (0, 1) for term in ("label", "box", "giou")
    }


@pytest.mark.parametrize("num_matches", [1, 2, 3])
def test_each_object_is_matched_to_the_configured_number_of_queries(num_matches, targets, monkeypatch):
    import dinocore.losses as module

    output = make_model("resnet18", "model.extra_queries=8").train()(*pad_to(torch.randn(3, 64, 96), 64, 96), targets)
    counts, original = {}, module.detection_loss

    def count_matches(predictions, expected, match, *rest):
        slots = torch.cat([torch.arange(2)] * (len(expected[0].labels) // 2))
        counts[predictions.logits.shape[1]] = torch.bincount(slots[match.target], minlength=2).tolist()
        assert len(set(match.query.tolist())) == len(match.query)
        return original(predictions, expected, match, *rest)

    monkeypatch.setattr(module, "detection_loss", count_matches)
    criterion(output._replace(noise=None), targets, 2, LossConfig(extra_positives=num_matches))
    assert counts[8] == [num_matches, num_matches]


def test_published_presets_have_no_extra_queries():
    for name in list_presets():
        config = load_config(name)
        assert config.model.extra_queries == 0 or name == "tiny", name
        assert config.loss.proposal_positives == 1 or name == "tiny", name
