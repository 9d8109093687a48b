"""Old checkpoints, and running out of memory at the end of a step."""

import pytest
import torch

from dinocore.errors import CheckpointError, EnvironmentFault, OutOfMemory
from dinocore.train.loop import train
from dinocore.train.run.checkpoint_folder import list_checkpoints
from dinocore.train.setup import resumed_state
from dinocore.train.state import Progress

CPU = torch.device("cpu")
TINY = ('model.backbone="timm/test_resnet"', "train.micro_batch_size=1", 'train.trackers="off"', "train.epochs=1")


def test_progress_of_an_older_checkpoint_is_read_under_its_new_names():
    progress = Progress(step=9, overflows=3)
    progress.restore({"step": 4, "worse": 2, "left_out": [3], "best_ap": 0.25, "a": "name of another version"})
    assert progress == Progress(step=4, evals_since_best=2, skipped_steps=[3], best_ap=0.25)


def test_a_checkpoint_with_a_sharded_optimizer_is_refused_with_the_command_to_use(small_config, start, run_to_end):
    config = small_config(*TINY)
    context, state = start(config)
    run_to_end(context, state)
    newest = list_checkpoints(context.folder / "checkpoints")[-1]
    (newest / "optimizer.pt").rename(newest / ".metadata")
    with pytest.raises(CheckpointError, match=r"fsdp2, .*--weights \S+step-00000004/model\.safetensors"):
        resumed_state(newest, config, CPU)


def test_running_out_of_memory_during_the_update_does_not_repeat_the_step(small_config, start, monkeypatch):
    """The second step is not saved, because its weights may be updated in part."""
    context, state = start(small_config(*TINY, 'train.on_out_of_memory="halve"', "train.save_every_steps=1"))
    steps = []

    def update(model):
        steps.append(1)
        if len(steps) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(state.ema, "update", update)
    with pytest.raises(EnvironmentFault, match="earlier checkpoints are intact") as error:
        list(train(context, state))
    assert not isinstance(error.value, OutOfMemory)
    assert [path.name for path in list_checkpoints(context.folder / "checkpoints")] == ["step-00000001"]
