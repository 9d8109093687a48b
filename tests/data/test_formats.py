"""YOLO, Pascal VOC and dataset.toml: reading, errors, and round trips through the exporter."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data.annotations import read_annotations
from dinocore.data.dataset import open_dataset
from dinocore.data.formats.export import write_dataset
from dinocore.data.formats.layout import find_layout
from dinocore.data.formats.voc import parse_xml
from dinocore.errors import DataError

XML = """<annotation><filename>{name}</filename><size><width>32</width><height>24</height></size>
<object><name>{kind}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"""


def put(path: Path, text: str | None = None):
    """Write a text file, or a 32 x 24 image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        Image.new("RGB", (32, 24), "teal").save(path)
    else:
        path.write_text(text)


def data_error(folder: Path, config: DataConfig | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read_annotations(find_layout(folder).train, config=config or DataConfig())
    return caught.value


def yolo(folder: Path, labels: str, yaml: str = "train: images/train\nval: images/val\nnames: [cell, dot]\n"):
    put(folder / "data.yaml", yaml)
    put(folder / "images" / "train" / "a.png")
    put(folder / "images" / "val" / "b.png")
    put(folder / "labels" / "train" / "a.txt", labels)
    return folder


def voc_xml(x0, y0, x1, y1, name="a.png", kind="cell", difficult=0) -> str:
    return XML.format(name=name, kind=kind, difficult=difficult, x0=x0, y0=y0, x1=x1, y1=y1)


# YOLO


@pytest.mark.parametrize(
    ("yaml", "image_folder"),
    [
        ("train: images/train\nnames: [cell, dot]\nnc: 2", "images/train"),
        ("path: /home/somebody/else\ntrain: images/train\nnames: {0: cell, 1: dot}", "images/train"),
        ("train: ../train/images\nval: ../valid/images\nnames: [cell, dot]", "train/images"),
        ("names: [cell, dot]", "train/images"),
        ("train: /content/datasets/mine/train/images\nnames: {'0': cell, '1': dot}", "train/images"),
        ("train: [images/one, images/two]\nnames: [cell, dot]", "images/one"),
    ],
)
def test_yolo_images_are_found_from_data_yaml_and_labels_in_the_matching_folder(tmp_path, yaml, image_folder):
    put(tmp_path / "data.yaml", yaml)
    put(tmp_path / image_folder / "a.png")
    (tmp_path / "images" / "two").mkdir(parents=True)
    put(tmp_path / image_folder.replace("images", "labels") / "a.txt", "1 0.5 0.5 0.25 0.5\n\n0 0.25 0.25 0.5 0.5\n")
    layout = find_layout(tmp_path)
    annotations = read_annotations(layout.train)
    assert layout.kind == "YOLO" and annotations.path(0) == tmp_path / image_folder / "a.png"
    assert [c.name for c in annotations.categories] == ["cell", "dot"] and annotations.sizes.tolist() == [[32, 24]]
    assert annotations.boxes.tolist() == [[12, 6, 8, 12], [0, 0, 16, 12]] and annotations.labels.tolist() == [1, 0]


def test_a_label_file_shared_by_images_with_different_suffixes_is_reported(tmp_path):
    put(tmp_path / "data.yaml", "train: images/train\nnames: [cell, dot]")
    for name in ("a.png", "a.bmp", "b.png"):
        put(tmp_path / "images" / "train" / name)
        put(tmp_path / "labels" / "train" / f"{name[0]}.txt", "0 0.5 0.5 0.25 0.5")
    annotations = read_annotations(find_layout(tmp_path).train)
    assert annotations.notes == ["label files that several images share: a.txt (a.bmp, a.png)"]


@pytest.mark.parametrize(("images", "labels"), [
    ("Images", "Labels"), ("IMAGES", "LABELS"), ("Images", "labels"), ("data/Images/day 1", "data/Labels/day 1"),
])  # fmt: skip
def test_yolo_folder_names_may_be_capitalised(tmp_path, images, labels):
    put(tmp_path / "data.yaml", f"train: {images}\nnames: [cell, dot]\n")
    put(tmp_path / images / "a.png")
    put(tmp_path / images / "b.png")
    put(tmp_path / labels / "a.txt", "0 0.5 0.5 0.25 0.5\n")
    annotations = read_annotations(find_layout(tmp_path).train)
    assert annotations.boxes.tolist() == [[12, 6, 8, 12]] and annotations.notes == []


def test_a_yolo_list_of_images_is_read(tmp_path):
    put(tmp_path / "train.txt", "./images/x/a.png\n\n")
    yolo(tmp_path, "", "train: train.txt\nnames: [cell]")
    put(tmp_path / "images" / "x" / "a.png")
    put(tmp_path / "labels" / "x" / "a.txt", "0 0.5 0.5 1 1\r\n")
    annotations = read_annotations(find_layout(tmp_path).train)
    assert annotations.file_names.tolist() == [b"images/x/a.png"] and annotations.boxes.tolist() == [[0, 0, 32, 24]]


def test_paths_from_another_machine_in_a_yolo_list_are_resolved_within_the_folder(tmp_path):
    put(tmp_path / "train.txt", "data/images/train/a.png\n/home/me/mine/images/val/b.png\n../../c.png\n")
    yolo(tmp_path / "data", "0 0.5 0.5 1 1\n", "train: train.txt\nnames: [cell]")
    put(tmp_path / "c.png")
    os.replace(tmp_path / "train.txt", tmp_path / "data" / "train.txt")
    put(tmp_path / "data" / "images" / "train" / "a.png")
    error = data_error(tmp_path / "data")
    assert error.code == "DATA-PATH-ESCAPE" and "c.png" in error.what and "b.png" not in error.what
    put(tmp_path / "data" / "train.txt", "data/images/train/a.png\n/home/me/mine/images/val/b.png\n")
    names = read_annotations(find_layout(tmp_path / "data").train).file_names.tolist()
    assert names == [b"images/train/a.png", b"images/val/b.png"]


def test_yolo_boxes_are_rounded_to_whole_pixels_only_within_six_decimals(tmp_path):
    """A third of 24 pixels is 8, but 0.333333 * 24 is 7.999992."""
    train = read_annotations(find_layout(yolo(tmp_path, "0 0.5 0.333333 0.25 0.333333\n0 0.5 0.31 0.25 0.33\n")).train)
    assert train.boxes[0].tolist() == [12, 4, 8, 8]
    assert train.boxes[1].tolist() == pytest.approx([12, 3.48, 8, 7.92])


def test_images_with_an_empty_or_missing_label_file_are_background(tmp_path):
    layout = find_layout(yolo(tmp_path, ""))
    assert len(read_annotations(layout.train).boxes) == len(read_annotations(layout.val).boxes) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2: 6 columns, a box has 5"),
        ("0 0,5 0.5 0.1 0.1", "line 2: commas"),
        ("2 0.5 0.5 0.1 0.1", "line 2: class 2, known are 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "line 2: class 0.5"),
        ("0 0.5 0.5 nan 0.1", "line 2: numbers that are not finite"),
        ("0 a b c d", "line 2: not numbers"),
        ("0 0.5", "line 2: 2 columns"),
        ("0 50 30 20 20", "line 2: 50, but fractions of the image's width and height are at most 1"),
    ],
)
def test_an_invalid_yolo_line_is_reported_with_its_number(tmp_path, line, message):
    error = data_error(yolo(tmp_path, f"0 0.5 0.5 0.1 0.1\r\n{line}\r\n"))
    assert error.code == "DATA-LABEL-LINE" and f"a.txt {message}" in str(error)


def test_the_box_of_a_polygon_is_its_extent(tmp_path):
    annotations = read_annotations(find_layout(yolo(tmp_path, "1 0.25 0.5 0.5 0.25 0.75 0.75 0.5 0.5\n")).train)
    assert annotations.boxes.tolist() == [[8, 6, 16, 12]]


@pytest.mark.parametrize(
    ("yaml", "code"),
    [
        ("train: images/train", "DATA-YAML"),
        ("train: images/train\nnames: [a]\nnc: 2", "DATA-YAML"),
        ("names: {0: a, 2: b}", "DATA-YAML"),
        ("names: [[a, b], [c, d]]", "DATA-YAML"),
        ("train: images/nowhere\nnames: [a]", "DATA-YAML"),
        ("names: [a\n", "DATA-YAML"),
        ("- a\n", "DATA-YAML"),
        ("train: ../outside\nnames: [a]", "DATA-PATH-ESCAPE"),
        ("train: !!python/object/apply:os.system ['touch pwned']\nnames: [a]", "DATA-YAML"),
    ],
)
def test_an_invalid_data_yaml_is_refused_and_runs_no_code(tmp_path, monkeypatch, yaml, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside").mkdir()
    assert data_error(yolo(tmp_path / "data", "", yaml)).code == code
    assert not list(tmp_path.rglob("pwned"))


def test_label_studio_yolo_is_read_with_classes_txt_and_labels_beside_images(tmp_path):
    put(tmp_path / "classes.txt", "cell\ndot\n")
    put(tmp_path / "notes.json", "{}")
    put(tmp_path / "images" / "a.png")
    put(tmp_path / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5\n")
    put(tmp_path / "images" / "b.png")
    put(tmp_path / "images" / "b.txt", "0 0.5 0.5 0.25 0.5\n")
    layout = find_layout(tmp_path)
    annotations = read_annotations(layout.train)
    assert layout.kind == "YOLO, classes.txt" and [c.name for c in annotations.categories] == ["cell", "dot"]
    assert annotations.labels.tolist() == [1, 0] and annotations.notes == []


def test_a_yolo_split_without_label_files_is_reported_with_the_expected_path(tmp_path):
    layout = find_layout(yolo(tmp_path, ""))
    assert read_annotations(layout.train).notes == []
    assert f"such as {tmp_path / 'labels' / 'val' / 'b.txt'}" in read_annotations(layout.val).notes[0]


# Pascal VOC


def test_voc_files_and_images_in_one_folder_are_read(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "a.xml", voc_xml(1, 1, 9, 9))
    assert read_annotations(find_layout(tmp_path).train).boxes.tolist() == [[0, 0, 9, 9]]


def test_voc_with_only_a_test_list_has_only_a_val_split(tmp_path):
    put(tmp_path / "JPEGImages" / "a.png")
    put(tmp_path / "Annotations" / "a.xml", voc_xml(1, 1, 9, 9))
    put(tmp_path / "ImageSets" / "Main" / "test.txt", "a\n")
    assert list(find_layout(tmp_path).splits()) == ["val"]


def test_voc_counts_pixels_from_1_unless_a_corner_is_0(tmp_path):
    put(tmp_path / "JPEGImages" / "a.png")
    put(tmp_path / "Annotations" / "a.xml", voc_xml(1, 3, 32, 12, difficult=1))
    layout = find_layout(tmp_path)
    annotations = read_annotations(layout.train)
    assert layout.kind == "Pascal VOC" and layout.val is None
    assert annotations.boxes.tolist() == [[0, 2, 32, 10]] and annotations.crowd.tolist() == [True]
    put(tmp_path / "Annotations" / "b.xml", voc_xml(0, 3, 32, 12, name="a.png"))
    assert read_annotations(find_layout(tmp_path).train).boxes[0].tolist() == [1, 3, 31, 9]


def test_an_unclear_first_pixel_in_voc_is_reported_and_can_be_set(tmp_path):
    put(tmp_path / "JPEGImages" / "a.png")
    put(tmp_path / "Annotations" / "a.xml", voc_xml(5, 3, 30, 12))
    split = find_layout(tmp_path).train
    annotations = read_annotations(split)
    assert annotations.boxes.tolist() == [[4, 2, 26, 10]] and "whether pixels count from 0 or 1" in annotations.notes[0]
    from_0 = read_annotations(split, config=DataConfig(voc_first_pixel=0))
    assert from_0.boxes.tolist() == [[5, 3, 25, 9]] and from_0.notes == []
    put(tmp_path / "Annotations" / "b.xml", voc_xml(9, 1, 30, 12, name="a.png"))
    assert not any("from 0 or 1" in note for note in read_annotations(find_layout(tmp_path).train).notes)


def test_voc_image_sets_are_the_splits_and_classes_come_from_all_files(tmp_path):
    for name, kind in (("a", "zebra"), ("b", "ant"), ("c", "cat")):
        put(tmp_path / "JPEGImages" / f"{name}.png")
        put(tmp_path / "Annotations" / f"{name}.xml", voc_xml(2, 2, 9, 9, name=f"{name}.png", kind=kind))
    put(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    put(tmp_path / "ImageSets" / "Main" / "val.txt", "c  1\n")
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert [c.name for c in data.val.categories] == ["ant", "cat", "zebra"]
    assert data.train.labels.tolist() == [2, 0] and data.val.labels.tolist() == [1]


def test_voc_files_beside_images_in_split_folders_are_roboflow_voc(tmp_path):
    for folder in ("train", "valid", "test"):
        put(tmp_path / folder / "a.png")
        put(tmp_path / folder / "a.xml", voc_xml(2, 2, 9, 9, name="somewhere\\else\\a.png"))
    layout = find_layout(tmp_path)
    assert layout.kind == "Roboflow VOC" and set(layout.splits()) == {"train", "val", "test"}
    assert read_annotations(layout.val).path(0) == tmp_path / "valid" / "a.png"


BOMB = b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'
LEAK = b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'


@pytest.mark.parametrize("content", [BOMB, LEAK, BOMB.decode().encode("utf-16"), b"<a><b></a>", b"", b"\xff"])
def test_xml_that_declares_entities_or_is_broken_is_refused(tmp_path, content):
    with pytest.raises(ValueError):
        parse_xml(content)
    put(tmp_path / "JPEGImages" / "a.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_bytes(content)
    error = data_error(tmp_path)
    assert error.code == "DATA-XML" and "a.xml" in str(error)


def test_an_xml_file_that_is_not_voc_is_refused_with_its_root_element(tmp_path):
    put(tmp_path / "JPEGImages" / "a.png")
    put(tmp_path / "Annotations" / "annotations.xml", "<annotations><image name='a.png'/></annotations>")
    assert "annotations.xml: it starts with <annotations> instead of Pascal VOC's <annotation>" in str(
        data_error(tmp_path)
    )


@pytest.mark.parametrize("corners", [("nan", 1, 2, 3), ("a", 1, 2, 3), ("", 1, 2, 3)])
def test_voc_corners_that_are_not_numbers_are_refused(tmp_path, corners):
    put(tmp_path / "JPEGImages" / "a.png")
    put(tmp_path / "Annotations" / "a.xml", voc_xml(*corners))
    assert data_error(tmp_path).code == "DATA-XML"


def write_voc_year(folder, classes: dict[str, str], **lists: str) -> None:
    """A devkit folder of images, each with one object of a class, and its lists of names."""
    for name, kind in classes.items():
        put(folder / "JPEGImages" / f"{name}.png")
        put(folder / "Annotations" / f"{name}.xml", voc_xml(1, 5, 8, 10, name=f"{name}.png", kind=kind))
    for split, listed in lists.items():
        put(folder / "ImageSets" / "Main" / f"{split}.txt", "\n".join(listed.split()))


@pytest.mark.parametrize("parent", ["", "VOCdevkit"])
def test_several_years_of_pascal_voc_are_read_together_by_their_lists(tmp_path, parent):
    classes = {"a": "cat", "b": "dog", "c": "cat", "d": "dog"}
    write_voc_year(tmp_path / parent / "VOC2007", classes, train="a b", val="c", trainval="a b c", test="d")
    write_voc_year(tmp_path / parent / "VOC2012", {"a": "owl", "e": "cat"}, train="a", val="e", cat_train="a -1")
    layout = find_layout(tmp_path)
    assert layout.kind == "Pascal VOC, VOC2007 and VOC2012" and layout.test is not None and layout.val is not None
    train, val, test = map(read_annotations, (layout.train, layout.val, layout.test))
    assert [category.name for category in train.categories] == ["cat", "dog", "owl"]
    files = ["VOC2007/JPEGImages/a.png", "VOC2007/JPEGImages/b.png", "VOC2012/JPEGImages/a.png"]
    assert [train.path(i) for i in range(3)] == [tmp_path / parent / name for name in files]
    assert [train.categories[label].name for label in train.labels] == ["cat", "dog", "owl"]
    assert [val.path(i).name for i in range(len(val.image_ids))] == ["c.png", "e.png"]
    assert [test.path(i).name for i in range(len(test.image_ids))] == ["d.png"]


def test_val_images_are_removed_from_the_trainval_list_of_any_year(tmp_path):
    kinds = {"a": "cat", "b": "dog"}
    write_voc_year(tmp_path / "VOC2007", kinds, train="a", val="b")
    write_voc_year(tmp_path / "VOC2012", kinds, trainval="a b", val="b")
    train = read_annotations(find_layout(tmp_path).train)
    assert [train.path(i).relative_to(tmp_path).parts[0] for i in range(2)] == ["VOC2007", "VOC2012"]
    assert [train.path(i).stem for i in range(len(train.image_ids))] == ["a", "a"]


def test_a_year_of_pascal_voc_without_lists_is_not_dropped_silently(tmp_path):
    write_voc_year(tmp_path / "VOC2007", {"a": "cat", "b": "dog"}, train="a", val="b")
    write_voc_year(tmp_path / "VOC2012", {"c": "cat"}, cat_train="c 1")
    with pytest.raises(DataError, match="VOC2012"):
        find_layout(tmp_path)


def test_a_missing_xml_file_of_a_year_of_pascal_voc_is_reported_with_its_folder(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        write_voc_year(tmp_path / year, {"a": "cat"}, train="a", val="a")
    (tmp_path / "VOC2012" / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"VOC2012/Annotations/a\.xml"):
        read_annotations(find_layout(tmp_path).train)


def test_an_image_missing_from_a_year_of_pascal_voc_is_reported_with_its_folder(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        write_voc_year(tmp_path / year, {"a": "cat", "b": "dog"}, train="a", val="b")
    (tmp_path / "VOC2012" / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError, match=r"VOC2012/JPEGImages/a\.png"):
        read_annotations(find_layout(tmp_path).train)


# dataset.toml


def test_a_dataset_toml_sets_format_classes_and_folders(tmp_path):
    put(tmp_path / "pics" / "a.png")
    put(tmp_path / "xml" / "a.xml", voc_xml(2, 2, 9, 9, kind="dot"))
    put(
        tmp_path / "dataset.toml",
        """format = "voc"\nnames = ["dot", "cell"]\nfirst_pixel = 0
        [train]\nannotations = "xml"\nimages = "pics"\n""",
    )
    layout = find_layout(tmp_path)
    annotations = read_annotations(layout.train)
    assert layout.kind == "dataset.toml, voc" and annotations.boxes.tolist() == [[2, 2, 7, 7]]
    assert [c.name for c in annotations.categories] == ["dot", "cell"]


@pytest.mark.parametrize(
    "text",
    [
        'format = "pascal"\n[train]\nimages = "pics"',
        'format = "coco"\n[train]\nimages = "pics"\nannotations = "none.json"',
        'format = "coco"\n[train]\nimages = "nowhere"\nannotations = "a.json"',
        'format = "yolo"\n[train]\nimages = "pics"',
        'format = "yolo"\nnames = ["a"]\n[train]\nimages = "pics"\nlabel = "x"',
        "format = ",
    ],
)  # fmt: skip
def test_an_invalid_dataset_toml_is_refused(tmp_path, text):
    put(tmp_path / "pics" / "a.png")
    put(tmp_path / "dataset.toml", text)
    assert data_error(tmp_path).code == "DATA-MANIFEST"


# files outside the data folder are not opened


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """An image outside the data folder; opening it fails the test."""
    file = tmp_path / "canary.png"
    put(file)
    real_open = Image.open
    monkeypatch.setattr(
        Image,
        "open",
        lambda path, **options: (
            pytest.fail("the canary was opened") if os.path.realpath(path) == str(file) else real_open(path, **options)
        ),
    )
    return file


@pytest.mark.parametrize("kind", ["image", "folder"])
def test_a_symlink_out_of_the_folder_is_refused(make_coco, tmp_path, canary, kind):
    split = make_coco()._replace(folder=tmp_path / "annotations")
    image_root = tmp_path / "annotations" / "pictures"
    if kind == "folder":
        image_root.symlink_to(tmp_path / "train2017")
    else:
        image_root.mkdir()
        for name in ("0007.png", "0009.png"):
            (image_root / name).symlink_to(canary)
    split = split._replace(image_roots=[image_root])
    with pytest.raises(DataError, match=r"2 of 2 images lead through a link out") as caught:
        read_annotations(split)
    assert caught.value.code == "DATA-PATH-ESCAPE" and "data.follow_symlinks=true" in caught.value.fix
    if kind == "folder":
        assert len(read_annotations(split, config=DataConfig(follow_symlinks=True)).image_ids) == 2


def test_a_symlink_within_the_folder_is_followed(make_coco, tmp_path):
    split = make_coco()._replace(folder=tmp_path)
    (tmp_path / "train2017").rename(tmp_path / "elsewhere")
    (tmp_path / "train2017").symlink_to(tmp_path / "elsewhere")
    assert len(read_annotations(split).image_ids) == 2


@pytest.mark.parametrize("name", ["../../canary.png", "/canary.png"])
def test_a_path_out_of_the_folder_in_a_yolo_list_is_refused(tmp_path, canary, name):
    yolo(tmp_path / "data", "", "train: list.txt\nnames: [a]")
    put(tmp_path / "data" / "list.txt", (str(canary) if name[0] == "/" else name) + "\n")
    assert data_error(tmp_path / "data").code == "DATA-PATH-ESCAPE"


OUTSIDE = {  # a file that may be a link, and the other files that its format needs
    "data.yaml": ["images/train/a.png", "labels/train/a.txt"],
    "dataset.toml": ["images/a.png"],
    "annotations/instances_train2017.json": ["train2017/a.png"],
    "train/_annotations.coco.json": ["train/a.png"],
    "annotations.json": ["a.png"],
    "labelmap.txt": ["JPEGImages/a.png", "Annotations/a.xml"],
    "ImageSets/Main/train.txt": ["JPEGImages/a.png", "Annotations/a.xml"],
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_annotations_symlinked_from_outside_are_not_opened(tmp_path, monkeypatch, name):
    """The canary is a named pipe; opening it would block forever."""
    os.mkfifo(tmp_path / "canary")
    real_is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: os.path.realpath(path) == str(tmp_path / "canary") or real_is_file(path)
    )
    folder = tmp_path / "data"
    for other in OUTSIDE[name]:
        put(folder / other, None if other.endswith("png") else voc_xml(1, 1, 9, 9) if other.endswith("xml") else "")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(tmp_path / "canary")
    with pytest.raises(DataError, match="a link leads out of the data folder") as caught:
        find_layout(folder)
    assert caught.value.code == "DATA-PATH-ESCAPE" and "data.follow_symlinks=true" in caught.value.fix


def test_annotations_outside_are_read_with_follow_symlinks(tmp_path):
    yolo(tmp_path / "data", "0 0.5 0.5 1 1\n")
    (tmp_path / "data" / "data.yaml").rename(tmp_path / "kept.yaml")
    (tmp_path / "data" / "data.yaml").symlink_to(tmp_path / "kept.yaml")
    assert len(read_annotations(find_layout(tmp_path / "data", follow_symlinks=True).train).boxes) == 1


# round trips


def assert_same_annotations(a, b, tolerance: float = 0.0):
    assert [c.name for c in a.categories] == [c.name for c in b.categories]
    assert [Path(os.fsdecode(n)).stem for n in a.file_names] == [
        Path(os.fsdecode(n)).stem.removesuffix("-val1") for n in b.file_names
    ]
    assert a.sizes.tolist() == b.sizes.tolist() and a.starts.tolist() == b.starts.tolist()
    assert a.labels.tolist() == b.labels.tolist()
    assert np.abs(a.boxes - b.boxes).max(initial=0) <= tolerance


@pytest.mark.parametrize("whole_pixels", [True, False])
@pytest.mark.parametrize("kind", ["yolo", "voc", "coco"])
def test_exported_annotations_are_read_back_unchanged(make_coco, tmp_path, kind, whole_pixels):
    def add_fractions(document):
        for row in document["annotations"]:
            row["bbox"] = [value + 0.1 * (n + 1) for n, value in enumerate(row["bbox"])]

    objects = {7: [(1, 10, 5, 20, 12), (2, 40, 20, 16, 24), (3, 1, 1, 9, 9)], 9: [], 11: [(2, 3, 4, 5, 6)]}
    categories = {1: "zebra", 2: "été", 3: "a & <b>"}
    train = read_annotations(make_coco(objects, categories=categories, edit=None if whole_pixels else add_fractions))
    val = read_annotations(make_coco(objects, categories=categories, name="val"))
    out = tmp_path / "out"
    list(write_dataset({"train": (train, "coco"), "val": (val, "coco")}, kind, out, link=True))
    layout = find_layout(out)
    reread = read_annotations(layout.train)
    assert_same_annotations(train, reread, 0 if whole_pixels or kind == "coco" else 1e-12)
    assert_same_annotations(val, read_annotations(layout.val, reread.categories))
    coco_folder = tmp_path / "back"
    list(write_dataset({"train": (reread, layout.train.format)}, "coco", coco_folder, link=False))
    final = read_annotations(find_layout(coco_folder).train)
    assert_same_annotations(reread, final)
    assert [c.id for c in final.categories] == [1, 2, 3]


def test_crowds_are_difficult_in_voc_and_counted_as_lost_in_yolo(make_coco, tmp_path):
    annotations = read_annotations(make_coco(edit=lambda d: d["annotations"][0].update(iscrowd=1)))
    list(write_dataset({"train": (annotations, "coco")}, "voc", tmp_path / "voc", link=False))
    assert read_annotations(find_layout(tmp_path / "voc").train).crowd.tolist() == [True, False, False]
    *_, last = write_dataset({"train": (annotations, "coco")}, "yolo", tmp_path / "yolo", link=False)
    assert last.lost_crowds == 1 and len(read_annotations(find_layout(tmp_path / "yolo").train).boxes) == 2


def test_images_that_differ_only_in_suffix_are_exported_separately(make_coco, tmp_path):
    def rename(document):
        for row, name in zip(document["images"], ("a.png", "a.jpg"), strict=True):
            (tmp_path / "train2017" / row["file_name"]).rename(tmp_path / "train2017" / name)
            row["file_name"] = name

    annotations = read_annotations(make_coco(edit=rename))
    for kind in ("yolo", "voc"):
        list(write_dataset({"train": (annotations, "coco")}, kind, tmp_path / kind, link=False))
        counts = np.diff(read_annotations(find_layout(tmp_path / kind).train).starts)
        assert sorted(counts.tolist()) == [1, 2]
