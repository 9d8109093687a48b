"""What a run starts from, and what it leaves as it is."""

import pytest
import torch

from dinocore.checkpoint import save_weights
from dinocore.data.coco import Category
from dinocore.errors import CheckpointError
from dinocore.model.build import build_model
from dinocore.presets import load_config
from dinocore.train.start import check_start

CLASSES = [Category(k, f"class {k}") for k in range(3)]


def test_frozen_parts_stay_and_others_learn(small_config, start, run_to_end):
    job, state = start(small_config('train.freeze=["backbone", "encoder"]', "train.epochs=1"))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    run_to_end(job, state)
    moved = {
        name.split(".")[0] for name, value in state.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved >= {"neck", "proposer", "decoder"} and not moved & {"backbone", "encoder"}


@pytest.fixture
def weights_of(tmp_path):
    """An empty file of weights that says it holds a preset's model."""

    def write(preset, *overrides, facts=None):
        config = load_config(preset, overrides)
        save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, config, CLASSES, facts or {})
        return f'train.weights="{tmp_path / "w.safetensors"}"'

    return write


def test_weights_of_another_preset_are_refused_with_its_name(weights_of):
    given = weights_of("detrex-r50-4scale-24e")
    with pytest.raises(
        CheckpointError, match=r"model\.heads = per-layer \(shared was asked for\); use --preset detrex"
    ):
        check_start(load_config("r50-4scale", [given]))
    check_start(load_config("detrex-r50-4scale-24e", [given]))


def test_another_position_encoding_is_another_model_though_all_shapes_agree(weights_of):
    given = weights_of("detrex-r50-4scale-12e")
    with pytest.raises(CheckpointError, match=r"position_temperature = 10000\.0 .* --preset detrex-r50-4scale-12e"):
        check_start(load_config("detrex-r50-4scale-24e", [given]))


def test_weights_of_no_preset_are_refused_with_their_settings(weights_of):
    given = weights_of("r50-4scale", "model.num_queries=70")
    with pytest.raises(CheckpointError, match=r"use --set model\.num_queries=70$"):
        check_start(load_config("r50-4scale", [given]))
    check_start(load_config("r50-4scale", [given, "model.num_queries=70"]))


def test_other_classes_are_no_other_model(weights_of):
    check_start(load_config("r50-4scale", [weights_of("r50-4scale"), "model.num_classes=3"]))


def test_a_conversion_is_named_by_its_preset(weights_of):
    facts = {"converted_from": {"preset": "mmdet-r50-4scale-36e"}}
    with pytest.raises(CheckpointError, match="--preset mmdet-r50-4scale-36e"):
        check_start(load_config("tiny", [weights_of("mmdet-r50-4scale-12e", facts=facts)]))


def test_a_converted_model_learns_other_classes_by_name(small_config, start, run_to_end, tmp_path):
    """As `dino convert` leaves them: 91 numbered classes, of which one has a name that the data has too."""
    from dinocore.convert import coco

    config = small_config("model.num_classes=91")
    classes = [*coco.all_ids()[:-1], Category(90, "WBC")]
    save_weights(tmp_path / "w.safetensors", build_model(config.model).state_dict(), config, classes, {})
    job, state = start(small_config(f'train.weights="{tmp_path / "w.safetensors"}"', "train.epochs=1"))
    assert state.transfer.classes == {"RBC": None, "WBC": "WBC", "Platelets": None}
    run_to_end(job, state)
    assert (job.run / "best.safetensors").is_file()
