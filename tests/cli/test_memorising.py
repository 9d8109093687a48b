"""Training memorises a few synthetic images, whatever category and image ids the annotation file uses.

One full run trains on a file that has ids with gaps, a class without objects and Roboflow's heading, a root category
without objects. The other files differ only in their ids. Short runs on them must give bitwise identical weights, and
the memorised weights, carried over to their classes by name, must detect the same objects with their ids.
"""

import json
import shutil
from pathlib import Path

import pytest

from dinocore.config import DataConfig
from dinocore.data.dataset import open_dataset
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.model.build import build_model
from dinocore.train.transfer import carry_over
from dinocore.weights.file import load_weights, save_weights

# new names of the sample's classes; the initial weights have none of them
CLASS_NAMES = {1: "plate", 2: "white", 3: "red"}
CATEGORY_IDS = {  # id by name, in file order; sorted by id, the names have the same order in all
    "from 0": {"plate": 0, "white": 1, "red": 2},
    "from 1": {"plate": 1, "white": 2, "red": 3},
    "gaps, unsorted": {"white": 7, "plate": 3, "red": 90},
    "roboflow": {"cells": 0, "plate": 1, "white": 2, "red": 3},
    "unused, gaps, roboflow": {"white": 7, "cells": 0, "plate": 3, "nobody": 95, "red": 90},
}
SETTINGS = [
    "data.train_scales=[160]", "data.eval_scale=160", "data.crop_chance=0.0", "data.flip=0.0", "data.workers=0",
    "train.micro_batch_size=1", "train.ema_decay=0.0", "train.warmup_steps=20", "train.clip_norm=1.0",
    "train.keep_checkpoints=1",
]  # fmt: skip


def renumber(content: dict, ids: dict[str, int], shuffled: bool) -> None:
    """Change the category ids; if `shuffled`, images have descending ids, and annotations follow another order."""
    heading = {"supercategory": "cells"} if "cells" in ids else {}
    content["categories"] = [{"id": i, "name": name, **heading} for name, i in ids.items()]
    image_ids = {row["id"]: 1000 - 7 * row["id"] if shuffled else row["id"] for row in content["images"]}
    for row in content["images"]:
        row["id"] = image_ids[row["id"]]
    for row in content["annotations"]:
        row.update(image_id=image_ids[row["image_id"]], category_id=ids[CLASS_NAMES[row["category_id"]]])
    if shuffled:
        # stable, since an image's denoising noise depends on the order of its objects
        content["annotations"].sort(key=lambda row: row["image_id"])


def write_dataset(folder: Path, scheme: str) -> Path:
    """Write three images, for both training and evaluation; return the annotation file."""
    write_sample_data(folder, num_images=4, seed=11, size=(160, 120))
    (folder / "annotations" / "instances_val2017.json").unlink()
    shutil.rmtree(folder / "val2017")
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    renumber(content, CATEGORY_IDS[scheme], shuffled="gaps" in scheme)
    if "roboflow" in scheme:
        (folder / "train2017").rename(folder / "train")
        file.unlink()
        file = folder / "train" / "_annotations.coco.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def train(dino):
    def run(folder: Path, out: Path, epochs: int) -> Path:
        options = [part for setting in [*SETTINGS, f"train.eval_every_epochs={epochs}"] for part in ("--set", setting)]
        result = dino("train", "--preset", "tiny", "--weights", "cells", "--data", folder, "--output-dir", out,
                      "--epochs", epochs, "--batch-size", 1, *options)  # fmt: skip
        assert result.code == 0, result.err
        return out / "best.safetensors"

    return run


@pytest.fixture
def check_detections(dino, tmp_path):
    """Checks AP >= 0.95, and that detections scoring >= 0.5 have exactly the file's pairs of image and category id."""

    def check(weights: Path, folder: Path, file: Path) -> None:
        content = json.loads(file.read_text())
        arguments = ["--weights", weights, "--data", folder, "--split", "train", "--out", "r.json", "--json"]
        result = dino("eval", *arguments)
        assert result.code == 0 and json.loads(result.out)["AP"] >= 0.95, result
        detections = json.loads((tmp_path / "r.json").read_text())
        expected = {(row["image_id"], row["category_id"]) for row in content["annotations"]}
        assert {(d["image_id"], d["category_id"]) for d in detections if d["score"] >= 0.5} == expected
        names = {row["id"]: row["name"] for row in content["categories"]}
        assert "cells" not in {names[d["category_id"]] for d in detections}, "a heading was detected"
        image_ids = {row["file_name"]: row["id"] for row in content["images"]}
        predicted = dino("predict", folder, "--weights", weights, "--threshold", 0.5, "--json")
        items = json.loads(predicted.out)
        assert all(names[d["category_id"]] == d["label"] for item in items for d in item["detections"])
        assert expected == {
            (image_ids[Path(item["file"]).name], d["category_id"]) for item in items for d in item["detections"]
        }

    return check


@pytest.mark.slow
def test_training_images_are_memorised_and_detected_with_any_category_and_image_ids(train, check_detections, tmp_path):
    folder = tmp_path / "unused, gaps, roboflow"
    file = write_dataset(folder, folder.name)
    memorised = load_weights(train(folder, tmp_path / "run", 84))
    assert [c.id for c in memorised.categories] == [3, 7, 90, 95]
    check_detections(tmp_path / "run" / "best.safetensors", folder, file)
    first = None
    for scheme in ("from 0", "from 1", "gaps, unsorted", "roboflow"):
        folder, run = tmp_path / scheme, tmp_path / f"{scheme}, one epoch"
        file = write_dataset(folder, scheme)
        weights = load_weights(train(folder, run, 1))
        first = first or weights
        differing = [key for key, value in weights.tensors.items() if not value.equal(first.tensors[key])]
        assert not differing, (scheme, differing[:3])
        model = build_model(weights.config.model)
        categories = open_dataset(DataConfig(path=str(folder))).train.categories
        carry_over(model, memorised, categories, Path("memorised"))
        save_weights(tmp_path / "w.safetensors", model.state_dict(), weights.config, categories, {})
        check_detections(tmp_path / "w.safetensors", folder, file)
