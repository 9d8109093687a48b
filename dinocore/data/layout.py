"""Find the annotations and the pictures of a data set by looking."""

from pathlib import Path
from typing import NamedTuple

from ..errors import DataError

ROBOFLOW = "_annotations.coco.json"
EXPECTED = """it should hold one of
  annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/    (COCO)
  train/_annotations.coco.json, valid/_annotations.coco.json, pictures beside them                  (Roboflow COCO)
  annotations.json and its pictures in the same folder or in images/                                (plain COCO)"""


class Split(NamedTuple):
    """One annotation file, and where its pictures may be."""

    annotations: Path
    image_roots: list[Path]  # tried in this order


class Layout(NamedTuple):
    """What was found in a data folder."""

    kind: str
    train: Split
    val: Split | None  # None: the folder has no split to evaluate on


def find_layout(folder: Path) -> Layout:
    """Tell the layout of a data folder.

    Raises:
        DataError: the folder is missing or holds no annotations that we can find.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"--data {folder} {what}; give the folder that holds the annotations and the pictures")
    found = _coco(folder) or _roboflow(folder) or _plain(folder)
    if found is None:
        raise DataError(f"no annotations found in {folder}; {EXPECTED}")
    return found


def _coco(folder: Path) -> Layout | None:
    splits = {}
    for name in ("train", "val"):
        files = sorted(folder.glob(f"annotations/instances_{name}*.json"))
        if len(files) > 1:
            listed = ", ".join(file.name for file in files)
            raise DataError(f"{folder}/annotations has several files for {name}: {listed}; leave one of them there")
        if files:
            stem = files[0].stem.removeprefix("instances_")  # such as train2017
            roots = [folder / stem, folder / "images" / stem, folder / name, folder / "images" / name]
            splits[name] = Split(files[0], [*roots, folder / "images", folder])
    if not splits:
        return None
    if "train" not in splits:  # enough for evaluation
        splits["train"] = splits["val"]
    return Layout("COCO", splits["train"], splits.get("val"))


def _roboflow(folder: Path) -> Layout | None:
    train = folder / "train" / ROBOFLOW
    if not train.is_file():
        return None
    held_out = [folder / name / ROBOFLOW for name in ("valid", "val", "test")]
    val = next((Split(file, [file.parent]) for file in held_out if file.is_file()), None)
    return Layout("Roboflow COCO", Split(train, [train.parent]), val)


def _plain(folder: Path) -> Layout | None:
    names = {name: folder / f"{name}.json" for name in ("train", "val", "annotations")}
    roots = [folder, folder / "images"]
    if names["train"].is_file():
        val = names["val"]
        val_split = Split(val, [folder / "val", *roots]) if val.is_file() else None
        return Layout("plain COCO", Split(names["train"], [folder / "train", *roots]), val_split)
    named = [file for file in (names["annotations"], folder / ROBOFLOW) if file.is_file()]
    files = named or sorted(folder.glob("*.json"))
    if len(files) > 1:
        raise DataError(
            f"{folder} has several .json files: {', '.join(file.name for file in files)}; "
            "call the one with the annotations annotations.json"
        )
    return Layout("plain COCO", Split(files[0], roots), None) if files else None
