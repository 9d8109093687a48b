"""`dino predict` shows detections above the weights' own threshold, and reports if there are none."""

import json

import pytest
import torch
from PIL import Image

from dinocore.data.annotations import Category
from dinocore.model.build import build_model
from dinocore.presets import load_config
from dinocore.weights.file import load_weights, save_weights
from dinocore.weights.shipped import BUNDLED


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Writes weights of a small one-class model, with or without a stored threshold; `of_cats` is that of the class."""
    folder = tmp_path_factory.mktemp("weights")
    config = load_config("r50-4scale", [
        "model.backbone=resnet18", "model.hidden_dim=32", "model.num_heads=4", "model.ffn_dim=8", "model.num_queries=9",
        "model.num_encoder_layers=1", "model.num_decoder_layers=1", "model.num_classes=1", "data.eval_scale=64",
    ])  # fmt: skip
    torch.manual_seed(0)
    tensors = build_model(config.model).state_dict()

    def make(threshold, of_cats=None):
        path = folder / f"{threshold}-{of_cats}.safetensors"
        facts = {} if threshold is None else {"thresholds": {"overall": threshold, "classes": {"cat": of_cats}}}
        save_weights(path, tensors, config, [Category(1, "cat")], facts)
        return path

    return make


@pytest.fixture
def image(tmp_path):
    Image.effect_noise((96, 72), 80).convert("RGB").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_predict_uses_the_stored_threshold_unless_told_otherwise(dino, weights, image):
    path = weights(0.25)
    assert load_weights(path).threshold == 0.25
    every = json.loads(dino("predict", image, "--weights", path, "--threshold", 0, "--json").out)[0]["detections"]
    scores = sorted(d["score"] for d in every)
    middle = (scores[3] + scores[4]) / 2  # between the fourth and fifth lowest score
    result = dino("predict", image, "--weights", weights(middle), "--json")
    assert len(json.loads(result.out)[0]["detections"]) == len(scores) - 4
    assert f"threshold: {middle:.3f}, the best F1" in result.err
    given = dino("predict", image, "--weights", weights(middle), "--json", "--conf", scores[-1] + 1e-3)
    assert json.loads(given.out)[0]["detections"] == [] and "best F1" not in given.err


def test_the_threshold_of_a_class_goes_before_that_of_all_and_a_number_before_both(dino, weights, image):
    every = json.loads(dino("predict", image, "--weights", weights(0.25), "--conf", 0, "--json").out)[0]["detections"]
    scores = sorted(d["score"] for d in every)
    middle = (scores[3] + scores[4]) / 2
    path = weights(1.0, middle)
    result = dino("predict", image, "--weights", path, "--json")
    assert len(json.loads(result.out)[0]["detections"]) == len(scores) - 4 and f"threshold: {middle:.3f}" in result.err
    assert len(json.loads(dino("predict", image, "--weights", path, "--conf", 0, "--json").out)[0]["detections"]) == 9
    high = dino("predict", image, "--weights", weights(0.0, 0.999))
    assert "no detection reaches the threshold 0.999; the best score is" in high.err


def test_where_nothing_passes_the_best_score_and_what_to_type_are_reported(dino, weights, image):
    path = weights(None)
    silent = dino("predict", image, "--weights", path)
    assert "no detection reaches the threshold 0.30; the best score is" in silent.err
    typed = silent.err.split("--threshold ")[1].split()[0]
    again = dino("predict", image, "--weights", path, "--threshold", typed, "--json")
    assert json.loads(again.out)[0]["detections"] and "no detection" not in again.err


@pytest.mark.parametrize("wrong", ["high", "2", "-0.1", "nan"])
def test_an_invalid_threshold_is_refused(dino, image, wrong):
    refused = dino("predict", image, f"--threshold={wrong}")
    assert refused.code == 2 and "neither auto nor a number from 0 to 1" in refused.err


def test_without_weights_it_is_reported_what_the_model_knows_and_how_to_get_more(dino, image):
    output = dino("predict", image, "--json").err
    line = next(line for line in output.splitlines() if "bundled tiny model" in line)
    assert load_weights(BUNDLED).categories[0].name in line and line.endswith("--weights official/r50-4scale-12e")
