"""Training and detection on a GPU equal those on the CPU; without a GPU, the CPU is compared with itself."""

import itertools

import numpy as np
import pytest
import torch

from dinocore.data.dataset import open_dataset
from dinocore.errors import EnvironmentFault
from dinocore.predict import Detector
from dinocore.system.device import pick_device
from dinocore.system.processes import process_group
from dinocore.train.context import RunContext
from dinocore.train.events import Finished, Step
from dinocore.train.loop import train
from dinocore.train.run.checkpoint_folder import list_checkpoints
from dinocore.train.run.folder import prepare_run, write_config
from dinocore.train.setup import fresh_state, resumed_state

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


@pytest.fixture
def start_on(small_config, tmp_path):
    def make(device, name, *settings, stop=lambda: 0):
        config = small_config("model.dropout=0.0", *settings)
        prepare_run(tmp_path / name, overwrite=False)
        write_config(tmp_path / name, config)
        data = open_dataset(config.data)
        state = fresh_state(config, data.train.categories, torch.device(device))
        return RunContext(config, data, tmp_path / name, torch.device(device), stop), state

    return make


def losses(context, state, steps):
    events = (event for event in train(context, state) if isinstance(event, Step))
    return [event.numbers["loss"] for event in itertools.islice(events, steps)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_steps_have_the_losses_of_the_cpu(start_on, device):
    expected = losses(*start_on("cpu", "a"), steps=3)
    assert losses(*start_on(device, "b"), steps=3) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("device", "amp"),
    [("cpu", "bf16"), *(pytest.param("cuda", amp, marks=NEEDS_GPU) for amp in ("bf16", "fp16"))],
)
def test_half_precision_starts_with_losses_close_to_those_of_float32(start_on, device, amp):
    expected = losses(*start_on("cpu", "a"), steps=1)
    assert losses(*start_on(device, "b", f'train.amp="{amp}"'), steps=1) == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_run(start_on, device):
    settings = ("train.deterministic=true",) if device == "cuda" else ()
    uninterrupted = losses(*start_on(device, "uninterrupted", *settings), steps=99)
    requested = iter([0, 0, 0, 0, 143])
    context, state = start_on(device, "interrupted", *settings, stop=lambda: next(requested, 143))
    before = []
    with pytest.raises(Exception, match="interrupted"):
        before += (event.numbers["loss"] for event in train(context, state) if isinstance(event, Step))
    config, newest = context.config, list_checkpoints(context.folder / "checkpoints")[-1]
    resumed = context._replace(stop=lambda: 0)
    events = list(train(resumed, resumed_state(newest, config, torch.device(device))))
    after = [event.numbers["loss"] for event in events if isinstance(event, Step)]
    assert isinstance(events[-1], Finished)
    assert 0 < len(after) < len(uninterrupted)
    assert uninterrupted[-len(after) :] == after


@pytest.mark.parametrize("device", DEVICES)
def test_detections_equal_those_on_the_cpu(small_config, device):
    from dinocore.data.annotations import Category
    from dinocore.model.build import build_model

    config = small_config()
    torch.manual_seed(1)
    model = build_model(config.model)
    categories = [Category(k, str(k)) for k in range(1, 4)]
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    actual = Detector(model, config, categories, torch.device(device), "off")(image)
    expected = Detector(model, config, categories, torch.device("cpu"), "off")(image)
    torch.testing.assert_close(actual.scores, expected.scores, atol=1e-4, rtol=0)
    nearest = torch.cdist(actual.boxes_xyxy, expected.boxes_xyxy, p=float("inf")).min(dim=1).values
    assert nearest.max() < 0.05, "difference in pixels"


def test_cuda_without_an_index_is_the_current_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current_devices = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current_devices.append, raising=False)
    with process_group(pick_device("cuda")):
        assert current_devices == [0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with process_group(pick_device("cuda")):
        assert current_devices == [0, 1]
    with pytest.raises(EnvironmentFault, match="no device `cuda:2` here; available: cpu, cuda:0, cuda:1"):
        pick_device("cuda:2")
