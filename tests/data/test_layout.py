"""Finding the annotations and images in a data folder, and opening them as a dataset."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data.annotations import Category, read_annotations
from dinocore.data.dataset import open_dataset, open_split, sample_folder
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError

DOCUMENT = {
    "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}],
    "categories": [{"id": 4, "name": "disc"}],
    "annotations": [{"image_id": 1, "category_id": 4, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}],
}


def error_message(function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    assert caught.value.exit_code == 3
    return str(caught.value)


def put(root: Path, *names: str, document=DOCUMENT):
    """Write annotations for names that end in .json, and a 32 x 24 image for the others."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(document))
        else:
            Image.new("RGB", (32, 24)).save(path)


@pytest.mark.parametrize(
    ("kind", "train", "val"),
    [
        ("COCO", ("annotations/instances_train2017.json", "train2017/a.png"),
         ("annotations/instances_val2017.json", "val2017/a.png")),
        ("COCO", ("annotations/instances_train.json", "images/train/a.png"),
         ("annotations/instances_val.json", "images/val/a.png")),
        ("COCO", ("annotations/instances_train2014.json", "images/train2014/a.png"),
         ("annotations/instances_val2014.json", "images/val2014/a.png")),
        ("Roboflow COCO", ("train/_annotations.coco.json", "train/a.png"),
         ("valid/_annotations.coco.json", "valid/a.png")),
        ("Roboflow COCO", ("train/_annotations.coco.json", "train/a.png"),
         ("test/_annotations.coco.json", "test/a.png")),
        ("plain COCO", ("train.json", "train/a.png"), ("val.json", "val/a.png")),
        ("Roboflow COCO", ("train/_annotations.coco.json", "train/a.png"),
         ("validation/_annotations.coco.json", "validation/a.png")),
        ("COCO, a folder for each split", ("train/annotations.json", "train/images/a.png"),
         ("val/annotations.json", "val/images/a.png")),
        ("COCO", ("annotations/instances_train.json", "train/a.png"),
         ("annotations/instances_validation.json", "validation/a.png")),
        ("COCO", ("annotations/instances_default.json", "images/default/a.png"), None),
        ("plain COCO", ("annotations/train.json", "images/train/a.png"), ("annotations/val.json", "images/val/a.png")),
        ("plain COCO", ("train.json", "train/a.png"), ("valid.json", "valid/a.png")),
        ("plain COCO", ("train_annotations.json", "images/a.png"), ("test_annotations.json", "images/a.png")),
        ("plain COCO", ("labels.json", "data/a.png"), None),
        ("plain COCO", ("annotations.json", "a.png"), None),
        ("plain COCO", ("annotations.json", "images/a.png"), None),
        ("plain COCO", ("whatever.json", "images/a.png"), None),
        ("plain COCO", ("_annotations.coco.json", "a.png"), None),
    ],
)  # fmt: skip
def test_a_layout_is_recognised_by_its_files(tmp_path, kind, train, val):
    put(tmp_path, *train, *(val or ()))
    layout = find_layout(tmp_path)
    assert layout.kind == kind and layout.train.annotations == tmp_path / train[0]
    assert read_annotations(layout.train).path(0) == tmp_path / train[1]
    if val is None:
        assert layout.val is None
    else:
        assert layout.val.annotations == tmp_path / val[0]
        assert read_annotations(layout.val).path(0) == tmp_path / val[1]


def test_other_annotation_files_beside_the_instances_are_ignored(tmp_path):
    put(tmp_path, "annotations/instances_train2017.json", "annotations/captions_train2017.json",
        "annotations/person_keypoints_val2017.json", "train2017/a.png")  # fmt: skip
    layout = find_layout(tmp_path)
    assert layout.train.annotations.name == "instances_train2017.json" and layout.val is None


def test_a_dataset_with_only_a_validation_split_is_evaluated_but_not_trained_on(tmp_path):
    put(tmp_path, "annotations/instances_val2017.json", "val2017/a.png")
    layout = find_layout(tmp_path)
    assert layout.train == layout.val and list(layout.splits()) == ["val"]
    assert len(open_split(DataConfig(path=str(tmp_path)), "val", None).boxes) == 1
    assert "has no training split" in error_message(open_dataset, DataConfig(path=str(tmp_path)))


def test_several_annotation_files_for_one_split_are_refused(tmp_path):
    put(tmp_path, "annotations/instances_train2014.json", "annotations/instances_train2017.json")
    message = error_message(find_layout, tmp_path)
    assert "instances_train2014.json, instances_train2017.json" in message and "leave one" in message
    plain = tmp_path / "plain"
    put(plain, "x.json", "y.json")
    assert "x.json, y.json" in error_message(find_layout, plain)
    put(plain, "annotations.json")
    assert find_layout(plain).train.annotations.name == "annotations.json"


def test_a_missing_folder_a_file_and_an_empty_folder_are_refused(tmp_path):
    assert f"the data folder {tmp_path / 'none'} does not exist" in error_message(find_layout, tmp_path / "none")
    (tmp_path / "file.json").write_text("{}")
    assert "is a file; give the folder" in error_message(find_layout, tmp_path / "file.json")
    (tmp_path / "empty").mkdir()
    message = error_message(find_layout, tmp_path / "empty")
    assert (
        "no annotations found" in message
        and "_annotations.coco.json" in message
        and "instances_train2017.json" in message
    )


# opening the dataset


def test_a_dataset_reports_its_source_and_evaluation_on_training_images(tmp_path):
    put(tmp_path, "annotations.json", "a.png")
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert data.val is data.train and data.source == f"{tmp_path} (plain COCO layout)"
    assert data.notes == [
        f"{tmp_path} has no validation split; evaluation uses the training images; --val-fraction 0.2 holds out some"
    ]


def test_validation_labels_follow_the_training_classes(tmp_path):
    put(tmp_path, "train.json", "train/a.png")
    categories = [{"id": 2, "name": "star"}, {"id": 4, "name": "disc"}]
    rows = [DOCUMENT["annotations"][0] | {"category_id": category_id} for category_id in (2, 4)]
    put(tmp_path, "val.json", "val/a.png", document=DOCUMENT | {"categories": categories, "annotations": rows})
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert data.val.labels.tolist() == [-1, 0]
    assert "val.json: classes that were not trained on" in data.notes[0]


def test_a_dataset_without_objects_is_refused(tmp_path):
    put(tmp_path, "annotations.json", "a.png", document=DOCUMENT | {"annotations": []})
    assert "has 1 image but no objects to train on" in error_message(open_dataset, DataConfig(path=str(tmp_path)))


def test_a_split_is_opened_only_if_the_model_knows_one_of_its_classes(tmp_path):
    put(tmp_path, "annotations.json", "a.png")
    config = DataConfig(path=str(tmp_path))
    assert open_split(config, "train", [Category(4, "disc")]).labels.tolist() == [0]
    assert "has a class that the model knows (star)" in error_message(
        open_split, config, "train", [Category(5, "star")]
    )
    missing = error_message(open_split, config, "val", [Category(4, "disc")])
    assert "use --split train" in missing and "--set data.val_fraction=0.2" in missing
    assert "val_fraction" not in error_message(open_split, config, "test", [Category(4, "disc")])


def test_sample_images_are_cached_and_redrawn_if_incomplete(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = sample_folder(2)
    assert folder.is_relative_to(tmp_path)
    annotations = folder / "annotations" / "instances_train2017.json"
    before = annotations.stat().st_mtime_ns
    assert sample_folder(2) == folder and annotations.stat().st_mtime_ns == before
    shutil.rmtree(folder / "annotations")
    assert find_layout(sample_folder(2)).val is not None


def test_a_temporary_folder_replaces_an_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = sample_folder(1)
    assert folder.is_relative_to(tmp_path) and find_layout(folder).kind == "COCO"
