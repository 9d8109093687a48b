"""Annotations and images in nested folders, and errors if it is unclear which belong together."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocore.data.annotations import read_annotations
from dinocore.data.formats.layout import find_layout
from dinocore.data.split import Split
from dinocore.errors import DataError

WIDTH, HEIGHT = 80, 60


def xml(x: int, y: int, w: int, h: int) -> str:
    corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    return f"<annotation><object><name>ant</name><bndbox>{corners}</bndbox></object></annotation>"


def kitti(x: int, y: int, w: int, h: int) -> str:
    return f"ant 0 0 0 {x} {y} {x + w} {y + h} 0 0 0 0 0 0 0\n"


def visdrone(x: int, y: int, w: int, h: int) -> str:
    return f"{x},{y},{w},{h},1,4,0,0\n"


def yolo(x: int, y: int, w: int, h: int) -> str:
    return f"0 {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}\n"


FORMATS = {".xml": (xml,), ".txt": (kitti, visdrone, yolo)}
WRITERS = [(write, suffix) for suffix, writers in FORMATS.items() for write in writers]


def put(folder: Path, labels: str, images: str, number: int, writer) -> tuple[int, int, int, int]:
    """Write the image 1.png and its label file, and return its box, xywh."""
    write, suffix = writer
    box = (0, number, 20 + number, 30)
    for directory in (folder / labels, folder / images):
        directory.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / images / "1.png")
    (folder / labels / f"1{suffix}").write_text(write(*box))
    if write is yolo:
        (folder / "classes.txt").write_text("ant\n")
    return box


def read_boxes(split: Split, folder: Path) -> dict[str, list[float]]:
    annotations = read_annotations(split)
    names = [annotations.path(i).parent.relative_to(folder).as_posix() for i in annotations.owners().tolist()]
    return dict(zip(names, np.round(annotations.boxes, 3).tolist(), strict=True))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("labels", ["marks/{}", "all/marks/{}/left"])
def test_matching_subfolders_of_labels_and_images_are_one_split(tmp_path, writer, labels):
    expected = {}
    for number, subfolder in enumerate(("red ants", "ants/black", "été")):
        images = labels.format(subfolder).replace("marks", "photos")
        expected[images] = list(put(tmp_path, labels.format(subfolder), images, number, writer))
    assert read_boxes(find_layout(tmp_path).train, tmp_path) == expected


@pytest.mark.parametrize("writer", WRITERS)
def test_splits_may_have_subfolders(tmp_path, writer):
    expected: dict[str, dict[str, list[float]]] = {"train": {}, "val": {}}
    for number, (split, subfolder) in enumerate((s, p) for s in expected for p in ("one", "two")):
        images = f"images/{split}/{subfolder}"
        expected[split][images] = list(put(tmp_path, f"marks/{split}/{subfolder}", images, number, writer))
    layout = find_layout(tmp_path)
    assert {name: read_boxes(split, tmp_path) for name, split in layout.splits().items()} == expected


def test_sibling_folders_are_not_merged_if_one_is_another_split(tmp_path):
    for number, folder in enumerate(("left_train", "right_train", "val")):
        put(tmp_path, f"marks/{folder}", f"photos/{folder}", number, (xml, ".xml"))
    with pytest.raises(DataError, match=r"of train: marks/left_train, marks/right_train, and nothing says"):
        find_layout(tmp_path)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("labels", ["{}/marks", "{}"])
def test_unrelated_folders_are_refused_with_their_names(tmp_path, writer, labels):
    for number, folder in enumerate(("north", "south")):
        put(tmp_path, labels.format(folder), folder, number, writer)
    message = f"annotations of train: {labels.format('north')}, {labels.format('south')}, and nothing says"
    with pytest.raises(DataError, match=re.escape(message)):
        find_layout(tmp_path)


def test_the_suggested_dataset_toml_includes_all_folders_of_xml_files_and_images(tmp_path):
    expected = {}
    for number, folder in enumerate(("north", "south", "south/west")):
        expected[folder] = list(put(tmp_path, folder, folder, number, (xml, ".xml")))
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    match = re.search(r"(?ms)^\s*format = .*\Z", caught.value.fix)
    assert match
    (tmp_path / "dataset.toml").write_text(textwrap.dedent(match.group(0)))
    assert read_boxes(find_layout(tmp_path).train, tmp_path) == expected


def test_coco_files_with_the_same_name_in_two_folders_are_refused(tmp_path):
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "labels.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError, match=r"has several .*: north/labels\.json, south/labels\.json"):
        find_layout(tmp_path)
