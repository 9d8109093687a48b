"""`dino check-data` reports an error if and only if `dino train` refuses the data, with the same code."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinocore.data.annotations import Category, read_annotations
from dinocore.data.check.check import Checked, check_data
from dinocore.data.dataset import open_dataset
from dinocore.errors import DataError
from dinocore.presets import load_config

WIDTH, HEIGHT = 96, 72


def random_image(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))


def annotations_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}2017.json"


def edit(folder: Path, split: str, change: Callable[[dict[str, Any]], Any]) -> None:
    file = annotations_file(folder, split)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def first_image(folder: Path, split: str) -> Path:
    return sorted((folder / f"{split}2017").iterdir())[0]


@pytest.fixture
def coco(tmp_path) -> Path:
    """Ten training and four validation images, each with a disc and a ring."""
    folder = tmp_path / "data"
    for split, count in (("train", 10), ("val", 4)):
        (folder / f"{split}2017").mkdir(parents=True)
        for n in range(count):
            random_image(n + 100 * (split == "val")).save(folder / f"{split}2017" / f"{n}.jpg", quality=90)
        annotations_file(folder, split).parent.mkdir(exist_ok=True)
        rows = [{"id": 2 * n + k, "image_id": n, "category_id": k, "bbox": [10 + 30 * k, 20, 15, 12], "area": 180,
                 "iscrowd": 0} for n in range(count) for k in (1, 2)]  # fmt: skip
        images = [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(count)]
        categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "ring"}]
        annotations_file(folder, split).write_text(
            json.dumps({"images": images, "categories": categories, "annotations": rows})
        )
    return folder


def setter(key: str, value: Any, all_rows: bool = False) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"][: None if all_rows else 1]:
            row[key] = value

    return change


def truncate_image(folder: Path, split: str) -> None:
    path = first_image(folder, split)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_image_with_bands(folder: Path, split: str) -> None:
    content = io.BytesIO()
    np.save(content, np.zeros((HEIGHT, WIDTH, 6), np.uint8))
    first_image(folder, split).unlink()
    (folder / f"{split}2017" / "0.npy").write_bytes(content.getvalue())
    edit(folder, split, lambda d: d["images"][0].update(file_name="0.npy"))


def rename_classes(folder: Path, split: str) -> None:
    edit(folder, split, lambda d: [row.update(name=f"other {row['name']}") for row in d["categories"]])


FAULTS: dict[str, Callable[[Path, str], Any]] = {  # functions that change one split
    "none": lambda folder, split: None,
    "missing image": lambda folder, split: first_image(folder, split).unlink(),
    "not an image": lambda folder, split: first_image(folder, split).write_bytes(b"<html>not found</html>"),
    "wrong image size": lambda folder, split: random_image(7).resize((50, 40)).save(first_image(folder, split)),
    "truncated image": truncate_image,
    "six bands": replace_image_with_bands,
    "broken JSON": lambda folder, split: annotations_file(folder, split).write_text('{"images": ['),
    "no categories": lambda folder, split: edit(folder, split, lambda d: d.pop("categories")),
    "missing annotations file": lambda folder, split: annotations_file(folder, split).unlink(),
    "no objects": lambda folder, split: edit(folder, split, lambda d: d.update(annotations=[])),
    "no images": lambda folder, split: edit(folder, split, lambda d: d.update(images=[], annotations=[])),
    "all classes renamed": rename_classes,
    "one class renamed": lambda folder, split: edit(folder, split, lambda d: d["categories"][0].update(name="square")),
    "zero-width box": lambda folder, split: edit(folder, split, setter("bbox", [5, 5, 0, 9])),
    "zero-width boxes": lambda folder, split: edit(folder, split, setter("bbox", [5, 5, 0, 9], all_rows=True)),
    "box is text": lambda folder, split: edit(folder, split, setter("bbox", "5 5 9 9")),
    "NaN in a box": lambda folder, split: edit(folder, split, setter("bbox", [5, 5, float("nan"), 9])),
    "normalised boxes": lambda folder, split: edit(folder, split, setter("bbox", [0.1, 0.1, 0.2, 0.2], all_rows=True)),
    "unknown image id": lambda folder, split: edit(folder, split, setter("image_id", 4711)),
    "unknown category id": lambda folder, split: edit(folder, split, setter("category_id", 4711)),
    "duplicate id": lambda folder, split: edit(folder, split, setter("id", 3)),
    "path escape": lambda folder, split: edit(folder, split, lambda d: d["images"][0].update(file_name="../a.jpg")),
    "image id is text": lambda folder, split: edit(folder, split, lambda d: d["images"][0].update(id="x")),
}


def reported_and_raised(folder: Path, *settings: str) -> tuple[set[str], str]:
    """Codes of the errors that check-data reports, and of the error that `open_dataset` raises, or an empty string."""
    config = load_config("tiny", [f'data.path="{folder}"', "data.workers=0", *settings])
    try:
        *_, checked = check_data(folder, config, decode=False)
        assert isinstance(checked, Checked)
        errors = {finding.code for _, finding in checked.findings() if finding.level == "error"}
        errors |= set() if checked.layout.trainable else {"DATA-SPLIT"}
    except DataError as error:
        errors = {error.code}
    try:
        open_dataset(config.data)
        return errors, ""
    except DataError as error:
        return errors, error.code


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", FAULTS)
def test_check_data_and_train_agree_on_a_fault_in_a_split(coco, fault, split):
    FAULTS[fault](coco, split)
    errors, raised = reported_and_raised(coco)
    assert (raised in errors) if raised else not errors


def yolo(
    folder: Path, lines: str = "0 0.5 0.5 0.25 0.5\n", yaml: str = "train: images/train\nval: images/val\n"
) -> None:
    for split in ("train", "val"):
        for n in range(12):
            path = folder / "images" / split / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            random_image(n + 100 * (split == "val")).save(path)
            label = folder / "labels" / split / f"{n}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(lines)
    (folder / "data.yaml").write_text(f"{yaml}names: [disc, ring]\n")


def csv_table(folder: Path) -> None:
    """A CSV table whose second row has an invalid box."""
    yolo(folder)
    shutil.rmtree(folder / "labels")
    (folder / "data.yaml").unlink()
    rows = "filename,xmin,ymin,xmax,ymax,class\n0.jpg,1,1,9,9,disc\n1.jpg,x,1,9,9,disc\n"
    (folder / "train.csv").write_text(rows)


OTHER_FORMATS: dict[str, Callable[[Path], Any]] = {
    "yolo": yolo,
    "yolo, confidences": lambda folder: yolo(folder, "0 0.5 0.5 0.25 0.5 0.93\n"),
    "yolo, unknown class": lambda folder: yolo(folder, "7 0.5 0.5 0.25 0.5\n"),
    "yolo, corners": lambda folder: yolo(folder, "0 0.5 0.5 0.95 0.9\n0 0.1 0.5 0.95 0.9\n"),
    "yolo, keypoints or polygon": lambda folder: yolo(folder, "0 0.5 0.5 0.5 0.5 0.4 0.4 0.6 0.6\n"),
    "yolo, no labels": lambda folder: (yolo(folder), shutil.rmtree(folder / "labels")),
    "yolo, train as val": lambda folder: yolo(folder, yaml="train: images/train\nval: images/train\n"),
    "yolo, typo": lambda folder: yolo(folder, yaml="train: images/train\nval: images/vla\n"),
    "yolo, missing folder": lambda folder: yolo(folder, yaml="train: images/tarin\nval: images/val\n"),
    "empty folder": lambda folder: folder.mkdir(),
    "csv": csv_table,
}  # fmt: skip


@pytest.mark.parametrize("settings", [(), ("data.val_fraction=0.3",)])
@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_check_data_and_train_agree_on_other_formats(tmp_path, name, settings):
    OTHER_FORMATS[name](tmp_path / "data")
    errors, raised = reported_and_raised(tmp_path / "data", *settings)
    assert (raised in errors) if raised else not errors


def test_merging_val_classes_with_the_same_name_is_reported(make_coco):
    split = make_coco(categories={1: "disc", 2: "ring", 7: "disc"})
    annotations = read_annotations(split, [Category(1, "disc"), Category(2, "ring")])
    assert any("classes with the same name are merged: disc: ids 1, 7" in note for note in annotations.notes)


def test_known_classes_with_the_same_name_are_matched_by_id(make_coco):
    split = make_coco(categories={1: "ring", 2: "ring"})
    annotations = read_annotations(split, [Category(1, "ring"), Category(2, "ring")])
    expected = read_annotations(make_coco(name="val"), [Category(1, "disc"), Category(2, "ring")])
    assert annotations.labels.tolist() == expected.labels.tolist() and len(set(annotations.labels.tolist())) == 2
