"""Weights of classes are transferred by name; other differences are reported."""

import pytest
import torch

from dinocore.data.annotations import Category
from dinocore.errors import CheckpointError
from dinocore.model.build import build_model
from dinocore.presets import load_config
from dinocore.train.transfer import LABELS, carry_over, match_names
from dinocore.weights.file import Weights


def make_model(names, *changes):
    config = load_config("r50-4scale", [
        "model.backbone=resnet18", "model.hidden_dim=32", "model.num_heads=4", "model.ffn_dim=8", "model.num_queries=5",
        "model.num_encoder_layers=1", "model.num_decoder_layers=2", f"model.num_classes={len(names)}", *changes,
    ])  # fmt: skip
    return build_model(config.model), config, [Category(k, name) for k, name in enumerate(names)]


@pytest.fixture
def transfer(tmp_path):
    """A function that starts a model from one with other classes: old, fresh and new state, and the report."""

    def run(old, new, old_changes=(), new_changes=()):
        source, config, categories = make_model(old, *old_changes)
        for parameter in source.parameters():
            torch.nn.init.normal_(parameter)
        target, _, expected = make_model(new, *new_changes)
        fresh = {key: value.clone() for key, value in target.state_dict().items()}
        report = carry_over(target, Weights(source.state_dict(), config, categories, {}), expected, tmp_path / "w")
        return source.state_dict(), fresh, target.state_dict(), report

    return run


def class_keys(state):
    return [key for key in state if "class_head" in key or key == LABELS]


@pytest.mark.parametrize("heads", ["shared", "per-layer"])
def test_known_classes_keep_their_rows_and_new_ones_start_fresh(transfer, heads):
    change = [f"model.heads={heads}"]
    old, fresh, loaded, report = transfer(["cat", "dog", "cell phone"], ["bird", "Cell_Phone", "dog"], change, change)
    assert report.classes == {"bird": None, "Cell_Phone": "cell phone", "dog": "dog"}
    keys = class_keys(loaded)
    assert len(keys) == (5 if heads == "shared" else 7)
    for key in keys:
        assert torch.equal(loaded[key][1], old[key][2]) and torch.equal(loaded[key][2], old[key][1])
        assert torch.equal(loaded[key][0], fresh[key][0])
    assert all(torch.equal(loaded[key], old[key]) for key in loaded if key not in keys)


@pytest.mark.parametrize(("old", "new"), [(["cat"], ["dog", "bird"]), (["cat"], ["dog"]), (["dog", "bird"], ["cat"])])
def test_classes_with_other_names_start_fresh_even_if_there_is_only_one(transfer, old, new):
    _, fresh, loaded, report = transfer(old, new)
    assert set(report.classes.values()) == {None}
    assert all(torch.equal(loaded[key], fresh[key]) for key in class_keys(loaded))


def test_a_foreground_first_stage_has_no_class_rows(transfer):
    change = ["model.first_stage=foreground"]
    old, _, loaded, _ = transfer(["cat"], ["dog"], change, change)
    assert torch.equal(loaded["proposer.class_head.weight"], old["proposer.class_head.weight"])


def test_another_kind_of_denoising_is_reported(transfer):
    off = ["model.denoising.kind=none"]
    assert transfer(["a"], ["a"], (), off)[3].notes == [
        "the file's label embedding is dropped, because there is no denoising"
    ]
    _, fresh, loaded, report = transfer(["a"], ["a"], off)
    assert "denoising label embedding is new" in report.summary() and torch.equal(loaded[LABELS], fresh[LABELS])


def test_spare_rows_of_the_label_embedding_may_differ(transfer):
    old, _, loaded, report = transfer(
        ["a", "b"], ["b"], ["model.denoising.spare_labels=0"], ["model.denoising.spare_labels=3"]
    )
    assert len(loaded[LABELS]) == 4 and torch.equal(loaded[LABELS][0], old[LABELS][1]) and not report.notes


def test_other_differences_are_refused(transfer):
    with pytest.raises(CheckpointError, match="does not fit its model"):
        transfer(["a"], ["a"], ["model.ffn_dim=16"])


@pytest.mark.parametrize("queries", ["mixed", "pure", "static"])
def test_with_another_number_of_queries_only_their_content_is_new(transfer, queries):
    change = [f"model.queries={queries}"]
    old, fresh, loaded, report = transfer(["a"], ["a"], [*change, "model.num_queries=7"], change)
    renewed = {
        key for key in loaded if key in fresh and torch.equal(loaded[key], fresh[key]) and loaded[key].numel() > 1
    }
    renewed -= {key for key in loaded if old[key].shape == loaded[key].shape and torch.equal(old[key], loaded[key])}
    per_query = {"mixed": {"proposer.content.content"}, "pure": set(),
                 "static": {"proposer.content", "proposer.boxes"}}[queries]  # fmt: skip
    assert renewed == per_query and all(
        torch.equal(loaded[key], old[key]) for key in loaded.keys() - per_query - {LABELS}
    )
    assert any("content of 5 queries is new, because the file has 7" in note for note in report.notes) == (
        queries != "pure"
    )


def test_names_are_compared_exactly_first_and_each_is_used_once():
    assert match_names(["b", "a"], ["a", "b"]) == {0: 1, 1: 0}
    assert match_names(["A", "a", " a"], ["a", "x"]) == {1: 0}
    assert match_names(["traffic-light", "Traffic Light"], ["traffic_light", "TRAFFIC LIGHT"]) == {0: 0, 1: 1}
    assert match_names(["a"], ["a", "a"]) == {0: 0}
    assert match_names(["ß", "hotdog"], ["SS", "hot dog"]) == {0: 0}
