"""Inspectors of real batches show the same micro-batch and images as training."""

import pytest
import torch

from dinocore.data.dataset import open_dataset
from dinocore.inspect.batch import first_batch, training_cells
from dinocore.presets import load_config
from dinocore.train.batches import micro_batch_size


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", ["auto", 1, 3, 50])
def test_the_inspected_batch_is_the_first_micro_batch_of_training(make_coco, tmp_path, monkeypatch, size, device):
    """With `auto`, a micro-batch is one image on a CPU, and the whole batch elsewhere."""
    objects = {n: [(1, 10, 5, 20, 12)] * (n % 3 + 1) for n in range(1, 9)}
    make_coco(objects)
    make_coco(objects, name="val")
    monkeypatch.setattr("dinocore.inspect.batch.pick_device", lambda _: torch.device(device))
    value = f'"{size}"' if size == "auto" else size
    overrides = [f"train.micro_batch_size={value}", "train.batch_size=4", f'data.path="{tmp_path.as_posix()}"']
    config = load_config(
        "r50-4scale",
        [*overrides, "data.workers=0", "data.max_size=64", "data.train_scales=[32]", "data.crop_chance=0.0"],
    )
    annotations = open_dataset(config.data).train
    expected = micro_batch_size(config.train, torch.device(device))
    assert expected == {"auto": 1 if device == "cpu" else 4, 1: 1, 3: 3, 50: 4}[size]
    batch = first_batch(annotations, config)
    files = [cell.file for cell in training_cells(annotations, config, 0, 1)]
    assert len(batch.targets) == expected and list(batch.files) == files[:expected] and len(files) == 4
