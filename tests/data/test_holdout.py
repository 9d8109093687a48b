"""Holding out training images from a dataset without a validation split."""

import numpy as np
import pytest
from PIL import Image

from dinocore.config import Config, DataConfig
from dinocore.data.annotations import Category, read_annotations
from dinocore.data.check.check import Checked, check_data
from dinocore.data.dataset import open_dataset, open_split
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError


@pytest.fixture
def folder(make_coco, tmp_path):
    """Twelve noise images: 1 and 2 are identical, 3 is slightly darker, and only 5 and 9 contain class 2."""
    objects = {i: [(2 if i in (5, 9) else 1, 4, 4, 20, 12)] for i in range(1, 13)}
    make_coco(objects)
    for i in objects:
        seed = 1 if i in (2, 3) else i
        pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 48))
        image.point(lambda level, dim=0.99 if i == 3 else 1: level * dim).save(tmp_path / "train2017" / f"{i:04d}.png")
    return tmp_path


def names(annotations):
    return {name.decode() for name in annotations.file_names}


@pytest.mark.parametrize("fraction", [0.25, 0.4, 0.7])
def test_the_holdout_keeps_similar_images_together_and_has_every_class(folder, fraction):
    config = DataConfig(path=str(folder), val_fraction=fraction)
    data = open_dataset(config)
    assert not names(data.train) & names(data.val) and len(names(data.train) | names(data.val)) == 12
    assert len(data.val.image_ids) == round(fraction * 12)
    similar = {f"{i:04d}.png" for i in (1, 2, 3)}
    assert similar <= names(data.train) or similar <= names(data.val)
    for part in (data.train, data.val):
        assert set(part.labels.tolist()) == {0, 1} and part.starts[-1] == len(part.boxes) == len(part.image_ids)
    assert any("holding out" in note for note in data.notes)


def test_all_readers_hold_out_the_same_images(folder):
    config = DataConfig(path=str(folder), val_fraction=0.3)
    data = open_dataset(config)
    model_categories = [Category(7, "ring"), Category(1, "disc")]
    assert names(open_split(config, "val", model_categories)) == names(data.val)
    assert open_split(config, "val", model_categories).own_categories == tuple(data.val.categories)
    assert names(open_split(config, "train", None)) == names(data.train)
    assert set(open_split(config, "val", model_categories).labels.tolist()) == {0, 1}
    *_, checked = check_data(folder, Config(data=config), decode=False)
    assert isinstance(checked, Checked) and not checked.counts()["errors"]
    assert {s: p.numbers["images"] for s, p in checked.splits.items()} == {"train": 8, "val": 4}


def test_evaluation_on_training_images_is_reported_without_val_fraction(folder):
    data = open_dataset(DataConfig(path=str(folder)))
    assert data.val is data.train and any("evaluation uses the training images" in note for note in data.notes)


def test_holding_out_is_refused_if_all_images_are_duplicates(folder):
    for i in range(1, 13):
        image = Image.open(folder / "train2017" / "0001.png").copy()
        image.save(folder / "train2017" / f"{i:04d}.png")
    with pytest.raises(DataError, match="too many duplicates"):
        open_dataset(DataConfig(path=str(folder), val_fraction=0.3))
    assert len(read_annotations(find_layout(folder).train).image_ids) == 12
