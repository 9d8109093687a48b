"""Faults in docs/reliability.md that no other test covers."""

import errno
import multiprocessing
import os
import resource
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dinocore.data.loaders import TrainingImages
from dinocore.errors import CheckpointError, ConfigError, DataError, DivergedError, EnvironmentFault
from dinocore.evaluate.coco import Metrics
from dinocore.system.processes import SingleProcess
from dinocore.train import batches as feeding
from dinocore.train import evaluation, step
from dinocore.train.dry_run import dry_run
from dinocore.train.events import Evaluated, Finished, Saved, Step, Warned
from dinocore.train.failures import classify as faults
from dinocore.train.loop import train
from dinocore.train.run.checkpoint_folder import list_checkpoints, step_of
from dinocore.train.run.folder import branch_off, find_checkpoint
from dinocore.train.run.metrics_log import MetricsLog, MetricsLogger
from dinocore.train.run.sinks import MAX_WAITING, BackgroundWriter
from dinocore.train.setup import changed_settings, check_same_data, resumed_state
from dinocore.train.state import Progress, load_checkpoint, rng_state, save_checkpoint
from dinocore.weights.file import cast_note, load_exactly
from dinocore.weights.shipped import BUNDLED

CPU = torch.device("cpu")
TINY = ('model.backbone="timm/test_resnet"', "train.micro_batch_size=1", 'train.trackers="off"')


def messages_of(events):
    return [event.message for event in events if isinstance(event, Warned)]


# K: checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resuming_with_other_classes_is_refused(small_config, start):
    context, _ = start(small_config(*TINY))
    with pytest.raises(CheckpointError, match=r"the run has the classes RBC, .* --weights runs/one"):
        check_same_data(Path("runs/one"), {"classes": [[1, "RBC"], [2, "WBC"]]}, context.data, allow_change=True)


def test_half_precision_weights_are_cast_and_reported_and_integers_are_refused():
    layer = torch.nn.Linear(2, 2)
    half = {key: value.half() for key, value in layer.state_dict().items()}
    load_exactly(layer, half, Path("w"))
    assert layer.weight.dtype == torch.float32 and torch.equal(layer.weight.half(), half["weight"])
    assert cast_note(half, Path("w")) == "its float16 numbers become float32"
    assert cast_note(layer.state_dict(), Path("w")) == cast_note(half, BUNDLED) == ""
    with pytest.raises(CheckpointError, match="holds int8 numbers in weight where the model has floats"):
        load_exactly(layer, half | {"weight": torch.ones(2, 2, dtype=torch.int8)}, Path("w"))


def test_missing_tensors_and_other_shapes_are_refused_with_their_number():
    layer = torch.nn.Linear(2, 2)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"2 of 2 tensors differ, such as bias \(missing in the file"):
        load_exactly(layer, {"weight": torch.zeros(3, 2)}, Path("w"))
    with pytest.raises(CheckpointError, match="4 of 4 tensors differ"):
        load_exactly(layer, {f"net.{key}": value for key, value in before.items()}, Path("w"))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.slow
def test_a_checkpoint_from_a_gpu_opens_on_a_cpu(small_config, start, run_to_end, monkeypatch, outcome):
    """The checkpoint's storages are marked as CUDA's, and it has the RNG state of a GPU."""
    config = small_config(*TINY, "train.epochs=1")
    context, state = start(config)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        patch.setattr("dinocore.train.checkpointer.rng_state", lambda: rng_state() | {"cuda": torch.zeros(16).byte()})
        run_to_end(context, state)
    newest = list_checkpoints(context.folder / "checkpoints")[-1]
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(newest / "optimizer.pt", weights_only=True)
    resumed = resumed_state(newest, config, CPU)
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), resumed.model.parameters(), strict=True))
    assert resumed.progress.step == 4 and len(resumed.optimizer.state) == len(state.optimizer.state)


@pytest.mark.slow
def test_each_rank_restores_its_rng_state_and_new_ranks_get_their_own(small_config, start):
    context, state = start(small_config(*TINY))
    streams = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        streams.append(rng_state())
    state.progress.origin = ""
    folder = context.folder / "checkpoints"
    path = save_checkpoint(folder, state, context.config, context.data.train.categories, streams)

    def random_numbers(rank):
        load_checkpoint(path, state, rank, seed=0)
        return torch.rand(4).tolist()

    by_rank = [random_numbers(rank) for rank in range(4)]
    for rank, seed in enumerate((1, 2)):
        torch.manual_seed(seed)
        assert by_rank[rank] == torch.rand(4).tolist()
    assert len({tuple(numbers) for numbers in by_rank}) == 4 and by_rank == [random_numbers(rank) for rank in range(4)]


@pytest.mark.slow
def test_a_nan_metric_is_never_the_best(small_config, start):
    context, state = start(small_config(*TINY))
    metrics = Metrics({"AP": float("nan")}, {}, 2, "")
    assert list(evaluation._keep_if_best(context, state, metrics, 1, [])) == []
    assert not list(context.folder.glob("best*")) and state.progress.best_step == 0


@pytest.mark.slow
def test_the_checkpoint_that_a_run_resumed_from_is_not_pruned(small_config, start, run_to_end):
    context, state = start(small_config(*TINY, "train.save_every_steps=3", "train.keep_checkpoints=9"))
    run_to_end(context, state)
    origin = context.folder / "checkpoints" / "step-00000006"  # mid-epoch, so it is not the best one
    find_checkpoint(context.folder, str(origin))
    branch_off(context.folder, origin)
    config = small_config(*TINY, "train.epochs=3", "train.save_every_steps=1", "train.keep_checkpoints=1")
    saved = []
    for event in train(context._replace(config=config), resumed_state(origin, config, CPU)):
        if isinstance(event, Saved):
            saved.append(event.step)
            remaining = {step_of(path) for path in list_checkpoints(context.folder / "checkpoints")}
            assert {6, event.step} <= remaining and len(remaining) <= 3  # the third is the best one
    assert saved[-1] == 12


@pytest.mark.slow
def test_setting_the_clock_back_does_not_affect_checkpoints_or_which_is_newest(small_config, start, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    context, state = start(small_config(*TINY, "train.epochs=1", "train.save_every_minutes=1e-9"))
    saved = []
    for event in train(context, state):
        if isinstance(event, Saved):
            saved.append(event.step)
            for path in (*event.path.iterdir(), event.path):
                os.utime(path, (next(clock),) * 2)
    assert sorted(set(saved)) == [1, 2, 3, 4]
    newest, warnings = find_checkpoint(context.folder, "auto")
    assert (newest.name, warnings) == ("step-00000004", [])


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_fails_saves_and_ends_with_a_one_line_error(small_config, start, monkeypatch):
    context, state = start(small_config(*TINY, "train.save_every_steps=3"))

    def deny(call):
        def denied(path, *arguments, **keywords):
            if str(path).startswith(str(context.folder)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return call(path, *arguments, **keywords)

        return denied

    events = []
    with pytest.raises(EnvironmentFault, match="Read-only file system; earlier checkpoints are intact; free") as error:
        for event in train(context, state):
            events.append(event)
            if isinstance(event, Saved):
                for name in ("mkdir", "open", "rename", "replace", "unlink", "rmdir"):
                    monkeypatch.setattr(os, name, deny(getattr(os, name)))
    monkeypatch.undo()
    assert error.value.exit_code == 5 and "\n" not in str(error.value) and state.progress.step == 8
    assert any("Read-only file system" in text and text.endswith("training continues") for text in messages_of(events))
    assert find_checkpoint(context.folder, "auto")[0].name == "step-00000003"


# T: training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_twenty_consecutive_fp16_overflows_end_the_run(small_config, start):
    context, state = start(small_config(*TINY, 'train.amp="fp16"', "train.epochs=9"))
    state.model.neck.project[0][0].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.clone() for p in state.model.parameters()]
    with pytest.raises(DivergedError, match="gradients overflowed fp16 20 times in a row, up to step 20"):
        list(train(context, state))
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    assert state.scaler.get_scale() == 65536 / 2**20


@pytest.mark.slow
def test_a_host_out_of_memory_is_reported_and_the_previous_steps_are_saved(small_config, start, monkeypatch):
    original, calls = feeding._next, []

    def next_batches(batches):
        micro_batches, fault = original(batches)
        calls.append(1)
        if len(calls) < 3:
            return micro_batches, fault
        images, padding = torch.zeros(1, 3, 4096, 4096, dtype=torch.uint8), torch.zeros(1, 4096, 4096).bool()
        return [batch._replace(images=images, padding=padding) for batch in micro_batches], fault

    monkeypatch.setattr(feeding, "_next", next_batches)
    context, state = start(small_config("train.micro_batch_size=1", 'train.trackers="off"'))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 900 * 2**20, limits[1]))
    try:
        with pytest.raises(EnvironmentFault, match=r"out of memory .* 4096 x 4096") as error:
            list(train(context, state))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert error.value.exit_code == 5
    assert [path.name for path in list_checkpoints(context.folder / "checkpoints")] == ["step-00000002"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_read_error_is_reported_with_the_image_and_the_state_is_saved(workers, small_config, start, monkeypatch):
    context, state = start(small_config(*TINY, f"data.workers={workers}"))
    original, image_name = TrainingImages._read, str(context.data.train.path(3).name)

    def fail(image_folder, epoch, index):
        if (epoch, index) == (1, 3):
            raise ValueError("odd,\nvery")
        return original(image_folder, epoch, index)

    monkeypatch.setattr(TrainingImages, "_read", fail)
    warning = rf"reading \S+{image_name} \(number 3, epoch 1\) failed: ValueError: odd, very; remove the image"
    with pytest.raises(DataError, match=warning) as error:
        list(train(context, state))
    assert "\n" not in str(error.value) and "Caught" not in str(error.value)
    assert not multiprocessing.active_children(), "no worker is left"
    assert step_of(list_checkpoints(context.folder / "checkpoints")[-1]) == state.progress.step >= 4


def test_too_little_shared_memory_is_reported_before_the_first_step(small_config, monkeypatch):
    monkeypatch.setattr(faults.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    assert "--ipc=host" in faults.check_shared_memory(small_config(), 2)
    assert faults.check_shared_memory(small_config(), 0) == "", "without workers, no memory is shared"
    monkeypatch.setattr(faults.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    assert faults.check_shared_memory(small_config(), 2) == ""


class OtherRankDiffers(SingleProcess):
    """Rank 0 of two; rank 1 has other data."""

    size = 2

    def gather(self, value):
        return [value, (value[0], "other data")]


def test_ranks_with_different_data_end_before_the_first_step(small_config, start):
    context, state = start(small_config(*TINY))
    with pytest.raises(ConfigError, match=r"ranks \[1\] have different settings or data from rank 0"):
        list(train(context._replace(group=OtherRankDiffers()), state))
    assert state.progress.step == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["coco_metrics", "detect_all"])
def test_a_failed_evaluation_is_reported_and_counted_and_the_next_one_runs(part, small_config, start, monkeypatch):
    original, calls = getattr(evaluation, part), []

    def fail_first(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand more")
        return original(*arguments)

    def image_generator(*arguments):
        yield from fail_first(*arguments)

    monkeypatch.setattr(evaluation, part, image_generator if part == "detect_all" else fail_first)
    context, state = start(small_config(*TINY))
    events = list(train(context, state))
    expected = "the evaluation after epoch 1 failed (RuntimeError: DefaultCPUAllocator: can't allocate memory), 1 of"
    assert [text.startswith(expected) for text in messages_of(events)] == [True]
    assert [event.epoch for event in events if isinstance(event, Evaluated)] == [2]
    assert sum(isinstance(event, Step) for event in events) == 8 and isinstance(events[-1], Finished)
    assert state.progress.failed_evaluations == 1 and state.model.training


class FailingSink:
    """A sink that fails at its second row."""

    place = ""

    def __init__(self):
        self.rows = []

    def write(self, row):
        self.rows.append(row)
        if len(self.rows) == 2:
            raise ConnectionError("no network")

    def close(self, completed):
        pass


def test_a_failing_sink_is_reported_once_and_gets_no_more_rows(tmp_path):
    sink = FailingSink()
    writer = BackgroundWriter("Broken", lambda: sink)
    logger = MetricsLogger(MetricsLog(tmp_path, Progress()), [writer])
    warnings = []
    for step_number in range(5):
        warnings += logger.add({"step": step_number})
        if step_number == 1:
            writer.thread.join(10)
    assert warnings == ["Broken failed (ConnectionError: no network) and is switched off; the run continues"]
    assert len(sink.rows) == 2 and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    logger.close()


def test_a_hanging_sink_does_not_delay_training(tmp_path):
    never_set = threading.Event()
    writer = BackgroundWriter("Slow", lambda: SimpleNamespace(place="", write=lambda row: never_set.wait(60)))
    logger, start_time = MetricsLogger(MetricsLog(tmp_path, Progress()), [writer]), time.monotonic()
    warnings = [text for step_number in range(MAX_WAITING + 10) for text in logger.add({"step": step_number})]
    logger.close()
    assert time.monotonic() - start_time < 5, "logging does not wait for the sink"
    assert warnings == ["Slow is too slow and misses lines of metrics.jsonl; the run continues"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == MAX_WAITING + 10
    never_set.set()


def test_changes_in_a_resumed_run_are_reported_or_refused(small_config):
    before = small_config()
    changes = changed_settings(Path("runs/one"), before, small_config("train.lr=0.5", "train.epochs=7"))
    assert sorted(changes) == ["train.epochs from 2 to 7", "train.lr from 0.0001 to 0.5"]
    with pytest.raises(ConfigError, match=r"cannot change train\.batch_size = 4 \(it is 2\).* --weights runs/one"):
        changed_settings(Path("runs/one"), before, small_config("train.batch_size=4"))


@pytest.mark.slow
def test_a_nondeterministic_operation_is_reported(small_config, start, monkeypatch):
    original = step.forward

    def forward(*arguments):
        torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))  # not deterministic on CPUs
        return original(*arguments)

    monkeypatch.setattr(step, "forward", forward)
    context, state = start(small_config(*TINY, "train.deterministic=true"))
    with pytest.raises(
        EnvironmentFault, match="deterministically: put_ has no deterministic implementation; train without"
    ) as error:
        list(train(context, state))
    assert error.value.exit_code == 5 and not torch.are_deterministic_algorithms_enabled()
    context, state = start(small_config(*TINY, "train.epochs=1"), "usual")
    assert isinstance(list(train(context, state))[-1], Finished), "it is refused only with train.deterministic"


def test_a_dry_run_reports_a_nondeterministic_operation(small_config, start, monkeypatch):
    original = step.forward

    def forward(*arguments):
        torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))
        return original(*arguments)

    monkeypatch.setattr(step, "forward", forward)
    context, state = start(small_config(*TINY, "train.deterministic=true"))
    with pytest.raises(EnvironmentFault, match="deterministically: put_ has no deterministic implementation"):
        dry_run(context, state)


# P: prediction -----------------------------------------------------------------------------------------------------


def test_an_evaluation_without_detections_has_an_ap_of_0(make_coco):
    from dinocore.data.annotations import read_annotations
    from dinocore.evaluate.coco import coco_metrics

    assert coco_metrics(read_annotations(make_coco()), []).summary["AP"] == 0.0


def test_nan_predictions_are_an_error_instead_of_no_detections():
    from dinocore.predict import Detector
    from dinocore.structures import Predictions

    predictions = Predictions(torch.full((1, 2, 3), torch.nan), torch.rand(1, 2, 4))
    with pytest.raises(DivergedError, match="not finite") as error:
        Detector.select(object(), predictions, [(10, 10)])
    assert error.value.exit_code == 6
