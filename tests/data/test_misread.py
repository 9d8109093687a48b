"""Inputs as real tools write them, each of which was once silently misread."""

import json
import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data.annotations import Category, read_annotations
from dinocore.data.dataset import open_dataset, open_split
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError

WIDTH, HEIGHT = 320, 200
YAML = "train: images/train\nval: images/val\nnames: [c]\n"


def put(path: Path, text: str | None = None) -> Path:
    """Write a text file, or a 320 x 200 image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        Image.new("RGB", (WIDTH, HEIGHT), "teal").save(path)
    else:
        path.write_text(text)
    return path


def xml(box, name="a.jpg", kind="c") -> str:
    x, y, w, h = box
    return (
        f"<annotation><filename>{name}</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><object>"
        f"<name>{kind}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        "</bndbox></object></annotation>"
    )


def random_box(rng: random.Random) -> tuple[int, int, int, int]:
    return rng.randint(0, 200), rng.randint(0, 120), rng.randint(20, 100), rng.randint(20, 70)


def fractions(box) -> list[float]:
    x, y, w, h = box
    return [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]


def yolo(folder: Path, line, num=12, yaml=YAML, splits=("train", "val")) -> dict[str, list]:
    """Write a YOLO folder with one object per image, formatted by `line(box)`, and return the boxes by split."""
    rng, boxes = random.Random(7), {}
    put(folder / "data.yaml", yaml)
    for split in splits:
        boxes[split] = [random_box(rng) for _ in range(num)]
        for i, box in enumerate(boxes[split]):
            put(folder / "images" / split / f"{i:03d}.jpg")
            put(folder / "labels" / split / f"{i:03d}.txt", f"{line(box)}\n")
    return boxes


def yolo_line(*values: float) -> str:
    return " ".join(["0", *(f"{value:.6f}" for value in values)])


def read(folder: Path, split="train", config=None):
    return read_annotations(find_layout(folder).splits()[split], config=config or DataConfig())


def close(annotations, boxes) -> bool:
    return annotations.boxes.shape == (len(boxes), 4) and np.allclose(annotations.boxes, list(boxes), atol=0.01)


def keypoints(box, count: int, dims: int) -> list[float]:
    x, y, w, h = box
    points = [((x + w * (k + 1) / (count + 1)) / WIDTH, (y + h / 3) / HEIGHT) for k in range(count)]
    return [v for k, point in enumerate(points) for v in (*point, k % 3)[:dims]]


@pytest.mark.parametrize(("count", "dims"), [(1, 2), (2, 2), (3, 2), (2, 3), (17, 3), (5, 3)])
@pytest.mark.parametrize("has_kpt_shape", [True, False])
def test_keypoints_after_a_box_are_not_a_polygon(tmp_path, count, dims, has_kpt_shape):
    yaml = YAML + (f"kpt_shape: [{count}, {dims}]\n" if has_kpt_shape else "")
    boxes = yolo(tmp_path, lambda box: yolo_line(*fractions(box), *keypoints(box, count, dims)), yaml=yaml)
    assert close(read(tmp_path), boxes["train"])


def test_a_few_lines_that_may_be_keypoints_or_polygons_are_refused_until_kpt_shape_is_set(tmp_path):
    boxes = yolo(tmp_path, lambda box: yolo_line(*fractions(box), *keypoints(box, 2, 2)), num=3)
    with pytest.raises(DataError, match="either polygons or boxes with keypoints") as caught:
        read(tmp_path)
    assert caught.value.code == "DATA-LABEL-FORM" and "kpt_shape" in caught.value.fix
    put(tmp_path / "data.yaml", YAML + "kpt_shape: [2, 2]\n")
    assert close(read(tmp_path), boxes["train"])


@pytest.mark.parametrize("num", [1, 12])
def test_polygons_become_their_bounding_boxes(tmp_path, num):
    def polygon_line(box):
        x, y, w, h = box
        points = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        return yolo_line(*(v for px, py in points for v in (px / WIDTH, py / HEIGHT)))

    boxes = yolo(tmp_path, polygon_line, num)
    assert close(read(tmp_path), boxes["train"])


def test_lines_with_a_confidence_and_a_track_are_refused(tmp_path):
    yolo(tmp_path, lambda box: yolo_line(*fractions(box), 0.93) + " 1")
    with pytest.raises(DataError, match="a box, a confidence and a track"):
        read(tmp_path)


@pytest.mark.parametrize("convention", ["x0 y0 x1 y1", "the top left corner, width and height"])
def test_normalised_boxes_in_another_convention_are_refused(tmp_path, convention):
    def line(box):
        x, y, w, h = box
        far = (x + w, y + h) if convention == "x0 y0 x1 y1" else (w, h)
        return yolo_line(x / WIDTH, y / HEIGHT, far[0] / WIDTH, far[1] / HEIGHT)

    yolo(tmp_path, line, num=30)
    with pytest.raises(DataError, match=convention):
        read(tmp_path)


def add_hidden_files(folder: Path, kind: str) -> None:
    """Add the hidden files that a system or tool creates beside every file."""
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        if kind == "jupyter":
            copy = file.parent / ".ipynb_checkpoints" / f"{file.stem}-checkpoint{file.suffix}"
        elif kind == "synology":
            copy = file.parent / "@eaDir" / file.name / f"THUMB{file.suffix}"
        elif kind == "zip":
            copy = folder / "__MACOSX" / file.relative_to(folder).parent / f"._{file.name}"
        else:
            copy = file.parent / f"._{file.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        if kind in ("apple", "zip"):
            copy.write_bytes(bytes.fromhex("00051607000200004d6163204f532058") + bytes(200))
        else:
            shutil.copy(file, copy)


@pytest.mark.parametrize("kind", ["jupyter", "apple", "synology", "zip"])
@pytest.mark.parametrize("layout", ["yolo", "voc", "beside", "roboflow", "plain"])
def test_hidden_files_are_ignored(tmp_path, layout, kind):
    document = {"images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
                "categories": [{"id": 1, "name": "c"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}]}  # fmt: skip
    if layout == "yolo":
        yolo(tmp_path, lambda box: yolo_line(*fractions(box)), 2)
    for split in ("train", "val"):
        if layout == "voc":
            put(tmp_path / "JPEGImages" / f"{split}.jpg")
            put(tmp_path / "Annotations" / f"{split}.xml", xml((1, 2, 30, 40)))
        if layout == "beside":
            put(tmp_path / split / "a.jpg")
            put(tmp_path / split / "a.xml", xml((1, 2, 30, 40)))
        if layout == "roboflow":
            put(tmp_path / split / "a.jpg")
            put(tmp_path / split / "_annotations.coco.json", json.dumps(document))
        if layout == "plain":
            put(tmp_path / "images" / "a.jpg")
            put(tmp_path / f"{split}.json", json.dumps(document))

    def read_all():
        splits = {name: read_annotations(location) for name, location in find_layout(tmp_path).splits().items()}
        return {name: (part.file_names.tolist(), part.boxes.tolist()) for name, part in splits.items()}

    clean = read_all()
    add_hidden_files(tmp_path, kind)
    assert read_all() == clean and all(boxes for _, boxes in clean.values())


def test_the_name_of_a_voc_file_takes_precedence_over_its_filename_element(tmp_path):
    rng = random.Random(3)
    boxes = {f"{i:03d}": random_box(rng) for i in range(4)}
    for stem, box in boxes.items():
        put(tmp_path / "JPEGImages" / f"{stem}.jpg")
        put(tmp_path / "Annotations" / f"{stem}.xml", xml(box, name="002.jpg"))
    annotations = read(tmp_path)
    assert [name.decode() for name in annotations.file_names] == [f"{stem}.jpg" for stem in boxes]
    assert close(annotations, list(boxes.values()))
    assert any("`<filename>` is another image" in note and "000.xml says 002.jpg" in note for note in annotations.notes)


@pytest.mark.parametrize(
    "line", ["{}", '"{}"', "{}.jpg", "{}  1", "{} -1", "/home/me/VOC/JPEGImages/{}.jpg", "D:\\x\\{}.jpg"]
)
@pytest.mark.parametrize("stem", ["000001", "my cell", "a 1"])
def test_voc_lists_may_name_images_in_any_common_form(tmp_path, line, stem):
    for name in (stem, "other"):
        put(tmp_path / "JPEGImages" / f"{name}.jpg")
        put(tmp_path / "Annotations" / f"{name}.xml", xml((1, 2, 30, 40)))
    put(tmp_path / "ImageSets" / "Main" / "train.txt", line.format(stem) + "\n")
    assert [name.decode() for name in read(tmp_path).file_names] == [f"{stem}.jpg"]


LIST_LINES = ["images\\train\\{}.jpg", ".\\images\\train\\{}.jpg", "C:\\data\\ds\\images\\train\\{}.jpg"]
LIST_LINES += ["images/train/{}.jpg 1", "# comment\nimages/train/{}.jpg"]


@pytest.mark.parametrize("line", LIST_LINES)
def test_yolo_lists_from_any_system_find_their_labels(tmp_path, line):
    boxes = yolo(tmp_path, lambda box: yolo_line(*fractions(box)), 3, "train: train.txt\nnames: [c]\n", ("train",))
    put(tmp_path / "train.txt", "".join(line.format(f"{i:03d}") + "\n" for i in range(3)))
    assert close(read(tmp_path), boxes["train"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, no]", ["yes", "no"]),
        ("[007, 010, 1_000, 1e3]", ["007", "010", "1_000", "1e3"]),
        ("{0: on, 1: ~, 2: 1.50}", ["on", "~", "1.50"]),
        ("[2024-01-01, 0x1F]", ["2024-01-01", "0x1F"]),
    ],
)
def test_yolo_class_names_are_read_literally(tmp_path, names, expected):
    yolo(
        tmp_path,
        lambda box: yolo_line(*fractions(box)),
        1,
        f"train: images/train\nnc: {len(expected)}\nnames: {names}\n",
    )
    assert [c.name for c in read(tmp_path).categories] == expected


def test_classes_with_the_same_name_are_merged_in_every_split(tmp_path):
    yolo(tmp_path, lambda box: "2" + yolo_line(*fractions(box))[1:], 2, YAML.replace("[c]", "[car, bus, car]"))
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert sorted(c.name for c in data.train.categories) == ["bus", "car"]
    label = [c.name for c in data.train.categories].index("car")
    assert set(data.train.labels.tolist()) == set(data.val.labels.tolist()) == {label}


def test_a_duplicate_yaml_key_is_refused(tmp_path):
    yolo(tmp_path, lambda box: yolo_line(*fractions(box)), 1, YAML + "names: [d]\n")
    with pytest.raises(DataError, match="`names` appears twice"):
        read(tmp_path)


def test_a_missing_val_folder_is_reported_with_a_suggestion(tmp_path):
    yolo(tmp_path, lambda box: yolo_line(*fractions(box)), 1, YAML.replace("images/val", "images/vall"))
    assert "`val: images/vall` of data.yaml does not exist; did you mean images/val?" in find_layout(tmp_path).gap


def test_the_same_folder_for_train_and_val_is_reported(tmp_path):
    yolo(tmp_path, lambda box: yolo_line(*fractions(box)), 2, YAML.replace("images/val", "images/train"), ("train",))
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert data.val is data.train and any("`train` and `val` are the same images" in note for note in data.notes)


def test_a_test_split_can_be_evaluated_on(tmp_path):
    boxes = yolo(
        tmp_path, lambda box: yolo_line(*fractions(box)), 2, YAML + "test: images/test\n", ("train", "val", "test")
    )
    config = DataConfig(path=str(tmp_path))
    assert close(open_split(config, "test", [Category(0, "c")]), boxes["test"])
    shutil.rmtree(tmp_path / "images" / "test")
    with pytest.raises(DataError, match="no test split"):
        open_split(config, "test", None)


def test_other_yaml_files_in_the_folder_are_ignored(tmp_path):
    put(tmp_path / "environment.yml", "name: x\ndependencies: [python]\n")
    put(tmp_path / "docker-compose.yml", "services: {a: [\n")
    put(tmp_path / "JPEGImages" / "a.jpg")
    put(tmp_path / "Annotations" / "a.xml", xml((1, 2, 30, 40)))
    assert find_layout(tmp_path).kind == "Pascal VOC"


def test_unreadable_images_are_reported_and_not_dropped(tmp_path):
    yolo(tmp_path, lambda box: yolo_line(*fractions(box)), 3)
    (tmp_path / "images" / "train" / "001.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "images" / "train" / "001.jpg").rename(tmp_path / "images" / "train" / "001.heic")
    with pytest.raises(DataError, match=r"001\.heic"):
        read(tmp_path)


def test_a_symlinked_folder_is_read_only_with_follow_symlinks(tmp_path):
    boxes = yolo(tmp_path / "disk", lambda box: yolo_line(*fractions(box)), 2)
    put(tmp_path / "data" / "data.yaml", YAML)
    for name in ("images", "labels"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "disk" / name)
    config = DataConfig(follow_symlinks=True)
    annotations = read_annotations(find_layout(tmp_path / "data", True).train, config=config)
    assert close(annotations, boxes["train"])
    with pytest.raises(DataError, match="leads out of the data folder"):
        find_layout(tmp_path / "data")


@pytest.mark.parametrize(
    ("file_name", "on_disk"),
    [
        ("A.JPG", "a.jpg"),
        (unicodedata.normalize("NFD", "é.jpg"), "é.jpg"),
        ("my%20cell.jpg", "my cell.jpg"),
        ("a.png", "a.jpg"),
        ("elsewhere/a.jpg", "a.jpg"),
    ],
)
def test_a_file_name_that_nearly_matches_is_found_and_reported(make_coco, tmp_path, file_name, on_disk):
    (tmp_path / "train2017").mkdir()
    put(tmp_path / "train2017" / on_disk)
    split = make_coco(size=(WIDTH, HEIGHT), edit=lambda document: document["images"][0].update(file_name=file_name))
    annotations = read_annotations(split)
    assert on_disk in [name.decode() for name in annotations.file_names.tolist()] and len(annotations.image_ids) == 2
    assert any(f"{file_name} -> {on_disk}" in note for note in annotations.notes)


def test_an_ambiguous_file_name_is_refused(make_coco, tmp_path):
    (tmp_path / "train2017").mkdir()
    for name in ("a.jpg", "A.jpeg"):
        put(tmp_path / "train2017" / name)
    split = make_coco(size=(WIDTH, HEIGHT), edit=lambda document: document["images"][0].update(file_name="a.png"))
    with pytest.raises(DataError, match=r"are not in .*a\.png"):
        read_annotations(split)


def test_an_lvis_url_is_used_as_a_file_name(make_coco, tmp_path):
    def use_urls(document):
        for row in document["images"]:
            row["coco_url"] = f"http://images.cocodataset.org/train2017/{row.pop('file_name')}"

    split = make_coco(edit=use_urls)
    assert len(read_annotations(split._replace(image_roots=[tmp_path])).image_ids) == 2
    assert len(read_annotations(split).image_ids) == 2


@pytest.mark.parametrize("count", [2, 24])
def test_a_single_box_without_size_is_accepted_even_in_a_small_dataset(make_coco, count):
    rows = [(1, 3 * k, 5, 20, 12) for k in range(count)] + [(2, 5, 5, 0, 9)]
    annotations = read_annotations(make_coco({1: rows}, size=(200, 48)))
    assert int(annotations.trainable().sum()) == count
    assert any("has no width or height, not trained on" in note for note in annotations.notes)


def test_an_unused_category_is_merged_with_a_class_of_the_same_name(make_coco):
    categories = {0: "disc", 1: "disc", 2: "ring"}
    annotations = read_annotations(make_coco(categories=categories))
    assert annotations.categories == [Category(1, "disc"), Category(2, "ring")]


def test_a_voc_list_may_name_files_in_subfolders(tmp_path):
    rng = random.Random(5)
    boxes = {name: random_box(rng) for name in ("cam1/a", "cam2/a", "cam1/b")}
    for name, box in boxes.items():
        put(tmp_path / "JPEGImages" / f"{name}.jpg")
        put(tmp_path / "Annotations" / f"{name}.xml", xml(box))
    put(tmp_path / "ImageSets" / "Main" / "train.txt", "cam2/a\ncam1/a\n")
    put(tmp_path / "ImageSets" / "Main" / "val.txt", "cam1/b\n")
    assert close(read(tmp_path), [boxes["cam1/a"], boxes["cam2/a"]])
    assert close(read(tmp_path, "val"), [boxes["cam1/b"]])


@pytest.mark.parametrize("kind", ["yolo", "classes.txt", "csv", "coco"])
def test_control_characters_in_a_class_name_are_removed_and_reported(tmp_path, kind):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    name = "\x1b[31mred\x7f cell"
    if kind in ("yolo", "classes.txt"):
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        yaml = f"train: images\nval: images\nnames: [{json.dumps(name)}]\n"
        text, file = (yaml, "data.yaml") if kind == "yolo" else (name, "classes.txt")
    elif kind == "csv":
        text, file = f"filename,xmin,ymin,xmax,ymax,class\na.png,1,1,9,9,{name}\n", "train.csv"
    else:
        document = {"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
                "categories": [{"id": 1, "name": name}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}]}  # fmt: skip
        text, file = json.dumps(document), "annotations.json"
    (tmp_path / file).write_text(text)
    annotations = read_annotations(find_layout(tmp_path).train)
    assert [category.name for category in annotations.categories] == ["[31mred cell"]
    assert any(r"'\x1b[31mred\x7f cell' -> [31mred cell" in note for note in annotations.notes)


def write_rotated(folder: Path, orientation: int, as_stored: bool, decimals: int = 6, integer: bool = True) -> None:
    """Write four YOLO images with an EXIF orientation, and a box for each in the stored or the upright image."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for n in range(4):
        path = folder / "images" / "train" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), "teal").save(path, exif=exif)
        width, height = (WIDTH, HEIGHT) if as_stored or orientation < 5 else (HEIGHT, WIDTH)
        x, y, w, h = np.array([17 + 3 * n, 23, 41, 61]) + (0 if integer else 0.37)
        row = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        put(folder / "labels" / "train" / f"{n}.txt", "0 " + " ".join(f"{value:.{decimals}f}" for value in row) + "\n")
    put(folder / "data.yaml", "train: images/train\nnames: [c]\n")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_yolo_labels_drawn_without_exif_rotation_are_refused(tmp_path, orientation):
    write_rotated(tmp_path, orientation, as_stored=True)
    split = find_layout(tmp_path).train
    with pytest.raises(DataError, match=r"4 of 4 boxes fit the image as stored.*data\.exif=false") as caught:
        read_annotations(split)
    assert caught.value.code == "DATA-IMAGE-TURNED"
    annotations = read_annotations(split, config=DataConfig(exif=False))
    assert annotations.sizes.tolist() == [[WIDTH, HEIGHT]] * 4 and annotations.boxes[0].tolist() == [17, 23, 41, 61]


@pytest.mark.parametrize(("orientation", "integer", "warned"), [(6, True, False), (6, False, True), (3, True, True)])
def test_yolo_labels_of_rotated_images_are_reported_if_their_orientation_is_unclear(
    tmp_path, orientation, integer, warned
):
    write_rotated(tmp_path, orientation, as_stored=False, integer=integer)
    notes = " ".join(read_annotations(find_layout(tmp_path).train).notes)
    assert ("it is unclear whether the boxes were drawn on the upright image" in notes) == warned


@pytest.mark.parametrize(
    ("row", "convention"), [("0.4 0.3 0.9 0.8", "x0 y0 x1 y1"), ("0.05 0.6 0.8 0.3", "top left corner")]
)
def test_a_few_yolo_boxes_in_another_convention_are_reported(tmp_path, row, convention):
    put(tmp_path / "images" / "train" / "a.jpg")
    put(tmp_path / "labels" / "train" / "a.txt", f"0 {row}\n" * 3)
    put(tmp_path / "data.yaml", "train: images/train\nnames: [c]\n")
    notes = " ".join(read_annotations(find_layout(tmp_path).train).notes)
    assert "3 of 3 boxes reach beyond their image" in notes and convention in notes


@pytest.mark.parametrize(("used", "warned"), [((1, 2), True), ((0, 1, 2), False), ((1,), False)])
def test_yolo_classes_that_seem_to_start_at_1_are_reported(tmp_path, used, warned):
    put(tmp_path / "images" / "train" / "a.jpg")
    put(tmp_path / "labels" / "train" / "a.txt", "".join(f"{k} 0.5 0.5 0.2 0.2\n" for k in used))
    put(tmp_path / "data.yaml", "train: images/train\nnames: [a, b, c]\n")
    notes = " ".join(read_annotations(find_layout(tmp_path).train).notes)
    assert ("do the numbers start at 1?" in notes) == warned
