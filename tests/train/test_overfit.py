"""The whole thing learns: drawn pictures by heart, under class names and ids that the starting weights don't know."""

import json

import pytest
import torch

from dinocore import load_config
from dinocore.data.dataset import open_dataset
from dinocore.data.sample import write_sample_data
from dinocore.predict import load_detector
from dinocore.train.events import Evaluated
from dinocore.train.job import Job
from dinocore.train.run import prepare_run
from dinocore.train.start import fresh_state

CLASSES = {1: (90, "red"), 2: (7, "white"), 3: (3, "plate")}


@pytest.mark.slow
def test_pictures_are_learned_by_heart_under_two_minutes(run_to_end, tmp_path):
    write_sample_data(tmp_path / "data", num_images=4, seed=11, size=(160, 120))
    (tmp_path / "data" / "annotations" / "instances_val2017.json").unlink()  # judged on the training pictures
    file = tmp_path / "data" / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in CLASSES.values()]
    for row in content["annotations"]:
        row["category_id"] = CLASSES[row["category_id"]][0]
    file.write_text(json.dumps(content))
    config = load_config("tiny", [
        f'data.path="{tmp_path}/data"', "data.train_scales=[160]", "data.eval_scale=160", "data.crop_chance=0.0",
        "data.flip=0.0", "data.workers=0", "train.batch_size=1", "train.images_per_forward=1", "train.epochs=100",
        "train.eval_every_epochs=100", "train.ema_decay=0.0", "train.warmup_steps=20", "train.clip_norm=1.0",
        "train.keep_checkpoints=1",
    ])  # fmt: skip
    data = open_dataset(config.data)
    prepare_run(tmp_path / "run", overwrite=False)
    state = fresh_state(config, data.train.categories, torch.device("cpu"))
    job = Job(config, data, tmp_path / "run", torch.device("cpu"), lambda: 0)
    (evaluated,) = (event for event in run_to_end(job, state) if isinstance(event, Evaluated))
    assert evaluated.metrics.summary["AP"] >= 0.95
    detector = load_detector(tmp_path / "run" / "best.safetensors")
    assert {category.id for category in detector.categories} == {90, 7, 3}
