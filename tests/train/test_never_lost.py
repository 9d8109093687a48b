"""Runs survive stops at any point, damaged files, a full disk, dead workers, lack of memory, and NaN."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dinocore.errors import CheckpointError, ConfigError, DataError, DivergedError, EnvironmentFault, Interrupted
from dinocore.train import batches as feeding
from dinocore.train import evaluation, step
from dinocore.train.events import Evaluated, Evaluating, Finished, Saved, Step, Warned
from dinocore.train.failures import guard
from dinocore.train.loop import train
from dinocore.train.run.checkpoint_folder import list_checkpoints, manifest_of, tidy
from dinocore.train.run.folder import branch_off, find_checkpoint
from dinocore.train.run.lock import RunLock
from dinocore.train.setup import check_same_data, resumed_state
from dinocore.weights.file import load_weights

CPU = torch.device("cpu")
TINY = ('model.backbone="timm/test_resnet"', "train.micro_batch_size=1", 'train.trackers="off"')


def resume(context, config):
    checkpoint, messages = find_checkpoint(context.folder, "auto")
    context = context._replace(config=config, stop=lambda: 0)
    return list(train(context, resumed_state(checkpoint, config, CPU))), messages


STOP_POINTS = {"mid-epoch": 6, "last batch": 7, "boundary": 8, "evaluation": 8, "accumulation": 5}
VARIANTS = [(0, 0.0, "off"), (2, 0.0, "bf16"), (2, 0.9, "off"), (0, 0.9, "bf16")]  # all pairs of values
CASES = [(stop_point, *variant) for stop_point in STOP_POINTS for variant in VARIANTS]
CASES += [(stop_point, 0, 0.9, "fp16") for stop_point in ("mid-epoch", "accumulation")]  # with a gradient scaler
UNINTERRUPTED: dict = {}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_run_stopped_and_resumed_anywhere_equals_an_uninterrupted_run(
    case, small_config, start, run_to_end, monkeypatch, outcome
):
    stop_point, workers, ema, amp = case
    config = small_config(*TINY, "train.epochs=6", f"train.ema_decay={ema}", "model.dropout=0.1", f'train.amp="{amp}"')
    if (ema, amp) not in UNINTERRUPTED:
        context, state = start(config, "uninterrupted")
        run_to_end(context, state)
        UNINTERRUPTED[ema, amp] = outcome(context.folder)
    event_types = []
    passes = []
    if stop_point == "accumulation":  # a stop between the two forward passes of a step
        original = step.forward
        monkeypatch.setattr(step, "forward", lambda *a: passes.append(1) or original(*a))
    stop_conditions = {
        "evaluation": lambda: event_types.count(Evaluating) >= 3,  # the first event of the second evaluation
        "accumulation": lambda: len(passes) >= 2 * STOP_POINTS[stop_point] - 1,
        "boundary": lambda: event_types.count(Evaluated) >= 2,
    }
    should_stop = stop_conditions.get(stop_point, lambda: event_types.count(Step) >= STOP_POINTS[stop_point])
    context, state = start(config, "interrupted", stop=lambda: 143 * bool(should_stop()))
    with pytest.raises(Interrupted):
        for event in train(context, state):
            event_types.append(type(event))
    other = config.replace("data.workers", workers)
    resume(context, other)
    tensors, values, rows = outcome(context.folder)
    assert (tensors, values, rows) == UNINTERRUPTED[ema, amp]
    assert bool(values["scaler"]) == (amp == "fp16")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 25))


def test_rows_logged_after_the_last_checkpoint_appear_once(small_config, start, run_to_end):
    """As after SIGKILL: rows of steps after the last checkpoint, and half a row."""
    config = small_config(*TINY, "train.epochs=1")
    context, state = start(config)
    run_to_end(context, state)
    log = context.folder / "metrics.jsonl"
    before = log.read_text()
    log.write_text(before + '{"step": 4, "AP": 0.5}\n{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    resume(context, config)
    assert log.read_text() == before


FILES = ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.pt", "manifest.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_detected_and_the_previous_checkpoint_is_used(
    name, small_config, start, run_to_end, outcome
):
    config = small_config(*TINY, "train.ema_decay=0.9")
    context, state = start(config)
    run_to_end(context, state)
    expected = outcome(context.folder)
    newest = list_checkpoints(context.folder / "checkpoints")[-1]
    assert sorted(file.name for file in newest.iterdir()) == sorted(FILES)
    original = (newest / name).read_bytes()
    for position in {0, len(original) // 3, len(original) // 2, len(original) - 2}:
        content = bytearray(original)
        content[position] ^= 1
        (newest / name).write_bytes(content)
        checkpoint, messages = find_checkpoint(context.folder, "auto")
        assert (
            checkpoint.name == "step-00000004"
            and newest.name in messages[0]
            and "using the previous one" in messages[0]
        )
    (newest / name).unlink()
    assert find_checkpoint(context.folder, "auto")[0] == checkpoint
    assert branch_off(context.folder, checkpoint)[0].startswith("newer than step-00000004")
    resume(context, config)
    assert outcome(context.folder) == expected


def test_a_damaged_manifest_is_reported_with_advice_and_without_pythons_message(small_config, start, run_to_end):
    context, state = start(small_config(*TINY, "train.epochs=1"))
    run_to_end(context, state)
    newest = list_checkpoints(context.folder / "checkpoints")[-1]
    file = newest / "manifest.json"
    original = file.read_text()
    without = json.dumps({key: value for key, value in json.loads(original).items() if key not in ("step", "files")})
    damaged = {original[: len(original) // 2]: "truncated", "": "truncated", "\0" * 99: "truncated",
               "[1, 2]": "overwritten", "null": "overwritten", without: "it lacks `step` and `files`",
               original.replace('"step": 4', '"step": 5'): "it differs from what was written"}  # fmt: skip
    for content, reason in damaged.items():
        file.write_text(content)
        for argument, fix in (
            ("auto", f"--set train.weights={context.folder}"),
            (newest, f"--resume {context.folder}"),
        ):
            with pytest.raises(CheckpointError) as caught:
                find_checkpoint(context.folder, str(argument))
            message = str(caught.value)
            assert f"{file} is damaged: " in message and reason in message and fix in caught.value.fix
            assert not any(word in message for word in ("Expecting", "object", "NoneType", "indices", "Errno"))
    file.unlink()
    with pytest.raises(CheckpointError, match="it has no manifest"):
        find_checkpoint(context.folder, str(newest))
    file.write_text(original)
    copy = newest.rename(newest.with_name("mine"))
    with pytest.raises(CheckpointError, match="it belongs to step-00000004, not to this folder"):
        find_checkpoint(context.folder, str(copy))


def test_a_kill_between_two_renames_is_repaired(small_config, start, run_to_end):
    context, state = start(small_config(*TINY, "train.epochs=1"))
    run_to_end(context, state)
    folder = context.folder / "checkpoints"
    (folder / "step-00000004").rename(folder / ".tmp-old-step-00000004")
    (folder / ".tmp-new-step-00000004").mkdir()
    tidy(folder)
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]


def test_a_full_disk_is_a_warning_during_training_and_an_error_at_its_end(small_config, start):
    context, state = start(small_config(*TINY, "train.save_every_steps=3"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    warnings = []
    with pytest.raises(EnvironmentFault, match=r"cannot be written: .*File too large") as error:
        try:
            for event in train(context, state):
                warnings += [event.message] if isinstance(event, Warned) else []
                if isinstance(event, Saved):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.exit_code == 5 and state.progress.step == 8
    assert any("training continues" in text for text in warnings)
    assert [path.name for path in list_checkpoints(context.folder / "checkpoints")] == ["step-00000003"]
    assert find_checkpoint(context.folder, "auto")[1] == []


def test_a_save_without_enough_space_reports_how_much_it_needs(small_config, start, monkeypatch):
    context, state = start(small_config(*TINY, "train.epochs=1"))
    monkeypatch.setattr(
        "dinocore.train.run.checkpoint_folder.shutil.disk_usage", lambda path: SimpleNamespace(free=10**6)
    )
    warnings = []
    with pytest.raises(EnvironmentFault, match=r"it needs (\d+) MB and 1 MB are free") as error:
        for event in train(context, state):
            warnings += [event.message] if isinstance(event, Warned) and state.progress.step == 0 else []
    command = f"dino train --resume {context.folder}, which starts at the first step"
    assert str(error.value).endswith(f"no checkpoint has been saved yet; free some disk space, then run {command}")
    warned = re.search(r"a checkpoint takes about ([\d.]+) MB, and \S+ has 1\.0 MB left", "".join(warnings))
    needed = re.search(r"it needs (\d+) MB", str(error.value))
    assert warned and needed and abs(float(warned[1]) - float(needed[1])) < 2, (
        "the warning before the first step gives the same size"
    )


def test_a_killed_worker_ends_the_run_with_its_state_saved(small_config, start):
    import multiprocessing

    context, state = start(small_config(*TINY, "data.workers=1", "train.epochs=8"))
    with pytest.raises(EnvironmentFault, match="a data loading worker was killed") as error:
        for event in train(context, state):
            if isinstance(event, Step) and event.step == 2:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    assert error.value.exit_code == 5
    assert manifest_of(list_checkpoints(context.folder / "checkpoints")[-1])["step"] == state.progress.step


def test_a_hanging_worker_ends_in_a_timeout(small_config, start, monkeypatch):
    import time

    monkeypatch.setattr("dinocore.data.loaders.TrainingImages._read", lambda *_: time.sleep(60))
    context, state = start(small_config(*TINY, "data.workers=1", "data.loader_timeout=1"))
    with pytest.raises(EnvironmentFault, match="took too long for an image"):
        list(train(context, state))


def run_out_of_memory(monkeypatch, at):
    """Run out of memory once, in forward pass `at` of the run."""
    original, passes = step.forward, []

    def forward(*arguments):
        passes.append(1)
        if len(passes) == at:
            torch.rand(1)  # changes the RNG state
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return original(*arguments)

    monkeypatch.setattr(step, "forward", forward)


def test_out_of_memory_reports_sizes_and_flags_and_keeps_the_last_state(small_config, start, monkeypatch):
    context, state = start(small_config(*TINY, "train.epochs=1"))
    run_out_of_memory(monkeypatch, at=2 * 2 + 2)
    with pytest.raises(EnvironmentFault, match=r"peak \d+ MB.*x 64.*objects.*--batch-size auto") as error:
        list(train(context, state))
    assert error.value.exit_code == 5
    assert [path.name for path in list_checkpoints(context.folder / "checkpoints")] == ["step-00000002"]


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_run_with_halved_micro_batches_continues_with_identical_results(
    amp, small_config, start, monkeypatch, outcome
):
    """Out of memory in step 3: the rest equals a run stopped after step 2 and resumed with micro-batches of 2."""
    requested = (*TINY, "train.batch_size=8", "train.epochs=4", "model.dropout=0.1", f'train.amp="{amp}"')
    four, two = (
        small_config(*requested, "train.micro_batch_size=4"),
        small_config(*requested, "train.micro_batch_size=2"),
    )
    other, state = start(four, "stopped", stop=lambda: 143 * (state.progress.step == 2))
    with pytest.raises(Interrupted):
        list(train(other, state))
    resume(other, two)
    context, state = start(four.replace("train.on_out_of_memory", "halve"))
    run_out_of_memory(monkeypatch, at=2 * 2 + 2)
    events = list(train(context, state))
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert warning.endswith("Repeating step 3 with train.micro_batch_size = 2, from now on")
    assert outcome(context.folder) == outcome(other.folder) and isinstance(events[-1], Finished)


def test_a_micro_batch_of_one_image_cannot_be_halved(small_config, start, monkeypatch):
    context, state = start(small_config(*TINY, 'train.on_out_of_memory="halve"'))
    run_out_of_memory(monkeypatch, at=1)
    with pytest.raises(EnvironmentFault, match="out of memory"):
        list(train(context, state))


def change_batches(monkeypatch, change, at=3):
    """Change the batches of step `at` before they are used."""
    original = feeding._next

    def next_batches(batches):
        micro_batches, fault = original(batches)
        next_batches.step += 1
        return ([change(batch) for batch in micro_batches] if next_batches.step == at else micro_batches), fault

    next_batches.step = 0
    monkeypatch.setattr(feeding, "_next", next_batches)


def nan_pixel(batch):
    images = batch.images.float()
    images[0, 0, 3, 3] = torch.nan
    return batch._replace(images=images)


def nan_box(batch):
    target = batch.targets[0]
    return batch._replace(targets=[target._replace(boxes=torch.full_like(target.boxes, torch.nan)), *batch.targets[1:]])


@pytest.mark.parametrize("change, reason", [(nan_pixel, "its pixels"), (nan_box, "its boxes")])
def test_nan_in_the_data_is_reported_with_the_image_and_no_step_is_taken(
    change, reason, small_config, start, monkeypatch
):
    change_batches(monkeypatch, change)
    context, state = start(small_config(*TINY))
    after = []
    with pytest.raises(DivergedError, match=rf"in step 3: .*smear_.*{reason}"):
        for event in train(context, state):
            if isinstance(event, Step):
                after = [p.clone() for p in state.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, state.model.parameters(), strict=True))
    assert state.progress.step == 2 and (context.folder / "diverged.safetensors").is_file()


def test_nan_weights_are_reported_with_their_layer(small_config, start):
    context, state = start(small_config(*TINY))
    with torch.no_grad():
        state.model.encoder.layers[0].ffn.net[0].weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"layer encoder\.layers\.0\.ffn"):
        list(train(context, state))


def test_a_rollback_skips_the_step_and_has_a_limit(small_config, start, monkeypatch):
    requested = ('train.on_nan="rollback"', "train.save_every_steps=2", "train.max_rollbacks=1")
    change_batches(monkeypatch, nan_box)
    context, state = start(small_config(*TINY, *requested))
    events = list(train(context, state))
    assert any("rolled back to step-00000002; step 3" in e.message for e in events if isinstance(e, Warned))
    assert [e.step for e in events if isinstance(e, Step)] == [1, 2, 4, 5, 6, 7, 8]
    assert isinstance(events[-1], Finished)

    def not_finite(*_):
        raise step.NonFinite({"matching/box": float("nan"), "grad_norm": 1.0})

    monkeypatch.setattr(guard, "train_step", not_finite)
    with pytest.raises(DivergedError, match=r"rolled back 1 times|no checkpoint"):
        list(train(*start(small_config(*TINY, *requested), "always")))


@pytest.fixture
def set_ap(monkeypatch):
    """A function that sets the AP of every evaluation."""

    def always(ap):
        original = evaluation.coco_metrics

        def with_ap(*arguments):
            metrics = original(*arguments)
            return metrics._replace(summary=metrics.summary | {"AP": ap})

        monkeypatch.setattr(evaluation, "coco_metrics", with_ap)

    return always


@pytest.mark.parametrize("ap", [0.0, -1.0])
def test_without_metrics_the_newest_weights_are_best_and_patience_does_not_count(small_config, start, set_ap, ap):
    set_ap(ap)
    context, state = start(small_config(*TINY, "train.epochs=3", "train.patience=1"))
    events = list(train(context, state))
    assert [event.best for event in events if isinstance(event, Evaluated)] == [True] * 3
    assert load_weights(context.folder / "best.safetensors").facts["epoch"] == 3 and not events[-1].why


def test_patience_ends_a_run_early_and_it_is_not_continued(small_config, start, set_ap):
    set_ap(0.3)
    config = small_config(*TINY, "train.epochs=9", "train.patience=2", "train.lr=0.0", "train.backbone_lr=0.0")
    context, state = start(config)
    events = list(train(context, state))
    assert sum(isinstance(event, Evaluated) for event in events) == 3  # the first is the best, two are not better
    assert events[-1].why.startswith("stopped early: step 4 was the best")
    resumed_events, _ = resume(context, config)
    assert not any(isinstance(event, Step) for event in resumed_events)


def test_changed_annotations_are_refused_when_resuming(small_config, start, run_to_end):
    context, state = start(small_config(*TINY, "train.epochs=1"))
    run_to_end(context, state)
    manifest = manifest_of(list_checkpoints(context.folder / "checkpoints")[-1])
    check_same_data(context.folder, manifest, context.data, allow_change=False)
    context.data.train.boxes[0, 0] += 1
    with pytest.raises(DataError, match="--allow-data-change"):
        check_same_data(context.folder, manifest, context.data, allow_change=False)
    check_same_data(context.folder, manifest, context.data, allow_change=True)


def test_a_folder_has_one_run_and_a_killed_one_is_named(tmp_path):
    script = (
        "import sys,time; from pathlib import Path; from dinocore.train.run.lock import RunLock; "
        "lock = RunLock(Path(sys.argv[1])); lock.take(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"process {other.pid}"):
        RunLock(tmp_path).take()
    other.kill()
    other.communicate()
    lock = RunLock(tmp_path)
    assert f"process {other.pid}" in lock.take()
    lock.release()
    assert RunLock(tmp_path).take() == ""
