"""Inspectors of real batches show the same micro-batch and images as training."""

import pytest
import torch

from dinocore.data.dataset import open_dataset
from dinocore.inspect.batch import first_batch, training_cells
from dinocore.presets import load_config
from dinocore.train.batches import micro_batch_size


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("wanted", ["auto", 1, 3, 50])
def test_the_mask_is_that_of_trainings_own_micro_batch(make_coco, tmp_path, monkeypatch, wanted, device):
    """With `auto`, a micro-batch is one image on a CPU, and the whole batch elsewhere."""
    many = {n: [(1, 10, 5, 20, 12)] * (n % 3 + 1) for n in range(1, 9)}
    make_coco(many)
    make_coco(many, name="val")
    monkeypatch.setattr("dinocore.inspect.batch.pick_device", lambda _: torch.device(device))
    value = f'"{wanted}"' if wanted == "auto" else wanted
    overrides = [f"train.micro_batch_size={value}", "train.batch_size=4", f'data.path="{tmp_path.as_posix()}"']
    config = load_config(
        "r50-4scale",
        [*overrides, "data.workers=0", "data.max_size=64", "data.train_scales=[32]", "data.crop_chance=0.0"],
    )
    annotations = open_dataset(config.data).train
    expected = micro_batch_size(config.train, torch.device(device))
    assert expected == {"auto": 1 if device == "cpu" else 4, 1: 1, 3: 3, 50: 4}[wanted]
    batch = first_batch(annotations, config)
    shown = [cell.file for cell in training_cells(annotations, config, 0, 1)]
    assert len(batch.targets) == expected and list(batch.files) == shown[:expected] and len(shown) == 4
