"""`--batch-size auto` measures batch sizes under the conditions of training."""

from pathlib import Path

import pytest
import torch

from dinocore.data.dataset import open_dataset
from dinocore.errors import EnvironmentFault
from dinocore.model.ops import is_reference
from dinocore.system import device
from dinocore.train.context import RunContext
from dinocore.train.failures import memory
from dinocore.train.setup import fresh_state


@pytest.fixture
def start(small_config):
    def make(*settings, device_type="cpu"):
        config = small_config('train.micro_batch_size="probe"', *settings)
        data = open_dataset(config.data)
        state = fresh_state(config, data.train.categories, torch.device("cpu"))
        return RunContext(config, data, Path("run"), torch.device(device_type)), state

    return make


def active_settings():
    """Whether the reference backend, deterministic algorithms and TF32 are in use."""
    return is_reference(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (('train.amp="bf16"',), (False, False, True)),
        (("train.deterministic=true", 'train.amp="off"'), (True, True, False)),
    ],
    ids=["default", "deterministic in float32"],
)
def test_batch_sizes_are_probed_with_the_operations_used_in_training(settings, expected, start, monkeypatch):
    probed = []
    monkeypatch.setattr(device, "_without_tf32", device._WithoutTF32())  # other tests may leave training unfinished
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(memory, "largest_micro_batch", lambda *_: probed.append(active_settings()) or 1)
    before = active_settings()
    memory.with_probed_size(*start(*settings, device_type="cuda"))
    assert probed == [expected] and active_settings() == before


def test_a_nondeterministic_operation_is_reported_while_batch_sizes_are_probed(start, monkeypatch):
    def fail(*_):
        raise RuntimeError("roll_cuda does not have a deterministic implementation, but you set")

    monkeypatch.setattr(memory, "largest_pass", fail)
    with pytest.raises(
        EnvironmentFault, match=r"roll_cuda has no deterministic implementation; train without --deterministic"
    ):
        memory.with_probed_size(*start("train.deterministic=true"))
