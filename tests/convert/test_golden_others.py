"""Outputs, losses and gradients match mmdetection and detrex with the same weights."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from dinocore import Target, build_model, convert_state_dict, criterion, load_config
from dinocore.weights.convert.state import convert_tensors

from .conftest import GOLDEN

PRESETS = {"mmdet": "mmdet-r50-4scale-12e", "detrex": "detrex-r50-4scale-12e"}
NO_NOISE = ["model.num_queries=100", "model.denoising.label_noise=0.0", "model.denoising.box_noise=0.0"]
CODEBASES = pytest.mark.parametrize("source", PRESETS)


@pytest.fixture(scope="module")
def make_model(state_of):
    def make(source, *overrides):
        config = load_config(PRESETS[source], [*NO_NOISE, *overrides])
        model = build_model(config.model)
        model.load_state_dict(convert_state_dict(state_of(f"{source}_r50_4scale")), strict=True)
        return model, config

    return make


def inputs(golden):
    originals = [golden["image0"], golden["image1"]]
    height, width = (max(p.shape[side] for p in originals) for side in (1, 2))
    images, padding = torch.zeros(2, 3, height, width), torch.ones(2, height, width, dtype=torch.bool)
    for i, image in enumerate(originals):
        images[i, :, : image.shape[1], : image.shape[2]] = image
        padding[i, : image.shape[1], : image.shape[2]] = False
    return images, padding


def close(predictions, golden, name):
    torch.testing.assert_close(predictions.logits, golden[f"{name}_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(predictions.boxes, golden[f"{name}_boxes"], atol=1e-5, rtol=0)


@CODEBASES
@torch.no_grad()
def test_every_output_matches(source, make_model):
    golden = load_file(GOLDEN / f"{source}_r50_4scale_eval.safetensors")
    output = make_model(source)[0].eval()(*inputs(golden))
    close(output.final, golden, "pred")
    close(output.proposals, golden, "enc")
    for i, stage in enumerate(output.stages[:-1]):
        close(stage, golden, f"aux{i}")


@pytest.mark.slow
@torch.no_grad()
def test_padding_is_masked_in_evaluation_unlike_in_detrex(make_model):
    """In evaluation, detrex does not mask padding, so its outputs for a padded image differ from ours."""
    golden = load_file(GOLDEN / "detrex_r50_4scale_eval.safetensors")
    model = make_model("detrex")[0].eval()
    unpadded = model(golden["image1"][None], torch.zeros(1, *golden["image1"].shape[1:], dtype=torch.bool)).final
    close(unpadded, golden, "soloB.pred")
    padded = model(*inputs(golden)).final
    assert (padded.logits - golden["nomask.pred_logits"])[1].abs().max() > 0.1


@pytest.mark.slow
@CODEBASES
@pytest.mark.parametrize(
    ("override", "min_difference"), [("model.box_eps=0.01", 1e-6), ("model.position_temperature=50.0", 1e-3)]
)
@torch.no_grad()
def test_outputs_are_sensitive_to_box_eps_and_position_temperature(source, override, min_difference, make_model):
    """The golden values are sensitive to the box epsilon and the position temperature."""
    golden = load_file(GOLDEN / f"{source}_r50_4scale_eval.safetensors")
    output = make_model(source, override)[0].eval()(*inputs(golden))
    assert (output.final.boxes - golden["pred_boxes"]).abs().max() > min_difference


@pytest.mark.slow
@CODEBASES
def test_losses_and_gradients_match(source, make_model, state_of):
    golden = load_file(GOLDEN / f"{source}_r50_4scale_eval.safetensors")
    expected = json.loads((GOLDEN / f"{source}_r50_4scale_train.json").read_text())
    model, config = make_model(source)
    targets = [Target(golden[f"target{i}_labels"].long(), golden[f"target{i}_boxes"]) for i in range(2)]
    output = model.train()(*inputs(golden), targets)
    terms = criterion(output, targets, sum(len(t.labels) for t in targets), config.loss)
    theirs = {our_term(name): value for name, value in expected["losses_weighted"].items()}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(theirs, rel=1e-3)
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(expected["total"], rel=1e-5)
    total.backward()
    check_gradients(model, convert_tensors(state_of(f"{source}_r50_4scale")).renamed, expected)


def our_term(name: str) -> str:
    """mmdet's `d0.dn_loss_iou` and detrex's `loss_giou_dn_0` are `denoising0/giou`; no number means the last layer."""
    kinds = {"cls": "label", "class": "label", "bbox": "box", "iou": "giou", "giou": "giou"}
    kind = next(ours for theirs, ours in kinds.items() if re.search(rf"loss_{theirs}(_|$)", name))
    if "enc" in name:
        return f"proposals/{kind}"
    number = re.search(r"\d", name)
    return f"{'denoising' if 'dn' in name else 'stage'}{number[0] if number else 5}/{kind}"


def check_gradients(model, names, expected):
    """Compare the norms of gradients, and their dot products with the parameters, which a permutation would change."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_ours = {names[canonical_key(key)]: norm for key, norm in expected["grad_norms"].items()}
    assert set(by_ours) == set(parameters), "the same parameters have gradients"
    for key, norm in expected["grad_norms"].items():
        parameter = parameters[names[canonical_key(key)]]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-4), key
        product = (parameter.grad * parameter).sum().item()
        scale = norm * parameter.detach().norm().item()
        assert product == pytest.approx(expected["grad_dot_param"][key], abs=1e-3 * scale + 1e-4), key


def canonical_key(key: str) -> str:
    """The shorter of the two names that detrex's heads have."""
    return re.sub(r"^transformer\.decoder\.(class|bbox)_embed", r"\1_embed", key)
