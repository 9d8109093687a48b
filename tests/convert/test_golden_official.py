"""Outputs, loss, gradients and optimizer steps match official DINO (IDEA-Research/DINO faa8520).

The weights are computed from official DINO's parameter names; the expected values are in tests/golden.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from dinocore import Target, build_model, convert_state_dict, criterion, load_config
from dinocore.model.inference import for_inference
from dinocore.train.optim import build_optimizer
from dinocore.weights.convert import ALIASES

from .conftest import GOLDEN

NO_NOISE = ["model.num_queries=100", "model.denoising.label_noise=0.0", "model.denoising.box_noise=0.0"]


@pytest.fixture(scope="module")
def official_state(state_of):
    return state_of("official_r50_4scale")


@pytest.fixture(scope="module")
def config():
    return load_config("r50-4scale", NO_NOISE)


@pytest.fixture
def model(official_state, config):
    model = build_model(config.model)
    model.load_state_dict(convert_state_dict(official_state), strict=True)
    return model


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "official_r50_4scale_eval.safetensors")


@pytest.fixture(scope="module")
def training():
    return json.loads((GOLDEN / "official_r50_4scale_train.json").read_text())


@pytest.fixture(scope="module")
def inputs(golden):
    originals = [golden["image0"], golden["image1"]]
    height, width = (max(p.shape[side] for p in originals) for side in (1, 2))
    images, padding = torch.zeros(2, 3, height, width), torch.ones(2, height, width, dtype=torch.bool)
    for i, image in enumerate(originals):
        _, h, w = image.shape
        images[i, :, :h, :w] = image
        padding[i, :h, :w] = False
    targets = [Target(golden[f"target{i}_labels"].long(), golden[f"target{i}_boxes"]) for i in range(2)]
    return images, padding, targets


@pytest.mark.parametrize("optimised", [False, True])
def test_every_output_matches_official_dino(model, inputs, golden, optimised):
    images, padding, _ = inputs
    network = for_inference(model, None, torch.device("cpu")) if optimised else model.eval()
    with torch.no_grad():
        output = network(images, padding)
    outputs = {"pred": output.final, "enc": output.proposals}
    outputs |= {f"aux{i}": stage for i, stage in enumerate(output.stages[:-1])}
    for name, predictions in outputs.items():
        torch.testing.assert_close(predictions.logits, golden[f"{name}_logits"], atol=1e-4, rtol=0)
        torch.testing.assert_close(predictions.boxes, golden[f"{name}_boxes"], atol=1e-5, rtol=0)


def test_loss_gradients_and_optimizer_steps_match_official_dino(model, inputs, training, config, official_state):
    images, padding, targets = inputs
    model.train()
    optimizer = build_optimizer(model, config.train)
    ours = {id(value): name for name, value in convert_state_dict(official_state).items()}
    names = {key: ours[id(value)] for key, value in official_state.items() if id(value) in ours}
    parameters = dict(model.named_parameters())
    for step, expected in enumerate(training["adamw_steps"]):
        optimizer.zero_grad()
        terms = criterion(model(images, padding, targets), targets, sum(len(t.labels) for t in targets), config.loss)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        assert total.item() == pytest.approx(expected["total"], rel=1e-5 if step == 0 else 1e-2)  # rounding errors grow
        if step == 0:
            check_gradients(parameters, names, training["grad_norms"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
        optimizer.step()


def check_gradients(parameters, names, expected):
    num_compared = 0
    for key, norm in expected.items():
        if not ALIASES.match(key) and norm > 1e-6:
            assert parameters[names[key]].grad.norm().item() == pytest.approx(norm, rel=1e-3), key
            num_compared += 1
    assert num_compared > 200


@pytest.mark.slow
def test_outputs_are_sensitive_to_the_position_temperature(official_state, inputs, golden):
    images, padding, _ = inputs
    config = load_config("r50-4scale", [*NO_NOISE, "model.position_temperature=10000.0"])
    model = build_model(config.model).eval()
    model.load_state_dict(convert_state_dict(official_state))
    with torch.no_grad():
        assert (model(images, padding).final.logits - golden["pred_logits"]).abs().max() > 0.01
