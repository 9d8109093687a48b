"""The script that tests run as each of several ranks: training, with a fault on one rank.

python faulty_processes.py RUN FAULT RANK STEP

The settings are read from RUN/config.toml. Each rank writes its warnings or its error to RUN/messages-RANK.json.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from dinocore.data.dataset import open_dataset
from dinocore.errors import DinoError
from dinocore.system.processes import SingleProcess, process_group
from dinocore.train import ddp, evaluation, step
from dinocore.train.context import RunContext
from dinocore.train.events import Warned
from dinocore.train.loop import train
from dinocore.train.run.checkpoint_folder import list_checkpoints
from dinocore.train.run.folder import run_config
from dinocore.train.run.metrics_log import MetricsLog
from dinocore.train.setup import fresh_state, resumed_state
from dinocore.train.state import TrainState

CPU = torch.device("cpu")


def forward(state: TrainState, at: int) -> None:
    """Run out of memory in the second forward pass of the step."""
    original, calls = step.forward, []

    def fail(*arguments):
        calls.extend([1] * (state.progress.step == at - 1))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return original(*arguments)

    step.forward = fail


def backward(state: TrainState, at: int, after: str = "encoder.layers.0.ffn.net.0.weight") -> None:
    """Run out of memory in the middle of the step's second backward pass, when some gradients are computed."""
    calls = []

    def hook(gradient):
        calls.extend([1] * (state.progress.step == at - 1))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    state.model.get_parameter(after).register_hook(hook)


def nan(state: TrainState, at: int) -> None:
    """Set a pixel of the step's second micro-batch to NaN."""
    original, calls = step.forward, []

    def forward_nan(model, batch, *rest):
        calls.extend([1] * (state.progress.step == at - 1))
        if len(calls) == 2:
            images = batch.images.float()
            images[0, 0, 3, 3] = torch.nan
            batch = batch._replace(images=images)
        return original(model, batch, *rest)

    step.forward = forward_nan


def fail_first_call(owner: object, name: str, state: TrainState, at: int) -> None:
    """Make the first call of a function fail."""
    original, calls = getattr(owner, name), []

    def fail(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return original(*arguments, **keywords)

    setattr(owner, name, fail)


FAULTS = {
    "none": lambda state, at: None,
    "signal": lambda state, at: None,
    "double": lambda state, at: None,
    "forward": forward,
    "nan": nan,
    "backward": backward,
    "last": partial(backward, after="backbone.body.layer1.0.conv1.weight"),
    "detect": partial(fail_first_call, evaluation, "detect_all"),
    "detector": partial(fail_first_call, evaluation, "Detector"),
    "metrics": partial(fail_first_call, evaluation, "coco_metrics"),
    "examples": partial(fail_first_call, evaluation, "save_examples"),
    "best": partial(fail_first_call, evaluation, "save_best"),
    "log": partial(fail_first_call, MetricsLog, "add"),
}


def run(group: SingleProcess, folder: Path, fault: str, rank: int, at: int) -> list[str]:
    """Train, and return the warnings."""
    torch.set_num_threads(1)
    if fault == "double":  # not a fault, but training in float64
        torch.set_default_dtype(torch.float64)
    config = run_config(folder)
    data = open_dataset(config.data)
    if checkpoints := list_checkpoints(folder / "checkpoints"):
        state = resumed_state(checkpoints[-1], config, CPU, group)
    else:
        state = fresh_state(config, data.train.categories, CPU, group)
    if group.rank == rank:
        FAULTS[fault](state, at)
    requested = fault == "signal" and group.rank == rank
    context = RunContext(config, data, folder, CPU, lambda: 143 * (requested and state.progress.step == at), group)
    return [event.message for event in train(context, state) if isinstance(event, Warned)]


def main(folder: Path, fault: str, rank: int, at: int) -> int:
    ddp.BUCKET_MB = 0.01  # so that the gradients of a small model need many buckets
    code, messages, own_rank = 0, [], 0
    try:
        with process_group(CPU) as group:
            own_rank = group.rank
            messages = run(group, folder, fault, rank, at)
    except DinoError as error:
        code, messages = error.exit_code, [str(error)]
    (folder / f"messages-{own_rank}.json").write_text(json.dumps(messages))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
