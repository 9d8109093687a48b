"""Folders as users and tools leave them: read as intended, or refused with a fix."""

import textwrap
import tomllib
from pathlib import Path

import pytest

from dinocore.config import DataConfig
from dinocore.data.annotations import read_annotations
from dinocore.data.dataset import open_dataset, open_split
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError

from .test_publishers import CLASSES, HEIGHT, TRAIN, VAL, WIDTH, coco, expected, objects_in, put, write_images, yolo

HEADER = "filename,xmin,ymin,xmax,ymax,class"
BOTH = {**TRAIN, **VAL}


def rows(template: str, objects=TRAIN) -> list[str]:
    """One row per object; x, y, X, Y, w, h are pixels, s… the same as fractions, cx and cy the center as fractions."""
    return [
        template.format(n=name, k=kind, i=CLASSES.index(kind), x=x, y=y, X=x + w, Y=y + h, w=w, h=h,
                    sx=x / WIDTH, sy=y / HEIGHT, sX=(x + w) / WIDTH, sY=(y + h) / HEIGHT, sw=w / WIDTH, sh=h / HEIGHT,
                    cx=(x + w / 2) / WIDTH, cy=(y + h / 2) / HEIGHT)
        for name, boxes in objects.items() for kind, x, y, w, h in boxes
    ]  # fmt: skip


def write_table(folder: Path, lines: list[str], name="train.csv", end="\n") -> None:
    put(folder / name, end.join(lines) + end)


def notes_of(folder: Path) -> list[str]:
    return read_annotations(find_layout(folder).train).notes


def data_error(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        open_dataset(DataConfig(path=str(folder)))
    return caught.value


@pytest.mark.parametrize("box", ["0,0,0,0", "0.0,0.0,0.0,0.0", "-1,-1,-1,-1", "0,0,1,1", "none,none,none,none"])
@pytest.mark.parametrize("kind", ["No finding", "none", ""])
def test_a_placeholder_for_no_box_is_an_image_without_objects(tmp_path, box, kind):
    write_images(tmp_path / "images", TRAIN)
    write_table(tmp_path, [HEADER, *rows("{n}.jpg,{x},{y},{X},{Y},{k}"), f"c.jpg,{box},{kind}"])
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, True)
    assert notes_of(tmp_path) == ([f"no classes, as no row of theirs has a box: {kind}"] if kind else [])


def test_a_placeholder_in_a_table_without_classes_is_an_image_without_objects(tmp_path):
    write_images(tmp_path, "ab")
    write_table(tmp_path, ["filename,xmin,ymin,xmax,ymax", "a.jpg,1,2,30,40", "b.jpg,0,0,0,0"])
    assert objects_in(find_layout(tmp_path).train) == {"a": [("object", 1, 2, 29, 38)], "b": []}


def test_a_box_without_area_is_reported_if_its_class_has_other_boxes(tmp_path):
    write_images(tmp_path / "images", TRAIN)
    write_table(tmp_path, [HEADER, *rows("{n}.jpg,{x},{y},{X},{Y},{k}"), "c.jpg,0,0,0,0,car"])
    assert notes_of(tmp_path) == ["1 of 4 boxes has no width or height, not trained on: line 5: [0, 0, 0, 0]"]


def test_a_normalised_box_of_the_whole_image_is_an_object(tmp_path):
    write_images(tmp_path / "images", TRAIN)
    write_table(tmp_path, [HEADER, *rows("{n}.jpg,{sx},{sy},{sX},{sY},{k}"), "c.jpg,0,0,1,1,sky"])
    assert objects_in(find_layout(tmp_path).train)["c"] == [("sky", 0, 0, WIDTH, HEIGHT)]


TABLES = {
    "{n}.jpg,{sx},{sy},{sX},{sY},{k}": HEADER,
    "{n}.jpg,{k},{cx},{cy},{sw},{sh}": "filename,class,x_center,y_center,width,height",
    "{n}.jpg,{k},{sx},{sy},{sw},{sh}": "Image,Label,Left,Top,Width,Height",
    "{n}.jpg;{x},0;{y},0;{X},0;{Y},0;{k}": HEADER.replace(",", ";"),
    "TRAIN,gs://bucket/images/{n}.jpg,{k},{sx},{sy},,,{sX},{sY},,": "",
    "TRAIN,gs://bucket/images/{n}.jpg,{k},{sx},{sy},{sX},{sy},{sX},{sY},{sx},{sY}": "",
}


@pytest.mark.parametrize("template", TABLES)
def test_fractions_decimal_commas_and_automl_tables_are_read(tmp_path, template):
    write_images(tmp_path / "images", TRAIN)
    write_table(tmp_path, [header for header in [TABLES[template]] if header] + rows(template), "boxes.csv", "\r\n")
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, False)
    is_noted = any("read as fractions of the image's width and height" in note for note in notes_of(tmp_path))
    assert is_noted == ("{s" in template and "TRAIN" not in template)


def test_fractions_that_may_be_centers_or_corners_are_refused(tmp_path):
    write_images(tmp_path / "images", TRAIN)
    lines = rows("{n}.jpg,{k},{cx},{cy},{sw},{sh}")
    write_table(tmp_path, ["image,class,x,y,w,h", *lines])
    assert "unclear whether x and y are the center" in data_error(tmp_path).what
    assert "cx,cy,w,h" in data_error(tmp_path).fix
    write_table(tmp_path, ["image,class,cx,cy,w,h", *lines])
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, False)
    write_table(tmp_path, ["image,class,x,y,w,h", *rows("{n}.jpg,{k},{sx},{sy},{sw},{sh}"), "a.jpg,car,0,0,0.5,0.5"])
    assert ("car", 0, 0, WIDTH / 2, HEIGHT / 2) in objects_in(find_layout(tmp_path).train)["a"]


def test_the_rsna_pneumonia_table_is_read(tmp_path):
    write_images(tmp_path / "stage_2_train_images", TRAIN, ".png")
    lines = rows("{n},{x}.0,{y}.0,{w}.0,{h}.0,1")
    write_table(tmp_path, ["patientId,x,y,width,height,Target", *lines, "c,,,,,0"], "stage_2_train_labels.csv")
    truth = {name: [("1", *row[1:]) for row in boxes] for name, boxes in TRAIN.items()}
    assert objects_in(find_layout(tmp_path).train) == expected(truth, True)


@pytest.mark.parametrize("val", ["", '[val]\nannotations = "all.csv"\nimages = "pictures"\n'])
def test_the_split_column_of_a_table_in_a_dataset_toml_is_used(tmp_path, val):
    write_images(tmp_path / "pictures", BOTH)
    lines = rows("{n}.jpg,{x},{y},{X},{Y},{k},train") + rows("{n}.jpg,{x},{y},{X},{Y},{k},valid", VAL)
    write_table(tmp_path, [f"{HEADER},split", *lines], "all.csv")
    put(tmp_path / "dataset.toml", f'format = "csv"\n[train]\nannotations = "all.csv"\nimages = "pictures"\n{val}')
    splits = find_layout(tmp_path).splits()
    assert {name: objects_in(split) for name, split in splits.items()} == {
        "train": expected(TRAIN, False), "val": expected(VAL, False),
    }  # fmt: skip


def test_a_separate_val_table_is_used_instead_of_the_val_rows_of_the_split_column(tmp_path):
    write_images(tmp_path / "images", BOTH)
    lines = rows("{n}.jpg,{x},{y},{X},{Y},{k},train") + rows("{n}.jpg,{x},{y},{X},{Y},{k},val", VAL)
    write_table(tmp_path, [f"{HEADER},split", *lines])
    write_table(tmp_path, [HEADER, *rows("{n}.jpg,{x},{y},{X},{Y},{k}", VAL)], "val.csv")
    splits = find_layout(tmp_path).splits()
    assert objects_in(splits["train"]) == expected(TRAIN, False)
    assert objects_in(splits["val"]) == expected(VAL, False) and splits["val"].annotations.name == "val.csv"


def test_the_suggested_dataset_toml_has_val_and_test_if_there_are_such_folders(tmp_path):
    for split, objects in (("train", TRAIN), ("val", VAL), ("test", VAL)):
        write_images(tmp_path / split / "photos", objects)
        for name, boxes in objects.items():
            put(tmp_path / split / "txt" / f"{name}.txt", yolo(boxes))
    put(tmp_path / "configs" / "cars.yaml", "names: [bus, car]\n")
    put(tmp_path / "dataset.toml", textwrap.dedent(data_error(tmp_path).fix.partition("could start with\n")[2]))
    actual = {name: objects_in(split) for name, split in find_layout(tmp_path).splits().items()}
    assert actual == {"train": expected(TRAIN, True), "val": expected(VAL, True), "test": expected(VAL, True)}


def test_the_suggested_dataset_toml_for_several_coco_files_has_a_val_split(tmp_path):
    write_images(tmp_path / "images/train", TRAIN)
    write_images(tmp_path / "images/val", VAL)
    for name, objects in (("train_v1", TRAIN), ("train_v2", TRAIN), ("val", VAL)):
        put(tmp_path / f"{name}.json", coco(objects))
    suggestion = tomllib.loads(textwrap.dedent(data_error(tmp_path).fix.partition("could start with\n")[2]))
    assert suggestion["val"] == {"annotations": "val.json", "images": "images/val"}
    assert suggestion["train"] == {"annotations": "train_v1.json", "images": "images/train"}


def test_a_data_yaml_without_image_paths_is_refused_with_a_dataset_toml_that_works(tmp_path):
    write_images(tmp_path / "images", TRAIN)
    for name, boxes in TRAIN.items():
        put(tmp_path / "annotations" / f"{name}.txt", yolo(boxes))
    put(tmp_path / "data.yaml", "names: [bus, car]\nnc: 2\n")
    put(tmp_path / "dataset.toml", textwrap.dedent(data_error(tmp_path).fix.partition("could start with\n")[2]))
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, True)


def trainval_coco(folder: Path) -> None:
    put(folder / "annotations" / "trainval.json", coco(BOTH))
    put(folder / "annotations" / "val.json", coco(VAL))


def trainval_in_a_dataset_toml(folder: Path) -> None:
    put(folder / "all" / "trainval.json", coco(BOTH))
    put(folder / "all" / "val.json", coco(VAL))
    parts = "".join(
        f'[{split}]\nannotations = "all/{file}.json"\nimages = "images"\n'
        for split, file in (("train", "trainval"), ("val", "val"))
    )
    put(folder / "dataset.toml", f'format = "coco"\n{parts}')


def trainval_yolo(folder: Path) -> None:
    for name, boxes in BOTH.items():
        put(folder / "labels" / f"{name}.txt", yolo(boxes))
    for file, objects in (("trainval", BOTH), ("val", VAL)):
        put(folder / f"{file}.txt", "".join(f"images/{name}.jpg\n" for name in objects))
    put(folder / "data.yaml", "train: trainval.txt\nval: val.txt\nnames: [bus, car]\n")


@pytest.mark.parametrize("make", [trainval_coco, trainval_in_a_dataset_toml, trainval_yolo])
def test_val_images_are_removed_from_trainval_in_any_format(tmp_path, make):
    write_images(tmp_path / "images", BOTH)
    make(tmp_path)
    splits = find_layout(tmp_path).splits()
    assert (objects_in(splits["train"]), objects_in(splits["val"])) == (expected(TRAIN, True), expected(VAL, True))
    notes = open_dataset(DataConfig(path=str(tmp_path))).notes
    assert len(notes) == 1 and "1 of 4 names in trainval." in notes[0] and "are not trained on" in notes[0]
    train = open_split(DataConfig(path=str(tmp_path)), "train", None)
    assert len(train.image_ids) == len(TRAIN)


def test_val_images_in_a_split_named_train_are_kept_and_reported(tmp_path):
    write_images(tmp_path / "images", BOTH)
    put(tmp_path / "train.json", coco(BOTH))
    put(tmp_path / "val.json", coco(VAL))
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert len(data.train.image_ids) == len(BOTH) and any("AP will be too high" in note for note in data.notes)


@pytest.mark.parametrize("line", ["images/{}.jpg", "{}.jpg", "/home/me/data/images/{}.jpg"])
def test_image_lists_beside_classes_txt_are_the_splits(tmp_path, line):
    write_images(tmp_path / "images", BOTH)
    for name, boxes in BOTH.items():
        put(tmp_path / "labels" / f"{name}.txt", yolo(boxes))
    for split, objects in (("train", TRAIN), ("val", VAL)):
        put(tmp_path / f"{split}.txt", "".join(f"{line.format(name)}\n" for name in objects))
    put(tmp_path / "classes.txt", "bus\ncar\n")
    splits = find_layout(tmp_path).splits()
    assert {name: objects_in(split) for name, split in splits.items()} == {
        "train": expected(TRAIN, True), "val": expected(VAL, True),
    }  # fmt: skip


def test_objects365_paths_are_found_in_the_folder_of_each_split(tmp_path):
    for split, objects in (("train", TRAIN), ("val", VAL)):
        write_images(tmp_path / split / "patch0", objects)
        put(tmp_path / "annotations" / f"zhiyuan_objv2_{split}.json", coco(objects, prefix="images/v1/patch0/"))
    splits = find_layout(tmp_path).splits()
    assert (objects_in(splits["train"]), objects_in(splits["val"])) == (expected(TRAIN, True), expected(VAL, True))


def test_images_in_class_folders_are_found_by_unique_file_names(tmp_path):
    for name in TRAIN:
        put(tmp_path / "images" / f"class {name}" / f"{name}.jpg")
    put(tmp_path / "train.json", coco(TRAIN))
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, True)
    put(tmp_path / "images" / "class c" / "a.jpg")
    assert "a.jpg" in data_error(tmp_path).what


def test_missing_images_are_not_taken_from_another_split(tmp_path):
    write_images(tmp_path / "images" / "train", BOTH)
    for split, objects in (("train", TRAIN), ("val", VAL)):
        put(tmp_path / f"{split}.json", coco(objects))
    assert data_error(tmp_path).code == "DATA-IMAGE-MISSING"


def test_centers_instead_of_corners_are_refused_in_csv_and_coco(tmp_path):
    """This is only inferred from more than MIN_EVIDENCE boxes; here there are 24."""
    centers = [(10 * k + 5, 40, 9, 70) for k in range(9)] + [(90, 70, 18, 18), (50, 70, 9, 18), (20, 70, 9, 18)]
    objects = {name: [("car", *box) for box in centers] for name in "ab"}
    write_images(tmp_path, "ab")
    put(tmp_path / "train.json", coco(objects))
    assert "24 boxes reach beyond their image; are they the center, width and height?" in data_error(tmp_path).what
    (tmp_path / "train.json").unlink()
    write_table(tmp_path, ["image,class,x,y,w,h", *rows("{n}.jpg,{k},{x},{y},{w},{h}", objects)])
    assert data_error(tmp_path).code == "DATA-BOX-CORNERS"


@pytest.mark.parametrize(("path", "suggestion"), [
    ("data.yaml", "."), ("images/train", "."), ("labels", "."), ("cars.zip", "cars"), ("annotations/a.json", "."),
])  # fmt: skip
def test_a_path_inside_a_data_folder_is_refused_with_the_folder_to_give(tmp_path, path, suggestion):
    folder = tmp_path / "my data"
    for split, objects in (("train", TRAIN), ("val", VAL)):
        write_images(folder / "images" / split, objects)
        for name, boxes in objects.items():
            put(folder / "labels" / split / f"{name}.txt", yolo(boxes))
    put(folder / "data.yaml", "train: images/train\nval: images/val\nnames: [bus, car]\n")
    put(folder / "annotations" / "a.json", "{}")
    put(folder / "cars.zip", "PK")
    assert f"'{(folder / suggestion).as_posix()}'" in data_error(folder / path).fix


def test_archives_are_refused_with_advice_to_unpack_them(tmp_path):
    put(tmp_path / "train2017.zip", "PK")
    put(tmp_path / "annotations_trainval2017.zip", "PK")
    error = data_error(tmp_path)
    assert "2 .zip in the folder itself" in error.what and "unpack the archives" in error.fix
