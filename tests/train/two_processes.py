"""The script that test_distributed.py runs on each rank: an evaluation, and gradients in float64.

python two_processes.py DATA OUT CHUNK
"""

import sys
from pathlib import Path

import torch

from dinocore import load_config
from dinocore.data.dataset import open_dataset
from dinocore.system.processes import process_group
from dinocore.train.batches import step_batches
from dinocore.train.context import RunContext
from dinocore.train.ddp import wrap
from dinocore.train.evaluation import evaluate
from dinocore.train.events import Evaluated
from dinocore.train.run.metrics_log import NoLogger
from dinocore.train.setup import fresh_state
from dinocore.train.step import train_step

SETTINGS = [
    'model.backbone="timm/test_resnet"', 'model.backbone_weights="none"', "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2",
    "model.num_classes=3", "model.denoising.num_groups=3", "data.train_scales=[64]", "data.crop_chance=0.0",
    "data.max_size=96", "data.eval_scale=64", "data.workers=0", "train.batch_size=4", "train.epochs=1",
    'train.amp="off"', "train.clip_norm=0.0",
]  # fmt: skip


def main(data: str, out: Path, chunk: int) -> None:
    torch.set_num_threads(1)
    config = load_config("r50-4scale", [*SETTINGS, f'data.path="{data}"', f"train.micro_batch_size={chunk}"])
    device = torch.device("cpu")
    with process_group(device) as group:
        dataset = open_dataset(config.data)
        state = fresh_state(config, dataset.train.categories, device, group)
        context = RunContext(config, dataset, out.parent, device, group=group)
        state.progress.due_evaluation = state.progress.step = 1
        (evaluated,) = [event for event in evaluate(context, state, NoLogger()) if isinstance(event, Evaluated)]
        state.model.double()
        state.wrapped = wrap(state.model, group)
        batches = next(step_batches(dataset.train, config, device, group, 1, 1))
        grads = {}
        parameters = [(name, p) for name, p in state.model.named_parameters() if p.requires_grad]
        state.optimizer.register_step_pre_hook(
            lambda *_: grads.update((name, None if p.grad is None else p.grad.clone()) for name, p in parameters)
        )
        numbers = train_step(state, batches.micro_batches, batches.num_boxes, config, group, batches.num_denoised)
        missing = [name for name, grad in grads.items() if grad is None]
        if group.main:
            torch.save({"grads": grads, "missing": missing, "numbers": numbers, "ap": evaluated.metrics.summary}, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
