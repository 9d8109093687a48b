"""Presets with a backbone other than ResNet can be trained, benchmarked and used for prediction."""

import json

import pytest

from dinocore.model.backbones import build as backbone
from dinocore.model.backbones import swin

PRESETS = ["detrex-swin-t-224-4scale-12e", "detrex-convnext-t-4scale-12e"]


@pytest.fixture(scope="session")
def reduced(settings):
    """The settings of the small model, but with the preset's backbone."""
    pairs = [pair for pair in zip(settings[::2], settings[1::2], strict=True) if "backbone=" not in pair[1]]
    return [part for pair in pairs for part in pair] + ["--set", "model.backbone_weights=none"]


@pytest.fixture
def smaller(monkeypatch):
    """Replaces Swin-T and ConvNeXt-T with smaller variants."""
    monkeypatch.setitem(swin.SWINS, "swin-t-224", swin.SwinSize(32, (2, 2, 2, 2), 7))
    monkeypatch.setitem(backbone.NORMED, "convnext-t", ("convnext_atto", 1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_a_step_and_predicts(preset, dino, reduced, image_folder, smaller):
    few = ["--epochs", 1, "--batch-size", 8, "--output-dir", "run"]
    done = dino("train", "--preset", preset, "--data", image_folder, *few, *reduced)
    assert done.code == 0, done.err
    image_file = next((image_folder / "val2017").iterdir())
    found = dino("predict", image_file, "--weights", "run", "--threshold", "0", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)[0]["detections"]


@pytest.mark.parametrize("extra", [[], ["--train", "--objects", "3"], ["--ops", "reference", "--amp", "off"]])
def test_they_can_be_measured(dino, reduced, extra, smaller):
    found = dino("benchmark", "--preset", PRESETS[0], "--size", "64x96", "--repeats", 1, *reduced, *extra, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["parameters"] > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*PRESETS, "detrex-vitdet-b-4scale-12e"])
def test_a_preset_as_it_is_trains_a_step_at_a_small_size(dino, preset):
    found = dino(
        "benchmark", "--preset", preset, "--size", "256x320", "--repeats", 1, "--train", "--objects", 5, "--json"
    )
    assert found.code == 0, found.err
    assert json.loads(found.out)["latency_p50_s"] > 0
