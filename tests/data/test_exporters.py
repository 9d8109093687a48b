"""Folders as exporters write them, or with missing files; each was once misread or refused."""

import json
import math
import os
import re

import numpy as np
import pytest

from dinocore.config import DataConfig
from dinocore.data.dataset import open_dataset
from dinocore.data.formats.export import write_dataset
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError

from .test_misread import HEIGHT, WIDTH, YAML, close, fractions, put, read, xml, yolo, yolo_line


def ellipse(box, points: int) -> list[float]:
    """Vertices on the ellipse inscribed in a box, as fractions of the image."""
    cx, cy, w, h = fractions(box)
    angles = [2 * math.pi * k / points for k in range(points)]
    return [v for a in angles for v in (cx + w / 2 * math.cos(a), cy + h / 2 * math.sin(a))]


def coco(folder, names, split="train") -> None:
    """Write COCO annotations with one box per image, without the images."""
    images = [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names, 1)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [9, 9, 30, 20]} for i in range(1, len(names) + 1)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "c"}]}
    put(folder / "annotations" / f"instances_{split}.json", json.dumps(document))


def test_a_missing_image_is_not_replaced_by_its_namesake_in_another_folder(tmp_path):
    coco(tmp_path, ["cam1/1.jpg", "cam1/2.jpg"])
    coco(tmp_path, ["cam2/1.jpg", "cam2/2.jpg"], "val")
    for name in ("cam1/1.jpg", "cam2/1.jpg", "cam2/2.jpg"):
        put(tmp_path / "images" / name)
    with pytest.raises(DataError, match="1 of 2 images are not in") as caught:
        read(tmp_path)
    assert caught.value.code == "DATA-IMAGE-MISSING"


def test_images_are_found_if_their_names_lack_folders_or_have_extra_ones(tmp_path):
    coco(tmp_path, ["1.jpg", "export/2.jpg"])
    for name in ("left/1.jpg", "2.jpg"):
        put(tmp_path / "images" / name)
    assert sorted(map(os.fsdecode, read(tmp_path).file_names)) == ["2.jpg", "left/1.jpg"]


@pytest.mark.parametrize("names", [("Train", "Validation"), ("train", "valid"), ("TRAIN", "VAL"), ("trainval", "dev")])
def test_voc_lists_may_have_any_split_name(tmp_path, names):
    for i in range(5):
        put(tmp_path / "Annotations" / f"{i}.xml", xml((9, 9, 30, 20), f"{i}.jpg"))
        put(tmp_path / "JPEGImages" / f"{i}.jpg")
    for name, listed in zip(names, ("0\n1\n2\n", "3\n4\n"), strict=True):
        put(tmp_path / "ImageSets/Main" / f"{name}.txt", listed)
    splits = find_layout(tmp_path).splits()
    assert [len(read(tmp_path, name).image_ids) for name in splits] == [3, 2] and [*splits] == ["train", "val"]


def devkit(folder, **lists: str) -> None:
    """Write a Pascal VOC folder with five images, and image lists with one digit per image."""
    for i in range(5):
        put(folder / "Annotations" / f"{i}.xml", xml((0, 9, 30, 20), f"{i}.jpg"))
        put(folder / "JPEGImages" / f"{i}.jpg")
    for name, listed in lists.items():
        put(folder / "ImageSets/Main" / f"{name}.txt", "\n".join(listed))


def digits(annotations) -> list[str]:
    return [os.fsdecode(name)[0] for name in annotations.file_names]


def test_images_of_trainval_that_are_in_val_are_not_trained_on(tmp_path):
    devkit(tmp_path, trainval="01234", val="34")
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert (digits(data.train), digits(data.val)) == (list("012"), list("34"))
    assert data.notes == ["Annotations: 2 of 5 names in trainval.txt are in val.txt, too, for validation, and are not "
                          "trained on"]  # fmt: skip


@pytest.mark.parametrize(("lists", "train", "val"), [
    ({"trainval": "012", "val": "34"}, "012", "34"),
    ({"trainval": "01234", "train": "0", "val": "34"}, "0", "34"),
    ({"trainval": "012", "test": "34"}, "012", "34"),
])  # fmt: skip
def test_disjoint_voc_lists_are_used_in_full(tmp_path, lists, train, val):
    devkit(tmp_path, **lists)
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert (digits(data.train), digits(data.val), data.notes) == (list(train), list(val), [])


def test_images_in_both_train_and_val_are_reported_before_training(tmp_path):
    devkit(tmp_path / "voc", trainval="01", val="01")
    coco(tmp_path / "coco", ["1.jpg", "2.jpg", "3.jpg"])
    coco(tmp_path / "coco", ["3.jpg", "4.jpg"], "val")
    for i in range(1, 5):
        put(tmp_path / "coco" / "images" / f"{i}.jpg")
    for name, shared in (("voc", "2 of 2 images to evaluate on are"), ("coco", "1 of 2 images to evaluate on is")):
        notes = open_dataset(DataConfig(path=str(tmp_path / name))).notes
        assert any(f"{shared} also trained on, so AP will be too high" in note for note in notes)


def test_an_interrupted_voc_export_is_not_read_as_complete(tmp_path):
    yolo(tmp_path / "data", lambda box: yolo_line(*fractions(box)), num=3)
    splits = {name: (read(tmp_path / "data", name), "yolo") for name in ("train", "val")}
    writer = write_dataset(splits, "voc", tmp_path / "voc", link=False)
    for _ in range(4):  # four of six images
        next(writer)
    writer.close()
    assert len(read(tmp_path / "voc", "train").image_ids) == 3
    with pytest.raises(DataError):
        read(tmp_path / "voc", "val")


@pytest.mark.parametrize("center", [(0.5, 0.5), (0.4, 0.4), (0.3, 0.3)])
@pytest.mark.parametrize("points", [4, 16])
def test_polygons_at_one_place_are_read_or_refused_until_kpt_shape_is_set(tmp_path, center, points):
    """All polygons are at one place, so their first two points could be the center and size of a box."""
    side = 0.2
    vertices = [(center[0] + side / 2 * math.cos(a), center[1] + side / 2 * math.sin(a))
            for a in (2 * math.pi * k / points for k in range(points))]  # fmt: skip
    line = yolo_line(*(v for point in vertices for v in point))
    yolo(tmp_path, lambda box: line, num=14)
    try:
        annotations = read(tmp_path)
    except DataError as error:
        assert error.code == "DATA-LABEL-FORM" and "`kpt_shape: [0, 2]` if they are polygons" in error.fix
        put(tmp_path / "data.yaml", YAML + "kpt_shape: [0, 2]\n")
        annotations = read(tmp_path)
    expected = [(center[0] - side / 2) * WIDTH, (center[1] - side / 2) * HEIGHT, side * WIDTH, side * HEIGHT]
    assert np.allclose(annotations.boxes, expected, atol=0.01)


def test_lines_of_varying_length_are_polygons(tmp_path):
    lengths = iter([3, 8, 16, 23, 5, 16, 40, 8, 3, 31, 12, 16] * 2)
    boxes = yolo(tmp_path, lambda box: yolo_line(*ellipse(box, next(lengths))))
    annotations, expected = read(tmp_path), np.array(boxes["train"], dtype=float)
    inside = (annotations.boxes[:, :2] >= expected[:, :2] - 0.01) & (
        annotations.boxes[:, :2] + annotations.boxes[:, 2:] <= expected[:, :2] + expected[:, 2:] + 0.01
    )
    assert len(annotations.boxes) == 12 and inside.all() and (annotations.boxes[:, 2:] >= expected[:, 2:] * 0.7).all()


def test_a_triangle_at_the_lower_edge_is_read_as_a_polygon(tmp_path):
    lines = iter([yolo_line(0.2, 0.3, 0.4, 0.3, 0.3, 1.0), yolo_line(0.2, 0.2, 0.4, 0.2, 0.4, 0.4, 0.2, 0.4)] * 9)
    yolo(tmp_path, lambda box: next(lines), num=2)
    assert close(read(tmp_path), [(64, 60, 64, 140), (64, 40, 64, 40)])


def test_a_table_with_a_pandas_index_column_is_read(tmp_path):
    rows = [f"{i},{i}.jpg,{9 + i},9,40,30,c" for i in range(4)]
    put(tmp_path / "labels.csv", "\n".join([",image,x1,y1,x2,y2,label", *rows]) + "\n")
    for i in range(4):
        put(tmp_path / f"{i}.jpg")
    assert close(read(tmp_path), [(9 + i, 9, 31 - i, 21) for i in range(4)])


def test_kitti_is_recognised_if_the_first_label_files_are_empty(tmp_path):
    for i in range(6):
        line = "Car 0.00 0 -1.57 9.0 9.0 40.0 30.0 1.5 1.6 3.7 1 1 8 0\n" if i > 2 else ""
        put(tmp_path / "training/label_2" / f"{i:06d}.txt", line)
        put(tmp_path / "training/image_2" / f"{i:06d}.png")
    annotations = read(tmp_path)
    assert len(annotations.boxes) == 3 and len(annotations.image_ids) == 6


def test_an_unrelated_xml_file_beside_coco_is_ignored(tmp_path):
    coco(tmp_path, ["1.jpg"])
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "annotations.json")
    put(tmp_path / "1.jpg")
    put(tmp_path / "annotations.xml", "<annotations><version>1.1</version></annotations>")
    assert re.search("COCO", find_layout(tmp_path).kind) and len(read(tmp_path).boxes) == 1
