"""Find the annotations and the pictures of a data set by looking."""

from pathlib import Path

from ..errors import DataError
from .manifest import find_manifest
from .split import Fence, Layout, Split
from .voc import find_voc
from .yolo import find_yolo

ROBOFLOW = "_annotations.coco.json"
EXPECTED = """it should hold one of
  annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/    (COCO)
  train/_annotations.coco.json, valid/_annotations.coco.json, pictures beside them                  (Roboflow COCO)
  annotations.json and its pictures in the same folder or in images/                                (plain COCO)
  data.yaml, images/train/, labels/train/, or train/images/, train/labels/                          (YOLO)
  Annotations/, JPEGImages/, ImageSets/Main/, or train/*.xml with pictures beside them              (Pascal VOC)
  dataset.toml, which says where everything is                                                      (docs/data.md)"""


def find_layout(folder: Path, follow_symlinks: bool = False) -> Layout:
    """Tell the layout of a data folder.

    Args:
        follow_symlinks: open annotations that a link keeps outside of the folder.

    Raises:
        DataError: the folder is missing, holds no annotations that we can find, or only links to them.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"--data {folder} {what}", code="DATA-FOLDER",
                        fix="give the folder that holds the annotations and the pictures")  # fmt: skip
    fence = Fence(folder, follow_symlinks)
    finders = (find_manifest, _coco, _roboflow, find_yolo, find_voc, _plain)
    found = next((layout for find in finders if (layout := find(folder, fence))), None)
    if found is None:
        raise DataError(f"no annotations found in {folder}", code="DATA-LAYOUT", fix=EXPECTED)
    return found


def _coco(folder: Path, fence: Fence) -> Layout | None:
    splits = {}
    for name in ("train", "val", "test"):
        files = sorted(folder.glob(f"annotations/instances_{name}*.json"))
        if len(files) > 1:
            raise _several(folder / "annotations", files, f" for {name}", "leave one of them there")
        if files:
            stem = files[0].stem.removeprefix("instances_")  # such as train2017
            roots = [folder / stem, folder / "images" / stem, folder / name, folder / "images" / name]
            splits[name] = Split(fence.check(files[0]), [*roots, folder / "images", folder], folder=folder)
    if not splits.keys() & {"train", "val"}:
        return None
    train = splits.get("train") or splits["val"]  # enough for evaluation
    return Layout("COCO", train, splits.get("val"), splits.get("test"))


def _roboflow(folder: Path, fence: Fence) -> Layout | None:
    files = {name: folder / name / ROBOFLOW for name in ("train", "valid", "val", "test")}
    made = {
        name: Split(fence.check(file), [file.parent], folder=folder) for name, file in files.items() if file.is_file()
    }
    if "train" not in made:
        return None
    val = made.get("valid") or made.get("val")
    return Layout("Roboflow COCO", made["train"], val or made.get("test"), made.get("test") if val else None)


def _plain(folder: Path, fence: Fence) -> Layout | None:
    names = {name: folder / f"{name}.json" for name in ("train", "val", "test", "annotations")}
    roots = [folder, folder / "images"]
    if names["train"].is_file():
        made = {
            name: Split(fence.check(file), [folder / name, *roots], folder=folder)
            for name, file in names.items() if file.is_file()
        }  # fmt: skip
        return Layout("plain COCO", made["train"], made.get("val"), made.get("test"))
    named = [file for file in (names["annotations"], folder / ROBOFLOW) if file.is_file()]
    files = named or sorted(folder.glob("*.json"))
    if len(files) > 1:
        raise _several(folder, files, "", "call the one with the annotations annotations.json")
    return Layout("plain COCO", Split(fence.check(files[0]), roots, folder=folder), None) if files else None


def _several(folder: Path, files: list[Path], what: str, fix: str) -> DataError:
    listed = ", ".join(file.name for file in files)
    return DataError(f"{folder} has several .json files{what}: {listed}", code="DATA-LAYOUT", fix=fix)
