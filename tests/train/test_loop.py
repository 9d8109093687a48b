"""Runs from start to end, resumed runs, and runs with bad data or weights."""

import json
import math
import shutil

import pytest
import torch
from PIL import Image

from dinocore.errors import CheckpointError, ConfigError, DataError, DivergedError, Interrupted
from dinocore.predict import load_detector
from dinocore.system.processes import SingleProcess
from dinocore.train.batches import count_boxes
from dinocore.train.events import Evaluated, Evaluating, Finished, Saved, Started, Step, Warned
from dinocore.train.loop import train
from dinocore.train.run.checkpoint_folder import list_checkpoints
from dinocore.train.run.folder import find_checkpoint, prepare_run, run_config
from dinocore.train.run.metrics_log import MetricsLog
from dinocore.train.setup import resumed_state
from dinocore.train.state import Progress
from dinocore.train.step import train_step
from dinocore.weights.file import load_weights


def types_of(events):
    return [type(event) for event in events if type(event) in (Started, Step, Evaluated, Saved, Finished)]


def log_rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_the_expected_files(small_config, start, run_to_end):
    context, state = start(small_config())
    events = run_to_end(context, state)
    steps = [Step] * 4
    assert types_of(events) == [Started, *([*steps, Saved, Evaluated, Saved] * 2), Finished]
    assert {"config.toml", "metrics.jsonl", "log.txt", "best.safetensors", "checkpoints"} <= {
        path.name for path in context.folder.iterdir()
    }
    assert [path.name for path in list_checkpoints(context.folder / "checkpoints")] == [
        "step-00000004",
        "step-00000008",
    ]
    assert [row["step"] for row in log_rows(context.folder) if "loss" in row] == list(range(1, 9))
    assert run_config(context.folder) == context.config


def test_weights_contain_their_config_and_categories(small_config, start, run_to_end):
    context, state = start(small_config("train.epochs=1"))
    run_to_end(context, state)
    weights = load_weights(context.folder / "best.safetensors")
    assert weights.config == context.config
    assert [tuple(c) for c in weights.categories] == [(1, "RBC"), (2, "WBC"), (3, "Platelets")]
    detections = load_detector(context.folder / "best.safetensors")(context.data.val.path(0))
    assert len(detections.scores) == 12 * 3  # queries x classes, fewer than eval.max_dets
    assert (detections.scores.diff() <= 0).all()


RANDOM_LAYERS = ("model.dropout=0.1", "model.backbone=timm/convnext_atto", "model.drop_path=0.5")


@pytest.mark.parametrize(
    "overrides",
    [pytest.param((), marks=pytest.mark.slow), ("train.ema_decay=0.9", "train.micro_batch_size=1", *RANDOM_LAYERS)],
)
@pytest.mark.parametrize("stopped_after", [pytest.param(3, marks=pytest.mark.slow), 4])
def test_a_resumed_run_ends_with_the_same_bytes(small_config, start, run_to_end, overrides, stopped_after):
    config = small_config(*overrides)
    context, state = start(config, "uninterrupted")
    run_to_end(context, state)

    steps = []
    interrupted, half_state = start(config, "interrupted", stop=lambda: 143 if len(steps) >= stopped_after else 0)
    with pytest.raises(Interrupted) as caught:
        for event in train(interrupted, half_state):
            steps += [event] if isinstance(event, Step) else []
    assert caught.value.exit_code == 143
    checkpoint, warnings = find_checkpoint(interrupted.folder, "auto")
    assert not warnings
    interrupted = interrupted._replace(stop=lambda: 0)
    run_to_end(interrupted, resumed_state(checkpoint, config, torch.device("cpu")))
    for name in ("model.safetensors", *(["ema.safetensors"] if "ema" in str(overrides) else [])):
        expected, resumed = (
            load_weights(run / "checkpoints" / "step-00000008" / name).tensors
            for run in (context.folder, interrupted.folder)
        )
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    logged = [[row.get("loss") or row["AP"] for row in log_rows(run)] for run in (context.folder, interrupted.folder)]
    assert logged[0] == logged[1]


def test_a_stop_during_the_last_evaluation_does_not_finish_the_run(small_config, start, run_to_end):
    config = small_config("train.epochs=1")
    event_types = []
    context, state = start(config, stop=lambda: 130 if Evaluating in event_types else 0)
    with pytest.raises(Interrupted, match="after step 4 of 4"):
        for event in train(context, state):
            event_types.append(type(event))
    checkpoint, _ = find_checkpoint(context.folder, "auto")
    with pytest.raises(Interrupted, match="before continuing after step 4"):
        run_to_end(context, resumed_state(checkpoint, config, torch.device("cpu")))
    events = run_to_end(context._replace(stop=lambda: 0), resumed_state(checkpoint, config, torch.device("cpu")))
    assert types_of(events) == [Started, Evaluated, Saved, Finished]
    assert (context.folder / "best.safetensors").is_file()


def test_a_damaged_newest_checkpoint_is_skipped_and_reported(small_config, start, run_to_end):
    context, state = start(small_config())
    run_to_end(context, state)
    older, newest = list_checkpoints(context.folder / "checkpoints")
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    checkpoint, warnings = find_checkpoint(context.folder, "auto")
    assert checkpoint == older
    assert "step-00000008 is damaged: model.safetensors" in warnings[0]
    with pytest.raises(CheckpointError, match="is damaged"):
        find_checkpoint(context.folder, str(newest))


def test_every_file_of_a_checkpoint_opens_without_running_code(small_config, start, run_to_end):
    context, state = start(small_config("train.epochs=1", "train.ema_decay=0.5"))
    run_to_end(context, state)
    folder = list_checkpoints(context.folder / "checkpoints")[-1]
    assert torch.load(folder / "state.pt", weights_only=True)["progress"]["step"] == 4
    assert sorted(path.name for path in folder.iterdir()) == [
        "ema.safetensors", "manifest.json", "model.safetensors", "optimizer.pt", "state.pt",
    ]  # fmt: skip


def test_accumulation_gives_the_gradient_of_the_whole_batch(small_config, start):
    norms = []
    for chunk in (4, 1):
        config = small_config("train.batch_size=4", f"train.micro_batch_size={chunk}", 'model.denoising.kind="none"')
        context, state = start(config, f"chunk{chunk}")
        events = train(context, state)
        step = next(event for event in events if isinstance(event, Step))
        norms.append((step.numbers["loss"], step.numbers["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_non_finite_loss_stops_before_the_step(small_config, start):
    context, state = start(small_config())
    events = train(context, state)
    next(event for event in events if isinstance(event, Step))
    before = [p.clone() for p in state.model.backbone.parameters()]
    with torch.no_grad():
        state.model.tokenizer.level_embed.fill_(math.nan)
    with pytest.raises(DivergedError) as error:
        list(events)
    assert error.value.exit_code == 6
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.backbone.parameters(), strict=True))


def test_a_non_finite_gradient_is_reported_with_its_layer_and_images(small_config, start):
    context, state = start(small_config())
    state.model.neck.project[0][0].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match=r"grad_norm is not finite in step 1: .*smear_.*layer neck.project.0.0"):
        list(train(context, state))


def test_one_bad_image_is_replaced_and_reported_once(image_folder, small_config, start, run_to_end, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    bad = sorted((folder / "train2017").iterdir())[0]
    context, state = start(small_config(f'data.path="{folder}"'))
    bad.write_bytes(bad.read_bytes()[:500])  # after `start`, which would refuse it
    warnings = [event.message for event in run_to_end(context, state) if isinstance(event, Warned)]
    assert len(warnings) == 1 and bad.name in warnings[0]


def test_too_many_bad_images_end_the_run(image_folder, small_config, start, run_to_end, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    context, state = start(small_config(f'data.path="{folder}"', "train.epochs=4"))
    for bad in sorted((folder / "train2017").iterdir())[:4]:
        bad.write_bytes(b"not an image")  # after `start`, which would refuse them
    with pytest.raises(DataError, match="4 of 8 images cannot be read"):
        run_to_end(context, state)


def test_images_without_objects_can_be_trained_on_and_evaluated(
    image_folder, small_config, start, run_to_end, tmp_path
):
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    for split in ("train", "val"):
        file = folder / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        first = min(image["id"] for image in content["images"])
        content["annotations"] = [a for a in content["annotations"] if split == "train" and a["image_id"] == first]
        file.write_text(json.dumps(content))
    context, state = start(small_config(f'data.path="{folder}"', "train.batch_size=1"))
    evaluated = [event for event in run_to_end(context, state) if isinstance(event, Evaluated)]
    assert all(event.metrics.summary["AP"] == -1 for event in evaluated)  # no objects to evaluate, as in pycocotools


def test_an_image_with_fewer_tokens_than_queries_can_be_trained_on(small_config, start, run_to_end, tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (24, 20), "red").save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 24, "height": 20}],
        "categories": [{"id": 9, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 9, "bbox": [2, 3, 10, 12]}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    context, state = start(
        small_config(f'data.path="{folder}"', "data.train_scales=[20]", "model.num_queries=900", "model.num_classes=1")
    )
    assert any(isinstance(event, Finished) for event in run_to_end(context, state))


@pytest.mark.parametrize(
    ("option", "advice"),
    [("", "choose another folder.*overwrite=True$"), ("--output-dir ", "--resume auto.*--overwrite$")],
)
def test_a_non_empty_folder_is_refused_with_both_alternatives(tmp_path, option, advice):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=advice):
        prepare_run(tmp_path, False, option)
    prepare_run(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_low_precision_steps_are_finite(small_config, start, amp):
    context, state = start(small_config(f'train.amp="{amp}"'))
    from dinocore.data.loaders import training_steps

    batches = next(iter(training_steps(context.data.train, context.config, 2, 0, 1)))
    assert math.isfinite(train_step(state, batches, count_boxes(batches), context.config, SingleProcess())["loss"])


def test_a_run_with_other_classes_starts_from_weights_matched_by_name(
    small_config, start, run_to_end, image_folder, tmp_path
):
    context, state = start(small_config("train.epochs=1"))
    run_to_end(context, state)
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    for file in (folder / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "WBC"}, {"id": 3, "name": "Platelets"},
                                 {"id": 4, "name": "new"}]  # fmt: skip
        file.write_text(json.dumps(content))
    best = context.folder / "best.safetensors"
    config = small_config(f'data.path="{folder}"', "model.num_classes=4", f'train.weights="{best}"')
    _, tuned = start(config, "tuned")
    old = load_weights(best).tensors["decoder.class_heads.0.weight"]
    new = tuned.model.decoder.class_heads[0].weight
    assert torch.equal(new[1], old[1]) and torch.equal(new[2], old[2])
    assert not torch.equal(new[0], old[0])
    assert tuned.transfer.classes == {"red": None, "WBC": "WBC", "Platelets": "Platelets", "new": None}


def test_a_non_finite_value_is_null_in_the_log(tmp_path):
    log = MetricsLog(tmp_path, Progress())
    log.add({"step": 1, "loss": 2.5, "grad_norm": math.inf})
    assert log_rows(tmp_path) == [{"step": 1, "loss": 2.5, "grad_norm": None}]
