"""Fixtures for command tests: settings of a small model, a dataset, and a finished run."""

import os
import sys
from pathlib import Path

import pytest

from dinocli import app
from dinocore.data.synthetic.sample import write_sample_data

SMALL = [
    "model.backbone=resnet18", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2",
    "model.denoising.num_pairs=20", "data.train_scales=[64]", "data.crop_chance=0.0", "data.max_size=96",
    "data.eval_scale=64", "data.workers=0",
]  # fmt: skip


@pytest.fixture(scope="session")
def settings() -> list[str]:
    """`--set` arguments for a model that trains in seconds."""
    return [part for setting in SMALL for part in ("--set", setting)]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sample_data(folder, num_images=10, seed=3, size=(96, 72))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, settings, image_folder) -> Path:
    """A finished run of one epoch."""
    root = tmp_path_factory.mktemp("project")
    argv, cwd = sys.argv, Path.cwd()
    sys.argv = ["dino", "train", "--preset", "r50-4scale", "--data", str(image_folder), "--epochs", "1",
                "--batch-size", "4", "--output-dir", str(root / "runs" / "first"), *settings]  # fmt: skip
    try:
        with pytest.raises(SystemExit, match="0"):
            app.main()
    finally:
        sys.argv = argv
        os.chdir(cwd)
    return root / "runs" / "first"
