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
def save_checkpoint(official, tmp_path):
    def save(content=None, name="official.pth"):
        torch.save(content or official[0], tmp_path / name)
        return tmp_path / name

    return save


def test_an_official_checkpoint_is_converted_and_detects_objects(official, save_checkpoint, dino, image_folder):
    result = dino("convert", save_checkpoint(), "--out", "new/ours.safetensors", "--preset", official[1])
    assert result.code == 0, result.err
    assert "IDEA-Research/DINO" in result.out and "dropped" in result.out and "args" in result.out
    weights = load_weights(_absolute("new/ours.safetensors"))
    assert weights.config.model.num_classes == 91 and weights.categories[18].name == "dog"
    assert weights.facts["converted_from"]["codebase"] == "official" and weights.facts["converted_from"]["epoch"] == 11
    image_file = next((image_folder / "val2017").iterdir())
    predicted = dino("predict", image_file, "--weights", "new/ours.safetensors", "--threshold", "0", "--json")
    assert predicted.code == 0, predicted.err
    detections = json.loads(predicted.out)[0]["detections"]
    assert detections and all(0 <= d["category_id"] <= 90 for d in detections)


def test_conversion_from_official_and_back_keeps_all_tensors(official, save_checkpoint, dino):
    file = save_checkpoint()
    assert dino("convert", file, "--out", "ours.safetensors", "--preset", official[1]).code == 0
    result = dino("convert", "ours.safetensors", "--to", "official", "--out", "back.pth")
    assert result.code == 0, result.err
    assert "num_queries=12" in result.out
    before, after = (torch.load(path, weights_only=True)["model"] for path in (_allow_namespace(file), "back.pth"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_conversion_to_80_classes_keeps_their_scores(official, save_checkpoint, dino):
    file = save_checkpoint()
    dino("convert", file, "--out", "all.safetensors", "--preset", official[1])
    result = dino("convert", file, "--out", "80.safetensors", "--preset", official[1], "--classes", 80, "--json")
    assert json.loads(result.out)["classes"] == 80
    all_classes, coco_classes = (load_detector(name, "cpu", "off") for name in ("all.safetensors", "80.safetensors"))
    ids = torch.tensor([category.id for category in coco_classes.categories])
    images, padding = torch.randn(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.bool)
    a, b = (detector.model(images, padding) for detector in (all_classes, coco_classes))
    pairs = torch.isclose(a.proposals.boxes[0][:, None], b.proposals.boxes[0][None], atol=1e-6).all(-1).nonzero()
    assert len(pairs) > 0
    torch.testing.assert_close(a.proposals.logits[0][pairs[:, 0]][:, ids], b.proposals.logits[0][pairs[:, 1]])
    refused = dino("convert", file, "--out", "7.safetensors", "--preset", official[1], "--classes", 7)
    assert refused.code == 2 and not _absolute("7.safetensors").exists()


def test_info_describes_official_and_converted_weights(official, save_checkpoint, dino):
    file = save_checkpoint()
    original = json.loads(dino("info", file, "--json").out)
    assert (original["codebase"], original["num_classes"], original["epoch"]) == ("official", 91, 11)
    assert original["bytes"] == file.stat().st_size and len(original["sha256"]) == 64
    dino("convert", file, "--out", "ours.safetensors", "--preset", official[1])
    converted = json.loads(dino("info", "ours.safetensors", "--json").out)
    assert converted["codebase"] == "dino" and converted["converted_from"]["sha256"] == original["sha256"]
    text = dino("info", "ours.safetensors").out
    assert "resnet18" in text and "person" in text


def test_info_describes_a_run(dino, run_folder):
    info = json.loads(dino("info", run_folder, "--json").out)
    assert info["codebase"] == "dino" and [c["name"] for c in info["classes"]] == ["RBC", "WBC", "Platelets"]
    assert "AP" in info["metrics"]
    assert "APl -," in dino("info", run_folder).out.replace("\n", " ") and info["metrics"]["APl"] == -1


def test_class_names_are_read_from_a_file(official, dino, tmp_path):
    config = load_config(official[1], ["model.num_classes=2"])
    state = official_state(build_model(config.model).state_dict(), config.model)
    torch.save({"model": state}, "two.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    result = dino("convert", "two.pth", "--out", "two.safetensors", "--preset", official[1], "--names", "names.txt")
    assert result.code == 0, result.err
    assert [tuple(c) for c in load_weights(_absolute("two.safetensors")).categories] == [(0, "cat"), (1, "dog")]


def test_classes_of_weights_without_class_names_are_numbered(tmp_path):
    save_weights(tmp_path / "bare.safetensors", {}, load_config("tiny", ["model.num_classes=18"]), [], {})
    categories = load_weights(tmp_path / "bare.safetensors").categories
    assert [c.name for c in categories[:2]] == ["class_0", "class_1"] and len(categories) == 18
    assert names_note(categories) == "the file has no class names; the classes are called class_0 to class_17"
    assert names_note([Category(0, "cat")]) == ""


@pytest.mark.slow
def test_convert_and_predict_report_numbered_classes(official, dino, image_folder):
    config = load_config(official[1], ["model.num_classes=18"])
    torch.save({"model": official_state(build_model(config.model).state_dict(), config.model)}, "bare.pth")
    result = dino("convert", "bare.pth", "--out", "bare.safetensors", "--preset", official[1])
    assert result.code == 0 and "no class names; the classes are called class_0 to class_17" in " ".join(
        result.out.split()
    )
    result = dino("predict", image_folder / "val2017", "--weights", "bare.safetensors", "--json", "--threshold", 0)
    labels = {detection["label"] for detection in json.loads(result.out)[0]["detections"]}
    assert labels and labels <= {f"class_{k}" for k in range(18)}
    assert "warning: bare.safetensors: the file has no class names" in result.err


def test_a_preset_that_does_not_match_the_weights_is_refused(save_checkpoint, dino):
    result = dino("convert", save_checkpoint(), "--out", "out.safetensors", "--preset", "mmdet-r50-4scale-12e")
    assert result.code == 4 and "does not match these weights" in result.err


def test_the_position_temperature_stored_in_a_checkpoint_is_used(official, dino, monkeypatch):
    torch.save(official[0] | {"args": argparse.Namespace(pe_temperatureH=50)}, "checkpoint.pth")
    monkeypatch.setitem(known.PUBLISHED, ("official", "resnet18", 4), {"": str(official[1])})
    converted = convert_file(_absolute("checkpoint.pth"), ConversionRequest())
    assert converted.weights.config.model.position_temperature == 50
    assert any("position_temperature = 50" in note for note in converted.notes)
    with_preset = convert_file(_absolute("checkpoint.pth"), ConversionRequest(preset=str(official[1])))
    assert with_preset.weights.config.model.position_temperature == 20, "an explicit preset takes precedence"


def test_a_label_embedding_with_too_few_rows_is_refused(official, dino, tmp_path):
    content = with_tensors(official[0], **{"label_enc.weight": torch.zeros(90, 32)})
    torch.save(content, "few.pth")
    result = dino("convert", "few.pth", "--out", "out.safetensors", "--preset", official[1])
    assert result.code == 4 and "90 rows for 91 classes" in result.err


def with_tensors(content, **tensors):
    return content | {"model": content["model"] | tensors}


BIAS = "transformer.enc_output.bias"
BAD = {
    "code, new format": lambda good: {"save": good | {"args": Evil()}},
    "code, old format": lambda good: {"save": good | {"args": Evil()}, "old": True},
    "code, hidden in the arguments": lambda good: {"save": good | {"args": argparse.Namespace(x=Evil())}},
    "code, a plain pickle": lambda good: {"bytes": pickle.dumps(Evil())},
    "sparse": lambda good: {"save": with_tensors(good, **{BIAS: torch.zeros(32).to_sparse()})},
    "not finite": lambda good: {"save": with_tensors(good, **{BIAS: torch.full((32,), float("nan"))})},
    "a wrong shape": lambda good: {"save": with_tensors(good, **{BIAS: torch.zeros(33)})},
    "an expanded tensor": lambda good: {"save": with_tensors(good, **{BIAS: torch.zeros(1).expand(10**12)})},
    "integers": lambda good: {"save": with_tensors(good, **{BIAS: torch.zeros(32, dtype=torch.int64)})},
    "a missing tensor": lambda good: {"save": {"model": {k: v for k, v in good["model"].items() if k != BIAS}}},
    "an additional tensor": lambda good: {"save": with_tensors(good, extra=torch.zeros(1))},
    "truncated": lambda good: {"save": good, "cut": 2},
    "truncated to 0.1 %": lambda good: {"save": good, "cut": 1000},
    "a web page": lambda good: {"bytes": b"<!DOCTYPE html><html>Sign in</html>"},
    "empty": lambda good: {"bytes": b""},
    "text": lambda good: {"bytes": b"Not found"},
    "another model": lambda good: {"save": torch.nn.Linear(2, 2).state_dict()},
    "not a dictionary": lambda good: {"save": [1, 2]},
    "a truncated safetensors file": lambda good: {"bytes": b"\x50\x00\x00\x00\x00\x00\x00\x00{" + b" " * 20},
}


READABLE_BY_INFO = {"not finite", "a wrong shape", "a missing tensor", "sparse", "an expanded tensor", "integers"}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_and_leaves_no_output(kind, official, dino, tmp_path):
    case = BAD[kind](official[0])
    file = tmp_path / "bad.pth"
    if "bytes" in case:
        file.write_bytes(case["bytes"])
    else:
        torch.save(case["save"], file, _use_new_zipfile_serialization=not case.get("old"))
    if "cut" in case:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // case["cut"]])
    for command in (["convert", file, "--out", "out/ours.safetensors", "--preset", official[1]], ["info", file]):
        result = dino(*command)
        readable_by_info = command[0] == "info" and kind in READABLE_BY_INFO
        assert result.code in ((0, 4) if readable_by_info else (4,)), result.err
        assert readable_by_info or result.err.startswith("error[CHECKPOINT]: "), result.err
        assert "bad.pth" in result.err or readable_by_info
    assert os.listdir(tmp_path) == ["bad.pth"]


def test_missing_files_and_invalid_arguments_are_refused(dino, save_checkpoint):
    assert dino("convert", "none.pth", "--out", "a.safetensors").code == 4
    assert dino("info", "none.pth").code == 4
    assert dino("convert", save_checkpoint(), "--out", "a.pth").code == 2
    assert dino("convert", save_checkpoint(), "--out", "a.safetensors", "--from", "keras").code == 2
    assert dino("convert", save_checkpoint(), "--out", "a.safetensors", "--to", "keras").code == 2


def _absolute(name):
    return Path.cwd() / name


def _allow_namespace(file):
    torch.serialization.add_safe_globals([argparse.Namespace])
    return file
