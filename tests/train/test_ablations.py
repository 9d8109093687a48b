"""The variants compared in docs/look-forward-twice.md; finished runs are not repeated."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinocore import Target, build_model, criterion, load_config
from dinocore.model.ops.dispatch import use_backend

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = [
    'model.backbone="resnet18"', "model.hidden_dim=32", "model.num_heads=4", "model.ffn_dim=48", "model.num_queries=7",
    "model.num_encoder_layers=1", "model.num_decoder_layers=3", "model.num_classes=5", 'model.denoising.kind="none"',
    'model.heads="per-layer"',
]  # fmt: skip


@pytest.fixture
def variants(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    with use_backend("reference"):  # avoids compilation
        yield importlib.import_module("ablation_variants").LOOK_FORWARD


def build(variant):
    config = load_config("r50-4scale", [*SMALL, *variant.settings])
    torch.manual_seed(0)
    model = build_model(config.model).eval()
    for change in variant.changes:
        change(model)
    torch.manual_seed(1)  # some changes use random numbers
    for head in model.decoder.box_heads:  # zero at first, which blocks gradients
        torch.nn.init.normal_(head[-1].weight, std=0.1)
    return model, config


def gradient_reach(variant):
    """A row per stage: `#` for each layer whose box head gets a gradient from the stage's box loss."""
    model, config = build(variant)
    torch.manual_seed(1)
    images, padding = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    targets = [Target(torch.tensor([1]), torch.tensor([[0.4, 0.4, 0.3, 0.3]]), 1)]
    terms = criterion(model(images, padding, targets), targets, 1, config.loss)
    rows = []
    for stage in range(3):
        model.zero_grad()
        terms[f"stage{stage}/box"].backward(retain_graph=True)
        trained = [head[-1].weight.grad is not None for head in model.decoder.box_heads]
        rows.append("".join(".#"[bool(flag)] for flag in trained))
    return rows


def test_the_loss_of_a_stage_reaches_one_two_or_all_layers(variants):
    assert gradient_reach(variants["once"]) == ["#..", ".#.", "..#"]
    assert gradient_reach(variants["twice"]) == ["#..", "##.", ".##"]
    assert gradient_reach(variants["not detached"]) == ["#..", "##.", "###"]


def test_detaching_does_not_change_the_forward_pass(variants):
    images, padding = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    torch.manual_seed(2)
    first, *others = [build(variants[name])[0](images, padding).stages for name in ("twice", "once", "not detached")]
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.boxes, theirs.boxes)


def test_without_its_norm_a_stage_predicts_from_the_layers_output(variants):
    with_norm, without = build(variants["twice"])[0], build(variants["twice, no norm"])[0]
    assert len(list(without.parameters())) == len(list(with_norm.parameters())) - 2


@pytest.mark.slow
def test_a_finished_run_is_one_line_and_is_not_repeated(tmp_path):
    out = tmp_path / "runs.jsonl"
    command = [sys.executable, str(BENCHMARKS / "ablations.py"), "look-forward", "--only", "not detached"]
    command += ["--seeds", "1", "--steps", "2", "--out", str(out)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert "there already" not in first.stdout
    assert (line["variant"], line["seed"], line["steps"]) == ("not detached", 0, 2)
    assert [row["step"] for row in line["history"]] == [0, 1]
    assert all(len(row["layers"]) == 3 and row["moves"][0] > 0 for row in line["history"])
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "there already" in second.stdout and len(out.read_text().splitlines()) == 1
