"""The whole thing learns: a few drawn pictures by heart."""

import pytest

from dinocore.train.events import Evaluated


@pytest.mark.slow
def test_four_pictures_are_learned_by_heart(small_config, start, run_to_end, tmp_path):
    from dinocore.data.sample import write_sample_data

    write_sample_data(tmp_path / "data", num_images=5, seed=11, size=(128, 96))
    (tmp_path / "data" / "annotations" / "instances_val2017.json").unlink()  # judged on the training pictures
    config = small_config(
        f'data.path="{tmp_path}/data"', "data.train_scales=[96]", "data.eval_scale=96", "data.max_size=128",
        "data.flip=0.0", "model.hidden_dim=64", "model.ffn_dim=128", "model.num_queries=40", "model.num_levels=3",
        "model.feature_strides=[8, 16, 32]", "train.lr=1e-3", "train.backbone_lr=1e-3", "train.batch_size=4",
        "train.images_per_forward=4", "train.clip_norm=1.0", "train.epochs=260", "train.eval_every_epochs=260",
        'train.lr_schedule="cosine"', "model.frozen_stages=-1", "train.warmup_steps=10", "train.keep_checkpoints=1",
    )  # fmt: skip
    job, state = start(config)
    *_, evaluated = (event for event in run_to_end(job, state) if isinstance(event, Evaluated))
    assert evaluated.metrics.summary["AP"] >= 0.95
