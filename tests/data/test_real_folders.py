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

from .test_publishers import CLASSES, HEIGHT, TRAIN, VAL, WIDTH, coco, expected, images, objects_in, put, yolo

HEADING = "filename,xmin,ymin,xmax,ymax,class"
BOTH = {**TRAIN, **VAL}


def rows(form: str, objects=TRAIN) -> list[str]:
    """One row per object; x, y, X, Y, w, h are pixels, s… the same as fractions, cx and cy the center as fractions."""
    return [
        form.format(n=name, k=kind, i=CLASSES.index(kind), x=x, y=y, X=x + w, Y=y + h, w=w, h=h,
                    sx=x / WIDTH, sy=y / HEIGHT, sX=(x + w) / WIDTH, sY=(y + h) / HEIGHT, sw=w / WIDTH, sh=h / HEIGHT,
                    cx=(x + w / 2) / WIDTH, cy=(y + h / 2) / HEIGHT)
        for name, those in objects.items() for kind, x, y, w, h in those
    ]  # fmt: skip


def table(folder: Path, lines: list[str], name="train.csv", end="\n") -> None:
    put(folder / name, end.join(lines) + end)


def notes_of(folder: Path) -> list[str]:
    return read_annotations(find_layout(folder).train).notes


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as refused:
        open_dataset(DataConfig(path=str(folder)))
    return refused.value


@pytest.mark.parametrize("box", ["0,0,0,0", "0.0,0.0,0.0,0.0", "-1,-1,-1,-1", "0,0,1,1", "none,none,none,none"])
@pytest.mark.parametrize("kind", ["No finding", "none", ""])
def test_a_placeholder_for_no_box_is_an_image_without_objects(tmp_path, box, kind):
    images(tmp_path / "images", TRAIN)
    table(tmp_path, [HEADING, *rows("{n}.jpg,{x},{y},{X},{Y},{k}"), f"c.jpg,{box},{kind}"])
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, True)
    assert notes_of(tmp_path) == ([f"no classes, as no row of theirs has a box: {kind}"] if kind else [])


def test_a_placeholder_in_a_table_without_classes_is_an_image_without_objects(tmp_path):
    images(tmp_path, "ab")
    table(tmp_path, ["filename,xmin,ymin,xmax,ymax", "a.jpg,1,2,30,40", "b.jpg,0,0,0,0"])
    assert objects_in(find_layout(tmp_path).train) == {"a": [("object", 1, 2, 29, 38)], "b": []}


def test_a_box_without_area_of_a_class_that_has_boxes_is_still_warned_of(tmp_path):
    images(tmp_path / "images", TRAIN)
    table(tmp_path, [HEADING, *rows("{n}.jpg,{x},{y},{X},{Y},{k}"), "c.jpg,0,0,0,0,car"])
    assert notes_of(tmp_path) == ["1 of 4 boxes has no width or height, not trained on: line 5: [0, 0, 0, 0]"]


def test_a_whole_image_in_fractions_is_a_box_of_its_class(tmp_path):
    images(tmp_path / "images", TRAIN)
    table(tmp_path, [HEADING, *rows("{n}.jpg,{sx},{sy},{sX},{sY},{k}"), "c.jpg,0,0,1,1,sky"])
    assert objects_in(find_layout(tmp_path).train)["c"] == [("sky", 0, 0, WIDTH, HEIGHT)]


TABLES = {
    "{n}.jpg,{sx},{sy},{sX},{sY},{k}": HEADING,
    "{n}.jpg,{k},{cx},{cy},{sw},{sh}": "filename,class,x_center,y_center,width,height",
    "{n}.jpg,{k},{sx},{sy},{sw},{sh}": "Image,Label,Left,Top,Width,Height",
    "{n}.jpg;{x},0;{y},0;{X},0;{Y},0;{k}": HEADING.replace(",", ";"),
    "TRAIN,gs://bucket/images/{n}.jpg,{k},{sx},{sy},,,{sX},{sY},,": "",
    "TRAIN,gs://bucket/images/{n}.jpg,{k},{sx},{sy},{sX},{sy},{sX},{sY},{sx},{sY}": "",
}


@pytest.mark.parametrize("form", TABLES)
def test_fractions_decimal_commas_and_automls_tables_are_read(tmp_path, form):
    images(tmp_path / "images", TRAIN)
    table(tmp_path, [heading for heading in [TABLES[form]] if heading] + rows(form), "boxes.csv", "\r\n")
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, False)
    is_noted = any("read as fractions of the image's width and height" in note for note in notes_of(tmp_path))
    assert is_noted == ("{s" in form and "TRAIN" not in form)


def test_fractions_whose_x_and_y_may_be_centers_are_refused_until_the_columns_tell(tmp_path):
    images(tmp_path / "images", TRAIN)
    lines = rows("{n}.jpg,{k},{cx},{cy},{sw},{sh}")
    table(tmp_path, ["image,class,x,y,w,h", *lines])
    assert "unclear whether x and y are the center" in refusal(tmp_path).what
    assert "cx,cy,w,h" in refusal(tmp_path).fix
    table(tmp_path, ["image,class,cx,cy,w,h", *lines])
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, False)
    table(tmp_path, ["image,class,x,y,w,h", *rows("{n}.jpg,{k},{sx},{sy},{sw},{sh}"), "a.jpg,car,0,0,0.5,0.5"])
    assert ("car", 0, 0, WIDTH / 2, HEIGHT / 2) in objects_in(find_layout(tmp_path).train)["a"]


def test_a_pneumonia_table_with_its_patients_and_targets_is_read(tmp_path):
    images(tmp_path / "stage_2_train_images", TRAIN, ".png")
    lines = rows("{n},{x}.0,{y}.0,{w}.0,{h}.0,1")
    table(tmp_path, ["patientId,x,y,width,height,Target", *lines, "c,,,,,0"], "stage_2_train_labels.csv")
    truth = {name: [("1", *row[1:]) for row in those] for name, those in TRAIN.items()}
    assert objects_in(find_layout(tmp_path).train) == expected(truth, True)


@pytest.mark.parametrize("val", ["", '[val]\nannotations = "all.csv"\nimages = "pictures"\n'])
def test_a_column_of_splits_counts_in_a_table_that_a_dataset_toml_names(tmp_path, val):
    images(tmp_path / "pictures", BOTH)
    lines = rows("{n}.jpg,{x},{y},{X},{Y},{k},train") + rows("{n}.jpg,{x},{y},{X},{Y},{k},valid", VAL)
    table(tmp_path, [f"{HEADING},split", *lines], "all.csv")
    put(tmp_path / "dataset.toml", f'format = "csv"\n[train]\nannotations = "all.csv"\nimages = "pictures"\n{val}')
    splits = find_layout(tmp_path).splits()
    assert {name: objects_in(split) for name, split in splits.items()} == {
        "train": expected(TRAIN, False), "val": expected(VAL, False),
    }  # fmt: skip


def test_a_split_with_a_table_of_its_own_keeps_it_and_no_row_of_it_is_trained_on(tmp_path):
    images(tmp_path / "images", BOTH)
    lines = rows("{n}.jpg,{x},{y},{X},{Y},{k},train") + rows("{n}.jpg,{x},{y},{X},{Y},{k},val", VAL)
    table(tmp_path, [f"{HEADING},split", *lines])
    table(tmp_path, [HEADING, *rows("{n}.jpg,{x},{y},{X},{Y},{k}", VAL)], "val.csv")
    splits = find_layout(tmp_path).splits()
    assert objects_in(splits["train"]) == expected(TRAIN, False)
    assert objects_in(splits["val"]) == expected(VAL, False) and splits["val"].annotations.name == "val.csv"


def test_a_dataset_toml_to_paste_has_val_and_test_where_folders_tell_them(tmp_path):
    for split, objects in (("train", TRAIN), ("val", VAL), ("test", VAL)):
        images(tmp_path / split / "photos", objects)
        for name, those in objects.items():
            put(tmp_path / split / "txt" / f"{name}.txt", yolo(those))
    put(tmp_path / "configs" / "cars.yaml", "names: [bus, car]\n")
    put(tmp_path / "dataset.toml", textwrap.dedent(refusal(tmp_path).fix.partition("could start with\n")[2]))
    found = {name: objects_in(split) for name, split in find_layout(tmp_path).splits().items()}
    assert found == {"train": expected(TRAIN, True), "val": expected(VAL, True), "test": expected(VAL, True)}


def test_a_dataset_toml_to_paste_for_several_coco_files_has_the_one_of_val(tmp_path):
    images(tmp_path / "images/train", TRAIN)
    images(tmp_path / "images/val", VAL)
    for name, objects in (("train_v1", TRAIN), ("train_v2", TRAIN), ("val", VAL)):
        put(tmp_path / f"{name}.json", coco(objects))
    shown = tomllib.loads(textwrap.dedent(refusal(tmp_path).fix.partition("could start with\n")[2]))
    assert shown["val"] == {"annotations": "val.json", "images": "images/val"}
    assert shown["train"] == {"annotations": "train_v1.json", "images": "images/train"}


def test_a_data_yaml_that_names_no_images_is_answered_with_a_dataset_toml_that_works(tmp_path):
    images(tmp_path / "images", TRAIN)
    for name, those in TRAIN.items():
        put(tmp_path / "annotations" / f"{name}.txt", yolo(those))
    put(tmp_path / "data.yaml", "names: [bus, car]\nnc: 2\n")
    put(tmp_path / "dataset.toml", textwrap.dedent(refusal(tmp_path).fix.partition("could start with\n")[2]))
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
    for name, those in BOTH.items():
        put(folder / "labels" / f"{name}.txt", yolo(those))
    for file, objects in (("trainval", BOTH), ("val", VAL)):
        put(folder / f"{file}.txt", "".join(f"images/{name}.jpg\n" for name in objects))
    put(folder / "data.yaml", "train: trainval.txt\nval: val.txt\nnames: [bus, car]\n")


@pytest.mark.parametrize("make", [trainval_coco, trainval_in_a_dataset_toml, trainval_yolo])
def test_images_of_val_are_left_out_of_a_training_split_trainval_in_any_format(tmp_path, make):
    images(tmp_path / "images", BOTH)
    make(tmp_path)
    splits = find_layout(tmp_path).splits()
    assert (objects_in(splits["train"]), objects_in(splits["val"])) == (expected(TRAIN, True), expected(VAL, True))
    notes = open_dataset(DataConfig(path=str(tmp_path))).notes
    assert len(notes) == 1 and "1 of 4 names in trainval." in notes[0] and "are not trained on" in notes[0]
    train = open_split(DataConfig(path=str(tmp_path)), "train", None)
    assert len(train.image_ids) == len(TRAIN)


def test_a_training_split_of_another_name_keeps_images_of_val_with_a_warning(tmp_path):
    images(tmp_path / "images", BOTH)
    put(tmp_path / "train.json", coco(BOTH))
    put(tmp_path / "val.json", coco(VAL))
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert len(data.train.image_ids) == len(BOTH) and any("AP will be too high" in note for note in data.notes)


@pytest.mark.parametrize("line", ["images/{}.jpg", "{}.jpg", "/home/me/data/images/{}.jpg"])
def test_lists_of_images_beside_classes_txt_are_the_splits(tmp_path, line):
    images(tmp_path / "images", BOTH)
    for name, those in BOTH.items():
        put(tmp_path / "labels" / f"{name}.txt", yolo(those))
    for split, objects in (("train", TRAIN), ("val", VAL)):
        put(tmp_path / f"{split}.txt", "".join(f"{line.format(name)}\n" for name in objects))
    put(tmp_path / "classes.txt", "bus\ncar\n")
    splits = find_layout(tmp_path).splits()
    assert {name: objects_in(split) for name, split in splits.items()} == {
        "train": expected(TRAIN, True), "val": expected(VAL, True),
    }  # fmt: skip


def test_objects365s_paths_are_found_below_the_folder_of_each_split(tmp_path):
    for split, objects in (("train", TRAIN), ("val", VAL)):
        images(tmp_path / split / "patch0", objects)
        put(tmp_path / "annotations" / f"zhiyuan_objv2_{split}.json", coco(objects, prefix="images/v1/patch0/"))
    splits = find_layout(tmp_path).splits()
    assert (objects_in(splits["train"]), objects_in(splits["val"])) == (expected(TRAIN, True), expected(VAL, True))


def test_images_in_folders_of_classes_are_found_by_names_that_only_one_file_has(tmp_path):
    for name in TRAIN:
        put(tmp_path / "images" / f"class {name}" / f"{name}.jpg")
    put(tmp_path / "train.json", coco(TRAIN))
    assert objects_in(find_layout(tmp_path).train) == expected(TRAIN, True)
    put(tmp_path / "images" / "class c" / "a.jpg")
    assert "a.jpg" in refusal(tmp_path).what


def test_images_of_a_split_that_is_not_there_are_not_those_of_another(tmp_path):
    images(tmp_path / "images" / "train", BOTH)
    for split, objects in (("train", TRAIN), ("val", VAL)):
        put(tmp_path / f"{split}.json", coco(objects))
    assert refusal(tmp_path).code == "DATA-IMAGE-MISSING"


def test_centers_in_the_place_of_corners_are_refused_in_a_table_and_in_coco(tmp_path):
    """This is only inferred from more than MIN_EVIDENCE boxes; here there are 24."""
    centers = [(10 * k + 5, 40, 9, 70) for k in range(9)] + [(90, 70, 18, 18), (50, 70, 9, 18), (20, 70, 9, 18)]
    objects = {name: [("car", *box) for box in centers] for name in "ab"}
    images(tmp_path, "ab")
    put(tmp_path / "train.json", coco(objects))
    assert "24 boxes reach beyond their image; are they the center, width and height?" in refusal(tmp_path).what
    (tmp_path / "train.json").unlink()
    table(tmp_path, ["image,class,x,y,w,h", *rows("{n}.jpg,{k},{x},{y},{w},{h}", objects)])
    assert refusal(tmp_path).code == "DATA-BOX-CORNERS"


@pytest.mark.parametrize(("given", "meant"), [
    ("data.yaml", "."), ("images/train", "."), ("labels", "."), ("cars.zip", "cars"), ("annotations/a.json", "."),
])  # fmt: skip
def test_what_lies_in_a_data_folder_is_answered_with_the_folder(tmp_path, given, meant):
    folder = tmp_path / "my data"
    for split, objects in (("train", TRAIN), ("val", VAL)):
        images(folder / "images" / split, objects)
        for name, those in objects.items():
            put(folder / "labels" / split / f"{name}.txt", yolo(those))
    put(folder / "data.yaml", "train: images/train\nval: images/val\nnames: [bus, car]\n")
    put(folder / "annotations" / "a.json", "{}")
    put(folder / "cars.zip", "PK")
    assert f"'{(folder / meant).as_posix()}'" in refusal(folder / given).fix


def test_archives_that_are_not_unpacked_are_named(tmp_path):
    put(tmp_path / "train2017.zip", "PK")
    put(tmp_path / "annotations_trainval2017.zip", "PK")
    found = refusal(tmp_path)
    assert "2 .zip in the folder itself" in found.what and "unpack the archives" in found.fix
