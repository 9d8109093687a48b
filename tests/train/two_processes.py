"""What tests/train/test_distributed.py runs in each process: gradients and an evaluation, in float64.

python two_processes.py DATA OUT CHUNK
"""

import sys
from pathlib import Path

import torch

from dinocore import load_config
from dinocore.data.dataset import open_dataset
from dinocore.data.loaders import steps_per_epoch
from dinocore.system.processes import joined
from dinocore.train.batches import feed
from dinocore.train.ddp import shared
from dinocore.train.evaluation import evaluate
from dinocore.train.events import Evaluated
from dinocore.train.job import Job
from dinocore.train.run.metrics_log import NoJournal
from dinocore.train.schedule import Plan
from dinocore.train.setup import fresh_state
from dinocore.train.step import gradients

SETTINGS = [
    'model.backbone="timm/test_resnet"', 'model.backbone_weights="none"', "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2",
    "model.num_classes=3", "model.denoising.num_groups=3", "data.train_scales=[64]", "data.crop_chance=0.0",
    "data.max_size=96", "data.eval_scale=64", "data.workers=0", "train.batch_size=4", "train.epochs=1",
    'train.amp="off"', "train.clip_norm=0.0",
]  # fmt: skip


def main(data: str, out: Path, chunk: int) -> None:
    torch.set_num_threads(1)
    config = load_config("r50-4scale", [*SETTINGS, f'data.path="{data}"', f"train.images_per_forward={chunk}"])
    device = torch.device("cpu")
    with joined(device) as group:
        found = open_dataset(config.data)
        state = fresh_state(config, found.train.categories, device, group)
        job = Job(config, found, out.parent, device, group=group)
        state.progress["due_evaluation"] = state.progress["step"] = 1
        (told,) = [event for event in evaluate(job, state, NoJournal()) if isinstance(event, Evaluated)]
        state.model.double()
        state = state._replace(parallel=shared(state.model, group))
        fed = next(feed(job, Plan(steps_per_epoch(len(found.train.image_ids), 4), config.train), 0))
        numbers = gradients(state, fed.batches, job, fed.num_boxes)
        grads = {name: p.grad for name, p in state.model.named_parameters() if p.requires_grad}
        missing = [name for name, grad in grads.items() if grad is None]
        if group.main:
            torch.save({"grads": grads, "missing": missing, "numbers": numbers, "ap": told.metrics.summary}, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
