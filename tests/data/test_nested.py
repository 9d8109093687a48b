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


def put(folder: Path, labels: str, images: str, number: int, form) -> tuple[int, int, int, int]:
    """Write the image 1.png and its label file, and return its box, xywh."""
    write, suffix = form
    box = (0, number, 20 + number, 30)
    for place in (folder / labels, folder / images):
        place.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / images / "1.png")
    (folder / labels / f"1{suffix}").write_text(write(*box))
    if write is yolo:
        (folder / "classes.txt").write_text("ant\n")
    return box


def boxes_of(split: Split, folder: Path) -> dict[str, list[float]]:
    found = read_annotations(split)
    names = [found.path(i).parent.relative_to(folder).as_posix() for i in found.owners().tolist()]
    return dict(zip(names, np.round(found.boxes, 3).tolist(), strict=True))


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("labels", ["marks/{}", "all/marks/{}/left"])
def test_folders_of_the_same_names_below_labels_and_images_are_one_split(tmp_path, form, labels):
    expected = {}
    for number, place in enumerate(("red ants", "ants/black", "été")):
        images = labels.format(place).replace("marks", "photos")
        expected[images] = list(put(tmp_path, labels.format(place), images, number, form))
    assert boxes_of(find_layout(tmp_path).train, tmp_path) == expected


@pytest.mark.parametrize("form", WRITERS)
def test_splits_may_each_have_folders_below_them(tmp_path, form):
    expected: dict[str, dict[str, list[float]]] = {"train": {}, "val": {}}
    for number, (split, place) in enumerate((s, p) for s in expected for p in ("one", "two")):
        images = f"images/{split}/{place}"
        expected[split][images] = list(put(tmp_path, f"marks/{split}/{place}", images, number, form))
    layout = find_layout(tmp_path)
    assert {name: boxes_of(split, tmp_path) for name, split in layout.splits().items()} == expected


def test_folders_above_which_is_one_of_another_split_are_not_taken_together(tmp_path):
    for number, place in enumerate(("left_train", "right_train", "val")):
        put(tmp_path, f"marks/{place}", f"photos/{place}", number, (xml, ".xml"))
    with pytest.raises(DataError, match=r"of train: marks/left_train, marks/right_train, and nothing says"):
        find_layout(tmp_path)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("labels", ["{}/marks", "{}"])
def test_folders_that_nothing_puts_together_are_named(tmp_path, form, labels):
    for number, place in enumerate(("north", "south")):
        put(tmp_path, labels.format(place), place, number, form)
    named = f"annotations of train: {labels.format('north')}, {labels.format('south')}, and nothing says"
    with pytest.raises(DataError, match=re.escape(named)):
        find_layout(tmp_path)


def test_the_dataset_toml_for_xml_files_beside_images_in_several_folders_has_them_all(tmp_path):
    expected = {}
    for number, place in enumerate(("north", "south", "south/west")):
        expected[place] = list(put(tmp_path, place, place, number, (xml, ".xml")))
    with pytest.raises(DataError) as refused:
        find_layout(tmp_path)
    text = re.search(r"(?ms)^\s*format = .*\Z", refused.value.fix)
    assert text
    (tmp_path / "dataset.toml").write_text(textwrap.dedent(text.group(0)))
    assert boxes_of(find_layout(tmp_path).train, tmp_path) == expected


def test_coco_files_of_one_name_in_two_folders_are_refused_with_their_folders(tmp_path):
    for place in ("north", "south"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "labels.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError, match=r"has several .*: north/labels\.json, south/labels\.json"):
        find_layout(tmp_path)
