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
    """Writes weights of a small one-class model, with or without stored thresholds: overall and of the class."""
    folder = tmp_path_factory.mktemp("weights")
    config = load_config("r50-4scale", [
        "model.backbone=resnet18", "model.hidden_dim=32", "model.num_heads=4", "model.ffn_dim=8", "model.num_queries=9",
        "model.num_encoder_layers=1", "model.num_decoder_layers=1", "model.num_classes=1", "data.eval_scale=64",
    ])  # fmt: skip
    torch.manual_seed(0)
    tensors = build_model(config.model).state_dict()

    def make(threshold, class_threshold=None):
        path = folder / f"{threshold}-{class_threshold}.safetensors"
        facts = {} if threshold is None else {"thresholds": {"overall": threshold, "classes": {"cat": class_threshold}}}
        save_weights(path, tensors, config, [Category(1, "cat")], facts)
        return path

    return make


@pytest.fixture
def image(tmp_path):
    Image.effect_noise((96, 72), 80).convert("RGB").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_predict_uses_the_stored_threshold_by_default(dino, weights, image):
    path = weights(0.25)
    assert load_weights(path).threshold == 0.25
    detections = json.loads(dino("predict", image, "--weights", path, "--threshold", 0, "--json").out)[0]["detections"]
    scores = sorted(d["score"] for d in detections)
    middle = (scores[3] + scores[4]) / 2  # between the fourth and fifth lowest score
    result = dino("predict", image, "--weights", weights(middle), "--json")
    assert len(json.loads(result.out)[0]["detections"]) == len(scores) - 4
    assert f"threshold: {middle:.3f}, the best F1" in result.err
    explicit = dino("predict", image, "--weights", weights(middle), "--json", "--conf", scores[-1] + 1e-3)
    assert json.loads(explicit.out)[0]["detections"] == [] and "best F1" not in explicit.err


def test_a_class_threshold_overrides_the_overall_one_and_an_option_overrides_both(dino, weights, image):
    result = dino("predict", image, "--weights", weights(0.25), "--conf", 0, "--json")
    scores = sorted(d["score"] for d in json.loads(result.out)[0]["detections"])
    middle = (scores[3] + scores[4]) / 2
    path = weights(1.0, middle)
    result = dino("predict", image, "--weights", path, "--json")
    assert len(json.loads(result.out)[0]["detections"]) == len(scores) - 4 and f"threshold: {middle:.3f}" in result.err
    assert len(json.loads(dino("predict", image, "--weights", path, "--conf", 0, "--json").out)[0]["detections"]) == 9
    high = dino("predict", image, "--weights", weights(0.0, 0.999))
    assert "no detection reaches the threshold 0.999; the best score is" in high.err


def test_without_detections_the_best_score_is_reported_and_a_threshold_suggested(dino, weights, image):
    path = weights(None)
    result = dino("predict", image, "--weights", path)
    assert "no detection reaches the threshold 0.30; the best score is" in result.err
    suggested = result.err.split("--threshold ")[1].split()[0]
    again = dino("predict", image, "--weights", path, "--threshold", suggested, "--json")
    assert json.loads(again.out)[0]["detections"] and "no detection" not in again.err


@pytest.mark.parametrize("value", ["high", "2", "-0.1", "nan"])
def test_an_invalid_threshold_is_refused(dino, image, value):
    result = dino("predict", image, f"--threshold={value}")
    assert result.code == 2 and "neither auto nor a number from 0 to 1" in result.err


def test_predict_without_weights_names_the_bundled_models_classes_and_other_weights(dino, image):
    output = dino("predict", image, "--json").err
    line = next(line for line in output.splitlines() if "bundled tiny model" in line)
    assert load_weights(BUNDLED).categories[0].name in line and line.endswith("--weights official/r50-4scale-12e")
