"""The public functions of `dinocore`: accepted arguments, and errors for wrong ones."""

import copy
import pickle
from functools import partial

import pytest
import torch

import dinocore
from dinocore import Target, build_model, convert_state_dict, criterion, load_config
from dinocore.data.annotations import Category
from dinocore.data.dataset import open_dataset
from dinocore.errors import CheckpointError, ConfigError
from dinocore.train.run.folder import prepare_run, write_config
from dinocore.weights.convert.to_official import official_state
from dinocore.weights.file import load_weights, save_weights

SMALL = [
    "model.backbone=resnet18", "model.hidden_dim=32", "model.num_heads=4", "model.ffn_dim=32", "model.num_queries=12",
    "model.num_encoder_layers=1", "model.num_decoder_layers=1", "model.num_classes=3", "model.denoising.num_pairs=4",
]  # fmt: skip
IMAGES, PADDING = torch.zeros(2, 3, 32, 64), torch.zeros(2, 32, 64, dtype=torch.bool)
TARGETS = [Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))] * 2


@pytest.fixture(scope="module")
def model():
    return build_model(load_config("r50-4scale", SMALL).model).eval()


def test_tab_completion_lists_the_public_names():
    assert set(dinocore.__all__) <= set(dir(dinocore))


def test_overrides_may_be_a_single_string():
    assert load_config("tiny", overrides="model.num_queries=17").model.num_queries == 17


@pytest.mark.parametrize("overrides", [5, [5], [("train.lr", 1)], {"train.lr": 1}, None])
def test_overrides_that_are_not_strings_are_refused(overrides):
    with pytest.raises(ConfigError, match="is not an override; write it as"):
        load_config("tiny", overrides=overrides)


def test_paths_may_be_strings(model, tmp_path):
    (tmp_path / "mine.toml").write_text("[model]\nnum_queries = 17\n")
    assert load_config("tiny", file=str(tmp_path / "mine.toml")).model.num_queries == 17
    config = load_config("r50-4scale", SMALL)
    save_weights(
        str(tmp_path / "m.safetensors"), model.state_dict(), config, [Category(k, str(k)) for k in range(3)], {}
    )
    assert load_weights(str(tmp_path / "m.safetensors")).config == config
    prepare_run(str(tmp_path / "run"), overwrite=False)
    write_config(str(tmp_path / "run"), config)
    assert load_config(str(tmp_path / "run" / "config.toml")) == config


@pytest.mark.parametrize(("file", "message"), [("", "is empty; give a file"), (".", r"^\. is a folder; give a file")])
def test_something_other_than_a_config_file_is_refused(file, message):
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", file=file)


@pytest.mark.parametrize(
    ("function", "section"),
    [(build_model, "model"), (open_dataset, "data"), (partial(official_state, {}), "model"),
     (partial(criterion, None, [], 1), "loss")],
)  # fmt: skip
@pytest.mark.parametrize("value", [load_config("tiny"), "tiny", None])
def test_a_config_in_place_of_a_section_is_refused_with_the_sections_name(function, section, value):
    with pytest.raises(ConfigError, match=rf"takes the section `{section}` of a config.* use config\.{section}$"):
        function(value)


def test_something_other_than_a_state_dict_is_refused():
    with pytest.raises(CheckpointError, match="state dict is needed, not an object of type str"):
        convert_state_dict("checkpoint.pth")


def test_a_model_can_be_pickled_and_copied(model):
    with torch.no_grad():
        outputs = [m(IMAGES, PADDING).final.logits for m in (model, pickle.loads(pickle.dumps(model)))]
        outputs.append(copy.deepcopy(model)(IMAGES, PADDING).final.logits)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("inputs", "error_message"),
    [
        ((IMAGES[0], PADDING), r"images must be \(B, 3, H, W\); got \(3, 32, 64\)"),
        ((IMAGES[:, :1], PADDING), r"images must be \(B, 3, H, W\); got \(2, 1, 32, 64\)"),
        ((IMAGES, PADDING[:, :, :32]), r"padding must be bool of \(2, 32, 64\).*\(2, 32, 32\)"),
        ((IMAGES, PADDING.float()), "padding must be bool.*float32"),
        ((IMAGES, PADDING, TARGETS[:1]), "1 targets for 2 images"),
        (
            (IMAGES, PADDING, [target._replace(labels=target.labels + 2000) for target in TARGETS]),
            r"labels must be 0 to \d+",
        ),
        (
            (IMAGES, PADDING, [target._replace(labels=target.labels - 2000) for target in TARGETS]),
            r"labels must be 0 to \d+",
        ),
    ],
)
def test_the_model_refuses_inputs_of_mismatched_shapes(model, inputs, error_message):
    with pytest.raises(ValueError, match=error_message):
        model(*inputs)


def test_a_loss_with_targets_for_only_some_images_is_refused(model):
    with torch.no_grad(), pytest.raises(ValueError, match="1 targets for 2 images"):
        criterion(model(IMAGES, PADDING), TARGETS[:1], 1, load_config("r50-4scale").loss)
