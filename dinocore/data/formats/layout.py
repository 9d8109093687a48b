"""Detect the format of a data folder, and find its annotations and images."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...errors import DataError
from ...words import typed
from ..images import IMAGE_SUFFIXES
from ..split import (
    WORDS,
    Layout,
    PathGuard,
    Split,
    image_roots,
    is_hidden,
    layout_of,
    split_in_name,
    split_in_path,
    unnamed_as_train,
)
from .class_list import find_class_list, find_class_list_anywhere, is_yolo
from .csv import find_csv
from .kitti import find_kitti, is_kitti
from .manifest import find_manifest
from .pairs import every_pair
from .suggestion import foreign_files, suggest
from .visdrone import find_visdrone, is_visdrone
from .voc import find_voc, find_voc_anywhere, is_voc
from .yolo import find_yolo

ROBOFLOW = "_annotations.coco.json"
USUAL_NAMES = (ROBOFLOW, "annotations.json", "annotations.coco.json", "labels.json", "coco.json")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
DOC_SUFFIXES = (".md", ".rst", ".pdf", ".html", *ARCHIVES)
# names by which a data folder is recognized
DATA_MARKERS = ("dataset.toml", "data.yaml", "data.yml", f"train/{ROBOFLOW}", "JPEGImages", "annotations")
MAX_DEPTH = 4  # levels of subfolders that are searched
EXPECTED = """it should hold one of
  annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/    (COCO)
  train/_annotations.coco.json, valid/_annotations.coco.json, images beside them                    (Roboflow COCO)
  annotations.json, or train.json and val.json, images in the same folder or in images/             (plain COCO)
  data.yaml, images/train/, labels/train/, or train/images/, train/labels/; or classes.txt, images/, labels/  (YOLO)
  classes.txt, _darknet.labels or obj.names, and a *.txt beside or apart from each image            (YOLO)
  Annotations/, JPEGImages/, ImageSets/Main/; or *.xml beside or apart from the images              (Pascal VOC)
  train.csv, val.csv with the columns filename,xmin,ymin,xmax,ymax,class                            (CSV, Open Images)
  training/image_2/, training/label_2/                                                              (KITTI)
  VisDrone2019-DET-train/images/, VisDrone2019-DET-train/annotations/                               (VisDrone)
  dataset.toml, which says where everything is                                                      (docs/data.md)"""


def check_is_folder(folder: Path) -> None:
    """Check that the data folder is a folder.

    Raises:
        DataError: it does not exist, or it is a file.
    """
    if folder.is_dir():
        return
    if not folder.exists():
        raise DataError(f"the data folder {folder} does not exist", code="DATA-FOLDER")
    fix = f"give the folder: {typed(_data_folder_above(folder) or folder.parent)}"
    if folder.suffix.lower() in ARCHIVES:
        fix = f"unpack it, and give the folder that it was unpacked to, such as {typed(folder.with_suffix(''))}"
    raise DataError(f"the data folder {folder} is a file", code="DATA-FOLDER", fix=fix)


def _data_folder_above(path: Path) -> Path | None:
    """The parent or grandparent folder if it looks like a data folder, judging by names only."""
    parents = path.absolute().parents[:2]
    return next((place for place in parents if any(os.path.exists(place / name) for name in DATA_MARKERS)), None)


def find_layout(folder: Path, follow_symlinks: bool = False) -> Layout:
    """Detect the layout of a data folder.

    Args:
        follow_symlinks: also open annotations outside the folder that links in it lead to.

    Raises:
        DataError: the folder does not exist, or has no annotations that can be found, or only links to them.
    """
    check_is_folder(folder)
    if inner := _single_subfolder(folder):
        return find_layout(inner, follow_symlinks)
    guard = PathGuard(folder, follow_symlinks)
    finders = (
        find_manifest, _coco, _per_split, find_yolo, find_class_list, find_voc, _plain_coco, find_voc_anywhere,
        find_csv, find_kitti, find_visdrone, _coco_anywhere, find_class_list_anywhere,
    )  # fmt: skip
    found = next((layout for find in finders if (layout := find(folder, guard))), None)
    if found is None:
        raise _no_layout_error(folder, guard)
    return found


def _single_subfolder(folder: Path) -> Path | None:
    """The only subfolder of a folder that has nothing else but documents, as after unpacking an archive."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    files = [entry for entry in entries if entry not in folders]
    only_docs = all(file.suffix.lower() in DOC_SUFFIXES or file.stem.upper() in ("README", "LICENSE") for file in files)
    if len(folders) != 1 or not only_docs or split_in_name(folders[0].name):
        return None
    holds_images = any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folders[0].iterdir())
    return None if holds_images else folders[0]


def _coco(folder: Path, guard: PathGuard) -> Layout | None:
    return _by_name("COCO", folder, _json_files(folder, "annotations/instances_*.json"), guard)


def _plain_coco(folder: Path, guard: PathGuard) -> Layout | None:
    files = _json_files(folder, "*.json") or _json_files(folder, "annotations/*.json")
    if len(files) > 1 or (files and files[0].name not in USUAL_NAMES and not split_in_name(files[0].stem)):
        files = [file for file in files if _is_coco(file, guard)]
    return _by_name("plain COCO", folder, files, guard)


def _coco_anywhere(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of COCO files with any names; the split is in the file name or in the name of a folder above it."""
    files = [p for here in _folders(folder) for p in _json_files(here, "*.json") if _is_coco(p, guard)]
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(split_in_path(file.relative_to(folder).with_suffix("").parts), []).append(file)
    return _one_per_split("COCO", folder, unnamed_as_train(named), guard)


def _json_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if not is_hidden(file.name))


class _Keys(msgspec.Struct):
    """The lists of a COCO file, not decoded."""

    images: msgspec.Raw
    annotations: msgspec.Raw
    categories: msgspec.Raw


def _is_coco(file: Path, guard: PathGuard) -> bool:
    """Whether a file has the lists of a COCO file; for invalid JSON, whether its name suggests one."""
    try:
        msgspec.json.decode(guard.check(file).read_bytes(), type=_Keys)
        return True
    except msgspec.ValidationError:
        return False
    except (OSError, ValueError, RecursionError):
        return split_in_name(file.stem) != "" or file.name in USUAL_NAMES


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and its subfolders down to MAX_DEPTH levels, except hidden ones."""
    for here, subfolders, _ in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name)) if depth < MAX_DEPTH else []
        yield Path(here)


def _by_name(kind: str, folder: Path, files: list[Path], guard: PathGuard) -> Layout | None:
    """The layout of files whose names contain their splits; if none contains train or val, the file is for training."""
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(split_in_name(file.stem), []).append(file)
    if not named.keys() & {"train", "val"}:
        chosen = [file for file in files if file.name in USUAL_NAMES] or files
        named = {"train": chosen} if chosen else {}
    return _one_per_split(kind, folder, named, guard)


def _one_per_split(kind: str, folder: Path, named: dict[str, list[Path]], guard: PathGuard) -> Layout | None:
    named.pop("", None)
    for name, several in named.items():
        if len(several) > 1:
            raise _several_files_error(named, name, folder)
    made = {
        name: Split(guard.check(file), image_roots(folder, name, file), folder=folder)
        for name, (file,) in named.items()
    }
    return layout_of(kind, made)


def _per_split(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of a folder per split with a COCO file of a usual name, and images beside it or in images/."""
    made = {}
    for name, words in WORDS.items():
        paths = [folder / word / usual for word in words for usual in USUAL_NAMES]
        file = next((path for path in paths if path.is_file()), None)
        if file is not None:
            made[name] = Split(guard.check(file), [file.parent, file.parent / "images"], folder=folder)
    names = {split.annotations.name for split in made.values()}
    return layout_of("Roboflow COCO" if names == {ROBOFLOW} else "COCO, a folder for each split", made)


def _several_files_error(named: dict[str, list[Path]], split: str, folder: Path) -> DataError:
    files = named[split]
    place = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(place).as_posix() for file in files]
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    what = f"{place} has several .json files that may be the annotations of {split}: {listed}"
    fix = "leave one of them there" if split_in_name(files[0].stem) else "call the right one annotations.json"
    text = suggest(folder, {name: several[0] for name, several in named.items()})
    above = _data_folder_above(folder)
    first = f"give {typed(above)} if that is the data folder, " if above else ""
    return DataError(what, code="DATA-LAYOUT", where=place, fix=f"{first}{fix}, or write a dataset.toml{text}")


def _no_layout_error(folder: Path, guard: PathGuard) -> DataError:
    """The error for a folder without a known layout: what it contains, and a dataset.toml to start from."""
    seen: Counter[tuple[str, str]] = Counter()
    for here in _folders(folder):
        place = here.relative_to(folder).as_posix()
        seen.update((place, p.suffix.lower()) for p in here.iterdir() if p.is_file() and not is_hidden(p.name))
    texts = (".xml", ".json", ".txt", ".csv", ".yaml", ".yml", *ARCHIVES)
    known = Counter({key: n for key, n in seen.items() if key[1] in (*IMAGE_SUFFIXES, *texts)})
    rows = [f"{count} {suffix} in {place}/" for (place, suffix), count in known.most_common(8)]
    listed = ", ".join(row.replace(" in ./", " in the folder itself") for row in rows) or "no images and no annotations"
    if several := _several_pairs(folder, guard):
        what = f"{several}, and nothing says how they belong together"
        fix = "put all annotations below one folder and all images below another, with the same folders in both, "
        fix += "such as labels/a/ and labels/b/, images/a/ and images/b/, or write a dataset.toml"
        if list(folder.glob("VOC20*/JPEGImages")):
            fix = "merge the years as docs/data.md shows under Splits, or write a dataset.toml for one of them"
        return DataError(what, code="DATA-LAYOUT", where=folder, fix=fix + suggest(folder))
    what = f"no annotations found in {folder}; seen: {listed}{foreign_files(folder, guard)}"
    first = "unpack the archives; " if any(suffix in ARCHIVES for _, suffix in known) else ""
    if above := _data_folder_above(folder):
        first += f"did you mean {typed(above)}? "
    return DataError(what, code="DATA-LAYOUT", where=folder, fix=first + EXPECTED + suggest(folder))


def _several_pairs(folder: Path, guard: PathGuard) -> str:
    """A message if several pairs of folders may be the annotations and images of one split; or an empty text."""
    for suffix, is_format in ((".xml", is_voc), (".txt", is_yolo), (".txt", is_kitti), (".txt", is_visdrone)):
        found = every_pair(
            folder, suffix, lambda file, known=is_format: guard.status(str(file)) == "ok" and known(file)
        )
        for name, pairs in unnamed_as_train(found).items():
            if len(pairs) > 1:
                labels = [where.relative_to(folder).as_posix() for where, _ in pairs]
                listed = ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
                return f"{folder} has several folders of annotations of {name}: {listed}"
    return ""
