"""`dino convert` and `dino info`, with small weights in official DINO's layout, and with bad files."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from dinocore import build_model, load_config, load_detector
from dinocore.data.annotations import Category
from dinocore.weights.convert import known
from dinocore.weights.convert.files import ConversionRequest, convert_file
from dinocore.weights.convert.to_official import official_state
from dinocore.weights.file import load_weights, names_note, save_weights

SMALL = """
[model]
backbone = "resnet18"
hidden_dim = 32
num_heads = 4
ffn_dim = 48
num_encoder_layers = 1
num_decoder_layers = 2
num_queries = 12
num_classes = 91
"""


class Evil:
    """Creates a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A small model's checkpoint in official DINO's layout, and its preset file."""
    preset = tmp_path_factory.mktemp("preset") / "small.toml"
    preset.write_text(SMALL)
    config = load_config(preset)
    torch.manual_seed(0)
    state = official_state(build_model(config.model).state_dict(), config.model)
    return {"model": state, "epoch": 11, "args": argparse.Namespace(pe_temperatureH=20, lr=1e-4)}, preset


@pytest.fixture
def saved(official, tmp_path):
    def save(content=None, name="theirs.pth"):
        torch.save(content or official[0], tmp_path / name)
        return tmp_path / name

    return save


def test_a_file_of_official_dino_becomes_ours_and_finds_objects(official, saved, dino, image_folder):
    result = dino("convert", saved(), "--out", "new/ours.safetensors", "--preset", official[1])
    assert result.code == 0, result.err
    assert "IDEA-Research/DINO" in result.out and "dropped" in result.out and "args" in result.out
    weights = load_weights(_here("new/ours.safetensors"))
    assert weights.config.model.num_classes == 91 and weights.categories[18].name == "dog"
    assert weights.facts["converted_from"]["codebase"] == "official" and weights.facts["converted_from"]["epoch"] == 11
    image_file = next((image_folder / "val2017").iterdir())
    found = dino("predict", image_file, "--weights", "new/ours.safetensors", "--threshold", "0", "--json")
    assert found.code == 0, found.err
    detections = json.loads(found.out)[0]["detections"]
    assert detections and all(0 <= d["category_id"] <= 90 for d in detections)


def test_official_to_ours_to_official_is_the_same(official, saved, dino):
    file = saved()
    assert dino("convert", file, "--out", "ours.safetensors", "--preset", official[1]).code == 0
    result = dino("convert", "ours.safetensors", "--to", "official", "--out", "back.pth")
    assert result.code == 0, result.err
    assert "num_queries=12" in result.out
    before, after = (torch.load(path, weights_only=True)["model"] for path in (_allowed(file), "back.pth"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_80_classes_keep_their_scores(official, saved, dino):
    file = saved()
    dino("convert", file, "--out", "all.safetensors", "--preset", official[1])
    result = dino("convert", file, "--out", "80.safetensors", "--preset", official[1], "--classes", 80, "--json")
    assert json.loads(result.out)["classes"] == 80
    whole, fewer = (load_detector(name, "cpu", "off") for name in ("all.safetensors", "80.safetensors"))
    ids = torch.tensor([category.id for category in fewer.categories])
    images, padding = torch.randn(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.bool)
    a, b = (detector.model(images, padding) for detector in (whole, fewer))
    shared = torch.isclose(a.proposals.boxes[0][:, None], b.proposals.boxes[0][None], atol=1e-6).all(-1).nonzero()
    assert len(shared) > 0
    torch.testing.assert_close(a.proposals.logits[0][shared[:, 0]][:, ids], b.proposals.logits[0][shared[:, 1]])
    refused = dino("convert", file, "--out", "7.safetensors", "--preset", official[1], "--classes", 7)
    assert refused.code == 2 and not _here("7.safetensors").exists()


def test_info_knows_theirs_and_ours(official, saved, dino):
    file = saved()
    theirs = json.loads(dino("info", file, "--json").out)
    assert (theirs["codebase"], theirs["num_classes"], theirs["epoch"]) == ("official", 91, 11)
    assert theirs["bytes"] == file.stat().st_size and len(theirs["sha256"]) == 64
    dino("convert", file, "--out", "ours.safetensors", "--preset", official[1])
    ours = json.loads(dino("info", "ours.safetensors", "--json").out)
    assert ours["codebase"] == "dino" and ours["converted_from"]["sha256"] == theirs["sha256"]
    shown = dino("info", "ours.safetensors").out
    assert "resnet18" in shown and "person" in shown


def test_info_knows_a_run(dino, run_folder):
    found = json.loads(dino("info", run_folder, "--json").out)
    assert found["codebase"] == "dino" and [c["name"] for c in found["classes"]] == ["RBC", "WBC", "Platelets"]
    assert "AP" in found["metrics"]
    assert "APl -," in dino("info", run_folder).out.replace("\n", " ") and found["metrics"]["APl"] == -1


def test_names_of_other_classes_are_taken_from_a_file(official, dino, tmp_path):
    config = load_config(official[1], ["model.num_classes=2"])
    state = official_state(build_model(config.model).state_dict(), config.model)
    torch.save({"model": state}, "two.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    result = dino("convert", "two.pth", "--out", "two.safetensors", "--preset", official[1], "--names", "names.txt")
    assert result.code == 0, result.err
    assert [tuple(c) for c in load_weights(_here("two.safetensors")).categories] == [(0, "cat"), (1, "dog")]


def test_weights_that_do_not_name_their_classes_are_used_by_number(tmp_path):
    save_weights(tmp_path / "bare.safetensors", {}, load_config("tiny", ["model.num_classes=18"]), [], {})
    categories = load_weights(tmp_path / "bare.safetensors").categories
    assert [c.name for c in categories[:2]] == ["class_0", "class_1"] and len(categories) == 18
    assert names_note(categories) == "the file has no class names; the classes are called class_0 to class_17"
    assert names_note([Category(0, "cat")]) == ""


@pytest.mark.slow
def test_classes_without_names_are_numbered_and_that_is_reported(official, dino, image_folder):
    config = load_config(official[1], ["model.num_classes=18"])
    torch.save({"model": official_state(build_model(config.model).state_dict(), config.model)}, "bare.pth")
    result = dino("convert", "bare.pth", "--out", "bare.safetensors", "--preset", official[1])
    assert result.code == 0 and "no class names; the classes are called class_0 to class_17" in " ".join(
        result.out.split()
    )
    result = dino("predict", image_folder / "val2017", "--weights", "bare.safetensors", "--json", "--threshold", 0)
    labels = {found["label"] for found in json.loads(result.out)[0]["detections"]}
    assert labels and labels <= {f"class_{k}" for k in range(18)}
    assert "warning: bare.safetensors: the file has no class names" in result.err


def test_a_preset_of_another_model_is_refused_before_it_is_tried(saved, dino):
    result = dino("convert", saved(), "--out", "out.safetensors", "--preset", "mmdet-r50-4scale-12e")
    assert result.code == 4 and "does not match these weights" in result.err


def test_the_position_encoding_that_a_file_tells_is_used(official, dino, monkeypatch):
    torch.save(official[0] | {"args": argparse.Namespace(pe_temperatureH=50)}, "told.pth")
    monkeypatch.setitem(known.PUBLISHED, ("official", "resnet18", 4), {"": str(official[1])})
    done = convert_file(_here("told.pth"), ConversionRequest())
    assert done.weights.config.model.position_temperature == 50
    assert any("position_temperature = 50" in note for note in done.notes)
    requested = convert_file(_here("told.pth"), ConversionRequest(preset=str(official[1])))
    assert requested.weights.config.model.position_temperature == 20, "an explicit preset takes precedence"


def test_more_classes_than_rows_of_the_label_embedding_are_refused(official, dino, tmp_path):
    content = changed(official[0], **{"label_enc.weight": torch.zeros(90, 32)})
    torch.save(content, "few.pth")
    result = dino("convert", "few.pth", "--out", "out.safetensors", "--preset", official[1])
    assert result.code == 4 and "90 rows for 91 classes" in result.err


def changed(content, **tensors):
    return content | {"model": content["model"] | tensors}


BIAS = "transformer.enc_output.bias"
BAD = {
    "code, new format": lambda good: {"save": good | {"args": Evil()}},
    "code, old format": lambda good: {"save": good | {"args": Evil()}, "old": True},
    "code, hidden in the arguments": lambda good: {"save": good | {"args": argparse.Namespace(x=Evil())}},
    "code, a plain pickle": lambda good: {"bytes": pickle.dumps(Evil())},
    "sparse": lambda good: {"save": changed(good, **{BIAS: torch.zeros(32).to_sparse()})},
    "not finite": lambda good: {"save": changed(good, **{BIAS: torch.full((32,), float("nan"))})},
    "another shape": lambda good: {"save": changed(good, **{BIAS: torch.zeros(33)})},
    "a shape without numbers": lambda good: {"save": changed(good, **{BIAS: torch.zeros(1).expand(10**12)})},
    "whole numbers": lambda good: {"save": changed(good, **{BIAS: torch.zeros(32, dtype=torch.int64)})},
    "a tensor missing": lambda good: {"save": {"model": {k: v for k, v in good["model"].items() if k != BIAS}}},
    "a tensor too many": lambda good: {"save": changed(good, extra=torch.zeros(1))},
    "cut off": lambda good: {"save": good, "cut": 2},
    "cut off at the start": lambda good: {"save": good, "cut": 1000},
    "a web page": lambda good: {"bytes": b"<!DOCTYPE html><html>Sign in</html>"},
    "empty": lambda good: {"bytes": b""},
    "text": lambda good: {"bytes": b"Not found"},
    "another model": lambda good: {"save": torch.nn.Linear(2, 2).state_dict()},
    "not a dictionary": lambda good: {"save": [1, 2]},
    "a safetensors file cut off": lambda good: {"bytes": b"\x50\x00\x00\x00\x00\x00\x00\x00{" + b" " * 20},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_and_leaves_nothing(kind, official, dino, tmp_path):
    how = BAD[kind](official[0])
    file = tmp_path / "bad.pth"
    if "bytes" in how:
        file.write_bytes(how["bytes"])
    else:
        torch.save(how["save"], file, _use_new_zipfile_serialization=not how.get("old"))
    if "cut" in how:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // how["cut"]])
    for command in (["convert", file, "--out", "out/ours.safetensors", "--preset", official[1]], ["info", file]):
        result = dino(*command)
        harmless = command[0] == "info" and kind in ("not finite", "another shape", "a tensor missing", "sparse",
                                                     "a shape without numbers", "whole numbers")  # fmt: skip
        assert result.code in ((0, 4) if harmless else (4,)), result.err
        assert harmless or result.err.startswith("error[CHECKPOINT]: "), result.err
        assert "bad.pth" in result.err or harmless
    assert os.listdir(tmp_path) == ["bad.pth"]


def test_a_missing_file_and_odd_arguments(dino, saved):
    assert dino("convert", "none.pth", "--out", "a.safetensors").code == 4
    assert dino("info", "none.pth").code == 4
    assert dino("convert", saved(), "--out", "a.pth").code == 2
    assert dino("convert", saved(), "--out", "a.safetensors", "--from", "keras").code == 2
    assert dino("convert", saved(), "--out", "a.safetensors", "--to", "keras").code == 2


def _here(name):
    return Path.cwd() / name


def _allowed(file):
    torch.serialization.add_safe_globals([argparse.Namespace])
    return file
