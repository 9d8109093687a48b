"""Find the annotations and the pictures of a data set by looking."""

from pathlib import Path

from ...errors import DataError
from ..split import WORDS, Fence, Layout, Split, layout_of, split_told_by
from .manifest import find_manifest
from .voc import find_voc
from .yolo import find_yolo

ROBOFLOW = "_annotations.coco.json"
OWN = (ROBOFLOW, "annotations.json", "annotations.coco.json", "labels.json", "coco.json")
EXPECTED = """it should hold one of
  annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/    (COCO)
  train/_annotations.coco.json, valid/_annotations.coco.json, pictures beside them                  (Roboflow COCO)
  annotations.json, or train.json and val.json, pictures in the same folder or in images/           (plain COCO)
  data.yaml, images/train/, labels/train/, or train/images/, train/labels/; or classes.txt, images/, labels/  (YOLO)
  Annotations/, JPEGImages/, ImageSets/Main/; or *.xml with pictures beside them, also in train/    (Pascal VOC)
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
        raise DataError(f"the data folder {folder} {what}", code="DATA-FOLDER")
    fence = Fence(folder, follow_symlinks)
    finders = (find_manifest, _coco, _per_split, find_yolo, find_voc, _plain)
    found = next((layout for find in finders if (layout := find(folder, fence))), None)
    if found is None:
        raise DataError(f"no annotations found in {folder}", code="DATA-LAYOUT", fix=EXPECTED)
    return found


def _coco(folder: Path, fence: Fence) -> Layout | None:
    return _by_name("COCO", folder, sorted(folder.glob("annotations/instances_*.json")), fence)


def _plain(folder: Path, fence: Fence) -> Layout | None:
    files = sorted(folder.glob("*.json")) or sorted(folder.glob("annotations/*.json"))
    return _by_name("plain COCO", folder, files, fence)


def _by_name(kind: str, folder: Path, files: list[Path], fence: Fence) -> Layout | None:
    """Each file for the split that its name tells; or one that tells none, which is for training."""
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(split_told_by(file.stem), []).append(file)
    if not named.keys() & {"train", "val"}:
        chosen = [file for file in files if file.name in OWN] or files
        named = {"train": chosen} if chosen else {}
    named.pop("", None)
    for name, several in named.items():
        if len(several) > 1:
            raise _several(several, name)
    made = {
        name: Split(fence.check(file), _roots(folder, name, file), folder=folder) for name, (file,) in named.items()
    }
    return layout_of(kind, made)


def _roots(folder: Path, split: str, file: Path) -> list[Path]:
    """Where pictures may be: train2017/ of instances_train2017.json, train/, images/train/, images/, beside."""
    names = [file.stem.removeprefix("instances_"), *WORDS[split]]
    own = [base / name for base in (folder, folder / "images") for name in names]
    return [*own, *(folder / name for name in ("images", "data", "JPEGImages")), folder, file.parent]


def _per_split(folder: Path, fence: Fence) -> Layout | None:
    """A folder for each split with annotations that have one of the usual names, pictures beside them or in images/."""
    made = {}
    for name, words in WORDS.items():
        there = [folder / word / own for word in words for own in OWN if (folder / word / own).is_file()]
        if there:
            made[name] = Split(fence.check(there[0]), [there[0].parent, there[0].parent / "images"], folder=folder)
    own = {split.annotations.name for split in made.values()}
    return layout_of("Roboflow COCO" if own == {ROBOFLOW} else "COCO, a folder for each split", made)


def _several(files: list[Path], split: str) -> DataError:
    listed = ", ".join(file.name for file in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    what = f"{files[0].parent} has several .json files that may be the annotations of {split}: {listed}"
    fix = "leave one of them there" if split_told_by(files[0].stem) else "call the right one annotations.json"
    return DataError(what, code="DATA-LAYOUT", where=files[0].parent, fix=f"{fix}, or write a dataset.toml")
