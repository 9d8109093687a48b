"""`dino push`: the uploaded folder, which `--weights` can load, and a model card with the metrics of `dino eval`."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard

from dinocore import load_detector
from dinocore.weights.file import load_weights, save_weights
from dinocore.weights.publish import stored_evaluation, write_hub_folder


@pytest.fixture
def evaluation(dino, run_folder, image_folder):
    """Write a run and its evaluation to the folder `sent`; return the output of `dino eval --json`."""
    evaluated = dino("eval", "--weights", run_folder, "--data", image_folder, "--json", "--bootstrap", 20)
    Path("eval.json").write_text(evaluated.out)
    options = ("--eval", "eval.json", "--license", "apache-2.0", "--dataset", "Drawn | cells")
    result = dino("push", "hf:me/cells", "--weights", run_folder, "--dry-run", "--out", "sent", *options)
    assert result.code == 0 and "nothing was uploaded" in result.err, result.err
    return json.loads(evaluated.out)


def test_the_model_card_has_the_metrics_of_eval_as_hub_metadata(evaluation):
    card = ModelCard(Path("sent/README.md").read_text(), ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"]) == ("object-detection", "dino-detector")
    assert (data["license"], card.data.model_name) == ("apache-2.0", "cells")
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == {f"coco_{key.lower()}": round(evaluation[key], 6) for key in ("AP", "AP50", "AP75", "AR100")}
    assert {result.dataset_name for result in card.data.eval_results} == {"Drawn | cells"}
    assert (
        f"| AP, IoU 0.50 | {evaluation['AP50']:.4f} |" in card.text and f"on {evaluation['images']} images" in card.text
    )
    for name, row in evaluation["classes"].items():
        assert f"| {name} | {row['objects']} |" in card.text


def test_the_pushed_folder_gives_the_detections_of_the_run(evaluation, run_folder, image_folder):
    assert sorted(path.name for path in Path("sent").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    image = sorted((image_folder / "val2017").iterdir())[0]
    from_folder, from_run = (load_detector(source, amp="off")(image) for source in ("sent", run_folder))
    assert np.array_equal(from_folder.boxes_xyxy, from_run.boxes_xyxy)
    assert np.array_equal(from_folder.scores, from_run.scores)
    before, after = load_weights(run_folder / "best.safetensors"), load_weights(Path("sent/model.safetensors"))
    assert (after.categories, after.threshold) == (before.categories, before.threshold)


def test_no_local_path_is_published(evaluation, image_folder, tmp_path):
    for path in Path("sent").iterdir():
        content = path.read_bytes()
        assert str(image_folder.parent).encode() not in content and str(tmp_path).encode() not in content, path
    assert load_weights(Path("sent/model.safetensors")).config.data.path == image_folder.name


def test_relative_and_windows_folders_are_not_published_but_public_names_are(run_folder, tmp_path):
    weights = load_weights(run_folder / "best.safetensors")
    config = weights.config.replace("data.path", "customers/acme-secret/blood")
    config = config.replace("train.weights", r"C:\Users\jane\w.safetensors")
    config = config.replace("model.backbone_weights", "timm/resnet50.a1_in1k")
    facts = {"origin": r"continued from customers/acme-secret/jane doe/last.ckpt"}
    write_hub_folder(tmp_path / "sent", weights._replace(config=config, facts=facts), None, "me/cells")
    for path in (tmp_path / "sent").iterdir():
        content = path.read_bytes()
        assert not [word for word in (b"acme", b"customers", b"jane", b"Users") if word in content], path
    after = load_weights(tmp_path / "sent/model.safetensors")
    assert (after.config.data.path, after.config.train.weights) == ("blood", "w.safetensors")
    assert after.config.model.backbone_weights == "timm/resnet50.a1_in1k"
    assert after.facts["origin"] == "continued from last.ckpt"


@pytest.mark.parametrize(
    ("stored", "published"),
    [
        ("trained on BCCD (205 images, org/BCCD, MIT) and 101 drawn ones: 35 epochs; see docs/tiny.md",
         "trained on BCCD (205 images, org/BCCD, MIT) and 101 drawn ones: 35 epochs; see docs/tiny.md"),
        ("trained from /home/jane doe/w.pth (mine), then ~/acme/b.pth", "trained from w.pth (mine), then b.pth"),
        ("jane, doe (x)/w.pth, 3 of 14 classes carried over; kept", "w.pth, 3 of 14 classes carried over; kept"),
        ("continued from clients/jane, doe/last.ckpt", "continued from last.ckpt"),
        ("random, backbone: timm/resnet50.a1_in1k", "random, backbone: timm/resnet50.a1_in1k"),
    ],
)  # fmt: skip
def test_folders_are_removed_from_the_origin(run_folder, tmp_path, stored, published):
    weights = load_weights(run_folder / "best.safetensors")
    write_hub_folder(tmp_path / "sent", weights._replace(facts={"origin": stored}), None, "me/cells")
    assert load_weights(tmp_path / "sent/model.safetensors").facts["origin"] == published
    assert f" Origin: {published}." in (tmp_path / "sent/README.md").read_text()


def test_the_model_card_lists_the_threshold_of_each_class(run_folder, tmp_path):
    weights = load_weights(run_folder / "best.safetensors")
    name = weights.categories[0].name
    facts = weights.facts | {"thresholds": {"overall": 0.4, "classes": {name: 0.2}}}
    write_hub_folder(tmp_path / "sent", weights._replace(facts=facts), stored_evaluation(weights), "me/cells")
    card = (tmp_path / "sent/README.md").read_text()
    assert f"| {name} | 0.200 |" in card and "is best at a score threshold" not in card
    assert all(f"| {other.name} | 0.400 |" in card for other in weights.categories[1:])


def test_the_model_card_describes_the_slices_and_options_of_its_evaluation(dino, run_folder, image_folder):
    options = ("--slice", "96", "--overlap", "0.3", "--amp", "off", "--set", "data.max_size=320")
    evaluated = dino("eval", "--weights", run_folder, "--data", image_folder, "--json", "--bootstrap", 0, *options)
    measured = {"slice": 96, "overlap": 0.3, "precision": "float32", "set": ["data.max_size=320"]}
    assert json.loads(evaluated.out)["measured"] == measured
    Path("eval.json").write_text(evaluated.out)
    options = ("--weights", run_folder, "--dry-run", "--out", "sent", "--eval", "eval.json")
    assert dino("push", "hf:me/cells", *options).code == 0
    description = "in slices of 96 pixels that overlap by 0.3, in float32, with `data.max_size=320`"
    assert description in Path("sent/README.md").read_text()


def test_without_an_evaluation_the_model_card_has_the_metrics_from_training(dino, run_folder):
    assert dino("push", "hf:me/cells", "--weights", run_folder, "--dry-run", "--out", "sent").code == 0
    metrics = load_weights(run_folder / "best.safetensors").facts["metrics"]
    card = ModelCard(Path("sent/README.md").read_text())
    assert {result.metric_value for result in card.data.eval_results} == {
        round(metrics[key], 6) for key in ("AP", "AP50", "AP75", "AR100")
    }


def test_pushing_weights_without_metrics_suggests_an_evaluation(dino, run_folder):
    weights = load_weights(run_folder / "best.safetensors")
    save_weights(Path("w.safetensors"), weights.tensors, weights.config, weights.categories, {})
    result = dino("push", "hf:me/cells", "--weights", "w.safetensors", "--dry-run", "--out", "sent")
    assert result.code == 0 and "dino eval --weights w.safetensors" in result.err
    assert ModelCard(Path("sent/README.md").read_text()).data.eval_results is None


def test_invalid_arguments_are_refused_before_any_work(dino, run_folder, evaluation):
    other = Path("other.json")
    other.write_text(json.dumps(evaluation | {"weights": "elsewhere.safetensors"}))
    Path("bad.json").write_text("{}")
    for arguments, code, message in (
        (("hf:me", "--dry-run", "--out", "x"), 2, "hf:org/name"),
        (("cells", "--dry-run", "--out", "x"), 2, "hf:me/cells"),
        (("hf:me/ce lls", "--dry-run", "--out", "x"), 2, "hf:me/cells"),
        (("hf:me/cells@v1", "--dry-run", "--out", "x"), 2, "is not a hub repository"),
        (("hf:me/cells", "--dry-run"), 2, "--out to-push"),
        (("hf:me/cells", "--dry-run", "--out", "x", "--eval", other), 2, "is about elsewhere.safetensors"),
        (("hf:me/cells", "--dry-run", "--out", "x", "--eval", "bad.json"), 3, "dino eval --weights"),
        (("hf:me/cells", "--dry-run", "--out", "x", "--eval", "none.json"), 3, "none.json"),
    ):
        result = dino("push", *arguments, "--weights", run_folder)
        assert result.code == code and message in result.err, (arguments, result.err)
    assert not Path("x").exists()


def test_push_uploads_three_files_in_one_commit(dino, run_folder, monkeypatch):
    api, uploaded = create_autospec(HfApi, instance=True), []

    def upload(*, folder_path, **_):
        uploaded.extend(sorted(path.name for path in Path(folder_path).iterdir()))
        return SimpleNamespace(commit_url="https://hub/me/cells/commit/1")

    api.upload_folder.side_effect = upload
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    monkeypatch.delenv("DINO_OFFLINE", raising=False)
    result = dino("push", "hf:me/cells", "--weights", run_folder, "--private")
    assert result.code == 0 and "pushed https://hub/me/cells/commit/1" in result.err, result.err
    api.create_repo.assert_called_once_with("me/cells", private=True, exist_ok=True)
    assert uploaded == ["README.md", "config.json", "model.safetensors"]
    assert api.upload_folder.call_args.kwargs["repo_id"] == "me/cells"
    api.create_repo.side_effect = RuntimeError("401: no token")
    result = dino("push", "hf:me/cells", "--weights", run_folder)
    assert result.code == 5 and "401: no token" in result.err and "hf auth login" in result.err
