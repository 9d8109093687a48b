"""Annotations are found under any file and folder names; otherwise the error lists what the folder contains."""

import json
import random
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocore.data.annotations import read_annotations
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError

WIDTH, HEIGHT = 64, 48


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def write_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def xml(x, y, w, h) -> str:
    corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    return f"<annotation><object><name>c</name><bndbox>{corners}</bndbox></object></annotation>"


def random_boxes(num: int, seed: int) -> dict[str, tuple[int, int, int, int]]:
    rng = random.Random(seed)
    return {f"{seed}{i:02d}": (rng.randint(0, 30), rng.randint(0, 20), rng.randint(9, 30), rng.randint(9, 25))
            for i in range(num)}  # fmt: skip


def read_boxes(folder: Path) -> dict[str, dict[str, list[float]]]:
    boxes = {}
    for name, split in find_layout(folder).splits().items():
        annotations = read_annotations(split)
        names = [Path(annotations.path(i).name).stem for i in annotations.owners().tolist()]
        boxes[name] = dict(zip(names, np.round(annotations.boxes, 3).tolist(), strict=True))
    return boxes


@pytest.mark.parametrize("folders", [
    {"train": ("annots", "images")}, {"train": ("xml", "pics")}, {"train": ("labels", "images")},
    {"train": ("ann", "img")}, {"train": ("a/b/c", "x/y")},
    {"train": ("train/annotations", "train/images"), "val": ("val/annotations", "val/images")},
    {"train": ("xmls/train", "images/train"), "val": ("xmls/dev", "images/dev")},
    {"train": ("train_xml", "train_img"), "val": ("validate_xml", "validate_img"), "test": ("test_xml", "test_img")},
])  # fmt: skip
def test_xml_files_are_paired_with_images_of_the_same_name_in_any_folder(tmp_path, folders):
    expected = {split: random_boxes(4, seed) for seed, split in enumerate(folders, start=1)}
    for split, (annotations, images) in folders.items():
        for stem, box in expected[split].items():
            write_image(tmp_path / images / f"{stem}.jpg")
            write_text(tmp_path / annotations / f"{stem}.xml", xml(*box))
    assert read_boxes(tmp_path) == {s: {n: list(box) for n, box in rows.items()} for s, rows in expected.items()}


@pytest.mark.parametrize(("annotations", "images"), [
    ("annotations/custom_{}.json", "{}2017"), ("annotations/person_keypoints_{}2017.json", "{}2017"),
    ("annotations/lvis_v1_{}.json", "images/{}2017"), ("my_{}_coco.json", "my_{}_images"),
    ("labels/{}/coco_labels.json", "images/{}"), ("{}/ann/export.json", "{}/images"),
])  # fmt: skip
def test_coco_files_of_any_name_are_found_among_other_json_files(tmp_path, annotations, images):
    expected = {}
    write_text(tmp_path / "package.json", '{"name": "x"}')
    for seed, split in enumerate(("train", "val"), start=1):
        expected[split] = random_boxes(3, seed)
        document = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "c"}]}
        for number, (stem, box) in enumerate(expected[split].items()):
            write_image(tmp_path / images.format(split) / f"{stem}.jpg")
            document["images"].append({"id": number, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT})
            document["annotations"].append({"id": number, "image_id": number, "category_id": 3, "bbox": box})
        write_text(tmp_path / annotations.format(split), json.dumps(document))
    assert read_boxes(tmp_path) == {s: {n: list(box) for n, box in rows.items()} for s, rows in expected.items()}


TABLES = {
    "filename,xmin,ymin,xmax,ymax,class": "{n}.jpg,{x},{y},{X},{Y},c",
    "filename,width,height,class,xmin,ymin,xmax,ymax": "{n}.jpg,64,48,c,{x},{y},{X},{Y}",
    "image;x_min;y_min;x_max;y_max;label": "{n}.jpg;{x};{y};{X};{Y};c",
    "": "/home/me/data/{n}.jpg,{x},{y},{X},{Y},c",
}


@pytest.mark.parametrize("header", TABLES)
@pytest.mark.parametrize("images", ["images", "{}", "."])
def test_tables_of_boxes_are_read(tmp_path, header, images):
    expected = {"train": random_boxes(3, 1), "test": random_boxes(3, 2)}
    for split, rows in expected.items():
        lines = [header] if header else []
        for n, (x, y, w, h) in rows.items():
            write_image(tmp_path / images.format(split) / f"{n}.jpg")
            lines.append(TABLES[header].format(n=n, x=x, y=y, X=x + w, Y=y + h))
        write_text(tmp_path / f"{split}_labels.csv", "\n".join(lines) + "\n")
    boxes = read_boxes(tmp_path)
    assert boxes == {"train": {n: list(b) for n, b in expected["train"].items()},
                     "val": {n: list(b) for n, b in expected["test"].items()}}  # fmt: skip


def test_an_invalid_row_is_reported_with_its_line_number(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "train.csv", "filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,30,40,c\na.jpg,1,x,3,4,c\n")
    with pytest.raises(DataError, match=r"line 3: a\.jpg 1,x,3,4") as caught:
        read_annotations(find_layout(tmp_path).train)
    assert caught.value.code == "DATA-CSV"


@pytest.mark.parametrize("box", [",,,", "nan,nan,nan,nan", "NA,NA,NA,NA", ", ,None,"])
def test_a_row_without_a_box_adds_an_image_but_no_class(tmp_path, box):
    for name in "abc":
        write_image(tmp_path / f"{name}.jpg")
    rows = f"a.jpg,1,2,30,40,c\nb.jpg,{box},No finding\nc.jpg,{box},c\n"
    write_text(tmp_path / "train.csv", f"filename,xmin,ymin,xmax,ymax,class\n{rows}")
    annotations = read_annotations(find_layout(tmp_path).train)
    assert [category.name for category in annotations.categories] == ["c"]
    assert len(annotations.file_names) == 3 and annotations.boxes.tolist() == [[1, 2, 29, 38]]
    assert annotations.notes == ["no classes, as no row of theirs has a box: No finding"]


def test_a_table_without_boxes_has_images_but_no_classes(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "train.csv", "filename,xmin,ymin,xmax,ymax,class\na.jpg,,,,,none\n")
    annotations = read_annotations(find_layout(tmp_path).train)
    assert annotations.categories == [] and len(annotations.file_names) == 1


def test_the_error_lists_the_files_found_and_suggests_a_dataset_toml_that_works(tmp_path):
    for i, (stem, box) in enumerate(random_boxes(5, 1).items()):
        write_image(tmp_path / "pics" / f"photo-{i}.jpg")
        content = xml(*box).replace("<annotation>", f"<annotation><filename>photo-{i}.jpg</filename>")
        write_text(tmp_path / "anno" / f"{stem}.xml", content)
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    assert "5 .jpg in pics/" in caught.value.what and "5 .xml in anno/" in caught.value.what
    suggestion = caught.value.fix.partition("could start with\n")[2]
    manifest = "\n".join(line.strip() for line in suggestion.splitlines())
    assert tomllib.loads(manifest)["train"] == {"annotations": "anno", "images": "pics"}
    write_text(tmp_path / "dataset.toml", manifest)
    assert len(read_annotations(find_layout(tmp_path).train).boxes) == 5
