"""Presets with a backbone other than ResNet can be trained, benchmarked and used for prediction."""

import json

import pytest

from dinocore.model.backbones import build as backbone
from dinocore.model.backbones import swin

PRESETS = ["detrex-swin-t-224-4scale-12e", "detrex-convnext-t-4scale-12e"]


@pytest.fixture(scope="session")
def small_settings(settings):
    """The settings of the small model, but with the preset's backbone."""
    pairs = [pair for pair in zip(settings[::2], settings[1::2], strict=True) if "backbone=" not in pair[1]]
    return [part for pair in pairs for part in pair] + ["--set", "model.backbone_weights=none"]


@pytest.fixture
def small_backbones(monkeypatch):
    """Replaces Swin-T and ConvNeXt-T with smaller variants."""
    monkeypatch.setitem(swin.SWINS, "swin-t-224", swin.SwinSize(32, (2, 2, 2, 2), 7))
    monkeypatch.setitem(backbone.NORMED, "convnext-t", ("convnext_atto", 1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_a_step_and_predicts(preset, dino, small_settings, image_folder, small_backbones):
    options = ["--epochs", 1, "--batch-size", 8, "--output-dir", "run"]
    trained = dino("train", "--preset", preset, "--data", image_folder, *options, *small_settings)
    assert trained.code == 0, trained.err
    image_file = next((image_folder / "val2017").iterdir())
    predicted = dino("predict", image_file, "--weights", "run", "--threshold", "0", "--json")
    assert predicted.code == 0, predicted.err
    assert json.loads(predicted.out)[0]["detections"]


@pytest.mark.parametrize("extra", [[], ["--train", "--objects", "3"], ["--ops", "reference", "--amp", "off"]])
def test_other_backbones_can_be_benchmarked(dino, small_settings, extra, small_backbones):
    result = dino(
        "benchmark", "--preset", PRESETS[0], "--size", "64x96", "--repeats", 1, *small_settings, *extra, "--json"
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["parameters"] > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*PRESETS, "detrex-vitdet-b-4scale-12e"])
def test_a_training_step_of_an_unmodified_preset_can_be_benchmarked(dino, preset):
    result = dino(
        "benchmark", "--preset", preset, "--size", "256x320", "--repeats", 1, "--train", "--objects", 5, "--json"
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["latency_p50_s"] > 0
