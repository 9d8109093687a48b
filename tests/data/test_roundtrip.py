"""Objects are unchanged after conversion through every pair of formats, with unusual file and class names."""

import csv
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dinocore.data.annotations import read_annotations
from dinocore.data.formats.export import KINDS, write_dataset
from dinocore.data.formats.layout import find_layout

WIDTH, HEIGHT = 40, 24
ODD_STEMS = ["a", "A", "0001", "a 1", "a 0", "images", "my cell", "a.b", "été", "猫", "-1", "#1", "it's", '"q"']
ODD_STEMS += [".hidden", "._a", "a\\b", "100%25", "train", "a%20b", "a-train1", "'a'"]
FOLDERS = ["", "images/", "labels/", "sub/", "images/images/", "train/", "a b/", "@eaDir/", "Annotations/"]
ODD_CLASSES = ["yes", "no", "010", "1e3", "null", "~", "a:b", "# c", "background", "猫", "true", "1_000", "a, b"]
ODD_CLASSES += ["<b>&", " spaced ", "Cell", "cell", "- x", "{y}", "it's", '"', "x\ty", "é", "e\u0301"]

stems = st.sampled_from(ODD_STEMS) | st.text("ab .-_'é", min_size=1, max_size=4)
names = st.builds(lambda folder, stem, suffix: f"{folder}{stem}{suffix}", st.sampled_from(FOLDERS), stems,
                  st.sampled_from([".png", ".PNG", ".jpg"]))  # fmt: skip
classes = st.sampled_from(ODD_CLASSES) | st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1, max_size=5)


def cleaned(name: str) -> str:
    """A class name without control characters and repeated spaces, as the readers return it."""
    bad = [chr(c) for c in (*range(32), *range(127, 160), 0xFFFE, 0xFFFF)]
    return " ".join("".join(" " if c in bad else c for c in name).split())


@st.composite
def datasets(draw):
    """For each split, category ids by class name and objects (class name, x, y, w, h) by file name."""
    class_names = draw(st.lists(classes.filter(cleaned), min_size=1, max_size=4, unique_by=cleaned))
    splits = {}
    for split in draw(st.sampled_from([["train"], ["train", "val"], ["train", "val", "test"]])):
        split_classes = draw(st.lists(st.sampled_from(class_names), min_size=1, unique=True))
        ids = draw(st.lists(st.integers(0, 99), min_size=len(split_classes), max_size=len(split_classes), unique=True))
        sides = st.integers(0, 19), st.integers(0, 11), st.integers(2, 20), st.integers(2, 12)
        box = st.tuples(st.sampled_from(split_classes), *sides)
        files = draw(st.lists(names, min_size=1, max_size=4, unique_by=lambda name: name.replace("\\", "/")))
        boxes = {name: draw(st.lists(box, min_size=1, max_size=3)) for name in files}
        splits[split] = dict(zip(split_classes, ids, strict=True)), boxes
    return splits


def write_coco(folder: Path, data) -> None:
    """Every image has a different colour, by which it is identified after files are renamed."""
    colors = itertools.count(1)
    for split, (ids, files) in data.items():
        images, objects = [], []
        for number, (name, boxes) in enumerate(files.items()):
            path = folder / f"{split}2017" / name.replace("\\", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (next(colors) * 8, 0, 0)).save(path, "PNG")
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            objects += [{"id": len(objects) + n, "image_id": number, "category_id": ids[kind], "bbox": box, "area": 1,
                         "iscrowd": 0} for n, (kind, *box) in enumerate(boxes)]  # fmt: skip
        categories = [{"id": i, "name": name} for name, i in ids.items()]
        file = folder / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))


def read_all(folder: Path):
    """(annotations, format) of each split, and sorted objects (class name, box) by (split, colour of the image)."""
    objects, splits = {}, {}
    for split, location in find_layout(folder).splits().items():
        annotations = read_annotations(location)
        splits[split] = annotations, location.format
        for index in range(len(annotations.image_ids)):
            with Image.open(annotations.path(index)) as image:
                color = np.asarray(image)[0, 0, 0].item()
            rows = annotations.objects(index)
            kinds = [annotations.categories[k].name for k in annotations.labels[rows].tolist()]
            boxes = annotations.boxes[rows].round(6).tolist()
            objects[split, color] = sorted(zip(kinds, map(tuple, boxes), strict=True))
    return splits, objects


def write_csv(splits, folder: Path) -> None:
    """Write one table per split, with all values in quotes and rows without a box for images without objects."""
    for split, (annotations, _) in splits.items():
        folder.mkdir(exist_ok=True)
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, quoting=csv.QUOTE_ALL)
            rows.writerow(("filename", "class", "xmin", "ymin", "xmax", "ymax"))
            for index in range(len(annotations.image_ids)):
                name = f"{index}.png"
                (folder / split).mkdir(exist_ok=True)
                shutil.copy(annotations.path(index), folder / split / name)
                objects = annotations.objects(index)
                names = [annotations.categories[k].name for k in annotations.labels[objects].tolist()]
                boxes = [(x, y, x + w, y + h) for x, y, w, h in annotations.boxes[objects].tolist()]
                rows.writerows([(name, kind, *box) for kind, box in zip(names, boxes, strict=True)] or [(name,)])


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(datasets())
def test_objects_survive_every_pair_of_formats(data):
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder, "drawn"), data)
        colors = itertools.count(1)
        expected = {(split, next(colors) * 8): sorted((cleaned(k), tuple(map(float, box))) for k, *box in boxes)
                  for split, (_, files) in data.items() for boxes in files.values()}  # fmt: skip
        sources = {"drawn": Path(folder, "drawn")}
        assert read_all(sources["drawn"])[1] == expected
        for first in KINDS:
            splits, _ = read_all(sources["drawn"])
            sources[first] = Path(folder, first)
            list(write_dataset(splits, first, sources[first], False))
            reread, objects = read_all(sources[first])
            assert objects == expected, first
            write_csv(splits, Path(folder, f"{first}-csv"))
            assert read_all(Path(folder, f"{first}-csv"))[1] == expected, f"{first} as a table"
            for second in KINDS:
                out = Path(folder, f"{first}-{second}")
                list(write_dataset(reread, second, out, False))
                assert read_all(out)[1] == expected, f"{first} to {second}"


def test_images_in_a_folder_named_labels_keep_their_own_labels(tmp_path):
    """The label file of images/a.png lies beside labels/a.png, and was once taken for its label file."""
    files = {"images/a.png": [("c", 0, 0, 2, 2)], "labels/a.png": [("c", 2, 0, 2, 2)]}
    write_coco(tmp_path / "in", {"train": ({"c": 0}, files)})
    splits, objects = read_all(tmp_path / "in")
    list(write_dataset(splits, "yolo", tmp_path / "out", False))
    assert read_all(tmp_path / "out")[1] == objects and len(objects) == 2


def test_classes_that_are_only_in_val_are_exported_under_their_own_names(tmp_path):
    """They were once written as the last class, as -1, or as the training class with the same id."""
    train = {"cat": 1, "dog": 2}, {"a.png": [("cat", 0, 0, 9, 9), ("dog", 9, 9, 9, 9)]}
    val = {"dog": 1, "bird": 2, "cat": 3}, {"b.png": [("bird", 1, 1, 5, 5), ("cat", 2, 2, 6, 6)]}
    data = {"train": train, "val": val}
    write_coco(tmp_path / "in", data)
    for kind in KINDS:
        list(write_dataset(read_all(tmp_path / "in")[0], kind, tmp_path / kind, False))
        splits, objects = read_all(tmp_path / kind)
        assert objects["val", 16] == [("bird", (1, 1, 5, 5)), ("cat", (2, 2, 6, 6))]
        assert objects["train", 8] == [("cat", (0, 0, 9, 9)), ("dog", (9, 9, 9, 9))]
        lines = [file.read_text() for file in tmp_path.glob(f"{kind}/labels/*/*.txt")]
        assert not any(line.startswith("-1") for text in lines for line in text.splitlines())
        assert len(splits["val"][0].image_ids) == 1 and os.listdir(tmp_path / kind)
