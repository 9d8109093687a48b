"""CSV tables of boxes: which columns are recognised, which rows belong to which split, and category ids."""

from pathlib import Path

import pytest
from PIL import Image

from dinocore.data.annotations import Annotations, read_annotations
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError

BOXES = {"a": (3, 4, 20, 30), "b": (10, 0, 50, 40), "c": (0, 7, 9, 11)}  # x, y, width, height


def put_table(folder: Path, name: str, lines: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in BOXES:
        Image.new("RGB", (64, 48)).save(folder / f"{stem}.jpg")
    (folder / name).write_text("\n".join(lines) + "\n")


def rows(row: str) -> list[str]:
    """One row per box; the classes of a, b and c are elk, owl and elk, with ids 7, 30 and 7."""
    classes = {"a": ("elk", 7), "b": ("owl", 30), "c": ("elk", 7)}
    return [
        row.format(n=stem, x=x, y=y, w=w, h=h, X=x + w, Y=y + h, cx=x + w / 2, cy=y + h / 2, c=name, i=number)
        for stem, (x, y, w, h) in BOXES.items() for name, number in [classes[stem]]
    ]  # fmt: skip


def objects(loaded: Annotations) -> dict[str, tuple[str, tuple[float, ...]]]:
    return {
        loaded.path(i).stem: (loaded.categories[loaded.labels[k]].name, tuple(loaded.boxes[k].tolist()))
        for k, i in enumerate(loaded.owners().tolist())
    }


EXPECTED = {"a": ("elk", BOXES["a"]), "b": ("owl", BOXES["b"]), "c": ("elk", BOXES["c"])}
HEADERS = {
    "Image Name;x-min;y-min;x-max;y-max;Category Name": "{n}.jpg;{x};{y};{X};{Y};{c}",
    "file_path,imgWidth,imgHeight,species,X1,Y1,X2,Y2": "{n}.jpg,64,48,{c},{x},{y},{X},{Y}",
    "frame,xmin,xmax,ymin,ymax,labels": "{n}.jpg,{x},{X},{y},{Y},{c}",
    "class,img,width,height,cx,cy,w,h": "{c},{n}.jpg,64,48,{cx},{cy},{w},{h}",
    "image,x1,y1,x2,y2,class,class_name": "{n}.jpg,{x},{y},{X},{Y},{i},{c}",
    "tag,fname,center_x,center_y,width,height": "{c},{n}.jpg,{cx},{cy},{w},{h}",
    "image_id,bbox,label": '{n},"[{x}. {y}. {w}. {h}.]",{c}',
    "image_id,label,BoxesString": "{n},{c},{x} {y} {X} {Y}",
    "{n}.jpg,{x},{y},{X},{Y},{c},64,48": "",
    "{c},{x},{y},{w},{h},{n}.jpg,64,48": "",
}


@pytest.mark.parametrize("header", HEADERS)
def test_columns_are_recognised_by_various_names_and_without_a_header(tmp_path, header):
    lines = [header, *rows(HEADERS[header])] if HEADERS[header] else rows(header)
    put_table(tmp_path, "boxes.csv", lines)
    assert objects(read_annotations(find_layout(tmp_path).train)) == EXPECTED


def test_several_boxes_in_a_cell_are_read_and_a_word_means_no_box(tmp_path):
    put_table(tmp_path, "train.csv", ["image_name,BoxesString", "a,1 2 11 22;5 6 25 16", "b,no_box", "c,3 4 13 9"])
    annotations = read_annotations(find_layout(tmp_path).train)
    assert annotations.boxes.tolist() == [[1, 2, 10, 20], [5, 6, 20, 10], [3, 4, 10, 5]]
    assert annotations.owners().tolist() == [0, 0, 2] and len(annotations.file_names) == 3


def test_a_class_id_column_without_names_gives_classes_in_ascending_order(tmp_path):
    put_table(tmp_path, "boxes.csv", ["image,xmin,ymin,xmax,ymax,Class ID", *rows("{n}.jpg,{x},{y},{X},{Y},{i}")])
    train = read_annotations(find_layout(tmp_path).train)
    assert [tuple(c) for c in train.categories] == [(7, "7"), (30, "30")] and train.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("header", "row", "classes"), [
    ("image_id,class_id,x1,y1,x2,y2", "{n},{i}.0,{x},{y},{X},{Y}", [(7, "7"), (30, "30")]),
    ("image_id,name,class_id,x1,y1,x2,y2", "{n},{c},{i}.0,{x},{y},{X},{Y}", [(7, "elk"), (30, "owl")]),
])  # fmt: skip
def test_class_ids_may_be_whole_floats(tmp_path, header, row, classes):
    put_table(tmp_path, "train.csv", [header, *rows(row)])
    assert [tuple(c) for c in read_annotations(find_layout(tmp_path).train).categories] == classes


@pytest.mark.parametrize(("change", "ids"), [
    (lambda row: row, [(7, "elk"), (30, "owl")]),
    (lambda row: row.replace(",30", ",0"), [(0, "owl"), (7, "elk")]),
    (lambda row: row.replace(",30", ",7"), [(1, "elk"), (2, "owl")]),  # two classes with the same id
    (lambda row: row.replace(",30", ","), [(1, "elk"), (2, "owl")]),
])  # fmt: skip
def test_classes_keep_the_ids_of_a_category_id_column_if_they_are_valid(tmp_path, change, ids):
    lines = ["image,label,xmin,ymin,xmax,ymax,category_id", *map(change, rows("{n}.jpg,{c},{x},{y},{X},{Y},{i}"))]
    put_table(tmp_path, "train.csv", lines)
    annotations = read_annotations(find_layout(tmp_path).train)
    assert [tuple(c) for c in annotations.categories] == ids and objects(annotations) == EXPECTED


def test_a_table_without_a_class_column_reports_its_unread_columns(tmp_path):
    lines = ["id,image,width,height,kind,x1,y1,x2,y2", *rows("{i},{n}.jpg,64,48,{c},{x},{y},{X},{Y}")]
    put_table(tmp_path, "train.csv", lines)
    note = "no column names classes: all are `object`; not read: id, kind (call a column of classes `class`)"
    assert read_annotations(find_layout(tmp_path).train).notes == [note]


@pytest.mark.parametrize("column", ["split", "Subset", "data_split"])
def test_a_split_column_assigns_rows_to_splits(tmp_path, column):
    parts = {"a": "TRAIN", "b": "Validation", "c": "test"}
    lines = [f"{line},{parts[line[0]]}" for line in rows("{n}.jpg,{x},{y},{X},{Y},{c}")]
    put_table(tmp_path, "all.csv", [f"image,xmin,ymin,xmax,ymax,label,{column}", *lines])
    actual = {name: objects(read_annotations(split)) for name, split in find_layout(tmp_path).splits().items()}
    assert actual == {"train": {"a": EXPECTED["a"]}, "val": {"b": EXPECTED["b"]}, "test": {"c": EXPECTED["c"]}}


def test_images_may_be_in_folders_named_after_their_split(tmp_path):
    parts = {"a": "train", "b": "val", "c": "train"}
    lines = [f"{line},{parts[line[0]]}" for line in rows("{n}.jpg,{x},{y},{X},{Y},{c}")]
    put_table(tmp_path, "all.csv", ["image,xmin,ymin,xmax,ymax,label,split", *lines])
    for stem, part in parts.items():
        (tmp_path / "images" / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{stem}.jpg").rename(tmp_path / "images" / part / f"{stem}.jpg")
    actual = {name: objects(read_annotations(split)) for name, split in find_layout(tmp_path).splits().items()}
    assert actual == {"train": {"a": EXPECTED["a"], "c": EXPECTED["c"]}, "val": {"b": EXPECTED["b"]}}


def test_rows_with_an_unknown_split_are_skipped_and_reported(tmp_path):
    parts = {"a": "train", "b": "spare", "c": "dev"}
    lines = [f"{line},{parts[line[0]]}" for line in rows("{n}.jpg,{x},{y},{X},{Y},{c}")]
    put_table(tmp_path, "all.csv", ["image,xmin,ymin,xmax,ymax,label,set", *lines])
    layout = find_layout(tmp_path)
    train = read_annotations(layout.train)
    assert objects(train) == {"a": EXPECTED["a"]}
    assert objects(read_annotations(layout.splits()["val"])) == {"c": EXPECTED["c"]}
    assert train.notes == ["rows skipped, because their split column names no known split: line 3"]


@pytest.mark.parametrize("parts", [("train", "train", "train"), ("val", "", "val"), ("1", "2", "3")])
def test_a_split_column_that_does_not_name_several_splits_is_ignored(tmp_path, parts):
    lines = [f"{line},{part}" for line, part in zip(rows("{n}.jpg,{x},{y},{X},{Y},{c}"), parts, strict=True)]
    put_table(tmp_path, "all.csv", ["image,xmin,ymin,xmax,ymax,label,split", *lines])
    layout = find_layout(tmp_path)
    assert layout.val is None and objects(read_annotations(layout.train)) == EXPECTED


def test_tables_with_the_same_name_in_two_folders_are_refused(tmp_path):
    for folder in ("north", "south"):
        put_table(tmp_path / folder, "boxes.csv", ["image,xmin,ymin,xmax,ymax,label", "a.jpg,1,2,30,40,elk"])
    with pytest.raises(DataError, match=r"north/boxes\.csv and south/boxes\.csv may both be"):
        find_layout(tmp_path)
