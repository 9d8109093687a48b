"""Find the annotations and the images of a data set by looking."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...errors import DataError
from ..images import IMAGE_SUFFIXES
from ..split import WORDS, Layout, PathGuard, Split, is_hidden, layout_of, split_told_by
from .csv import find_csv
from .manifest import find_manifest
from .voc import find_voc, find_voc_anywhere
from .yolo import find_yolo

ROBOFLOW = "_annotations.coco.json"
OWN = (ROBOFLOW, "annotations.json", "annotations.coco.json", "labels.json", "coco.json")
DEPTH = 4  # folders below each other that are looked into
EXPECTED = """it should hold one of
  annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/    (COCO)
  train/_annotations.coco.json, valid/_annotations.coco.json, images beside them                    (Roboflow COCO)
  annotations.json, or train.json and val.json, images in the same folder or in images/             (plain COCO)
  data.yaml, images/train/, labels/train/, or train/images/, train/labels/; or classes.txt, images/, labels/  (YOLO)
  Annotations/, JPEGImages/, ImageSets/Main/; or *.xml beside or apart from the images              (Pascal VOC)
  train.csv, val.csv with the columns filename,xmin,ymin,xmax,ymax,class                            (CSV)
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
    guard = PathGuard(folder, follow_symlinks)
    finders = (find_manifest, _coco, _per_split, find_yolo, find_voc, _plain, find_voc_anywhere, find_csv, _anywhere)
    found = next((layout for find in finders if (layout := find(folder, guard))), None)
    if found is None:
        raise _refusal(folder)
    return found


def _coco(folder: Path, guard: PathGuard) -> Layout | None:
    return _by_name("COCO", folder, _json_files(folder, "annotations/instances_*.json"), guard)


def _plain(folder: Path, guard: PathGuard) -> Layout | None:
    files = _json_files(folder, "*.json") or _json_files(folder, "annotations/*.json")
    if len(files) > 1 or (files and files[0].name not in OWN and not split_told_by(files[0].stem)):
        files = [file for file in files if _is_coco(file, guard)]
    return _by_name("plain COCO", folder, files, guard)


def _anywhere(folder: Path, guard: PathGuard) -> Layout | None:
    """COCO files under any name; a folder that tells a split counts where the file's own name does not."""
    files = [p for here in _folders(folder) for p in _json_files(here, "*.json") if _is_coco(p, guard)]
    named: dict[str, list[Path]] = {}
    for file in files:
        parts = reversed(file.relative_to(folder).with_suffix("").parts)
        named.setdefault(next((told for part in parts if (told := split_told_by(part))), ""), []).append(file)
    if "" in named and not named.keys() & {"train", "val"}:
        named = {"train": named[""]}
    return _one_each("COCO", folder, named, guard)


def _json_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if not is_hidden(file.name))


class _Keys(msgspec.Struct):
    """The lists of a COCO file, which are not looked at."""

    images: msgspec.Raw
    annotations: msgspec.Raw
    categories: msgspec.Raw


def _is_coco(file: Path, guard: PathGuard) -> bool:
    """Whether a file has the lists of a COCO file; of a damaged one its name counts."""
    try:
        msgspec.json.decode(guard.check(file).read_bytes(), type=_Keys)
        return True
    except msgspec.ValidationError:
        return False
    except (OSError, ValueError, RecursionError):
        return split_told_by(file.stem) != "" or file.name in OWN


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those below it, hidden ones aside, DEPTH deep."""
    for here, inner, _ in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        inner[:] = sorted(name for name in inner if not is_hidden(name)) if depth < DEPTH else []
        yield Path(here)


def _by_name(kind: str, folder: Path, files: list[Path], guard: PathGuard) -> Layout | None:
    """Each file for the split that its name tells; or one that tells none, which is for training."""
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(split_told_by(file.stem), []).append(file)
    if not named.keys() & {"train", "val"}:
        chosen = [file for file in files if file.name in OWN] or files
        named = {"train": chosen} if chosen else {}
    return _one_each(kind, folder, named, guard)


def _one_each(kind: str, folder: Path, named: dict[str, list[Path]], guard: PathGuard) -> Layout | None:
    named.pop("", None)
    for name, several in named.items():
        if len(several) > 1:
            raise _several(several, name)
    made = {
        name: Split(guard.check(file), _roots(folder, name, file), folder=folder) for name, (file,) in named.items()
    }
    return layout_of(kind, made)


def _roots(folder: Path, split: str, file: Path) -> list[Path]:
    """Where images may be: train2017/ of instances_train2017.json, any folder that tells the split, images/, beside."""
    names = [file.stem.removeprefix("instances_"), *WORDS[split]]
    bases = (folder, folder / "images", folder / "data")
    own = [base / name for base in bases for name in names]
    told = [p for base in bases if base.is_dir() for p in sorted(base.iterdir()) if split_told_by(p.name) == split]
    told = [p for p in told if p not in own and p.is_dir()]
    inner = [p / "images" for p in (*own, *told) if (p / "images").is_dir()]
    usual = [folder / name for name in ("images", "imgs", "img", "data", "JPEGImages")]
    return [*own, *told, *inner, *usual, folder, file.parent, file.parent / "images"]


def _per_split(folder: Path, guard: PathGuard) -> Layout | None:
    """A folder for each split with annotations that have one of the usual names, images beside them or in images/."""
    made = {}
    for name, words in WORDS.items():
        there = [folder / word / own for word in words for own in OWN if (folder / word / own).is_file()]
        if there:
            made[name] = Split(guard.check(there[0]), [there[0].parent, there[0].parent / "images"], folder=folder)
    own = {split.annotations.name for split in made.values()}
    return layout_of("Roboflow COCO" if own == {ROBOFLOW} else "COCO, a folder for each split", made)


def _several(files: list[Path], split: str) -> DataError:
    listed = ", ".join(file.name for file in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    what = f"{files[0].parent} has several .json files that may be the annotations of {split}: {listed}"
    fix = "leave one of them there" if split_told_by(files[0].stem) else "call the right one annotations.json"
    return DataError(what, code="DATA-LAYOUT", where=files[0].parent, fix=f"{fix}, or write a dataset.toml")


def _refusal(folder: Path) -> DataError:
    """What was seen, and a dataset.toml to start from."""
    seen: Counter[tuple[str, str]] = Counter()
    for here in _folders(folder):
        place = here.relative_to(folder).as_posix()
        seen.update((place, p.suffix.lower()) for p in here.iterdir() if p.is_file() and not is_hidden(p.name))
    texts = (".xml", ".json", ".txt", ".csv", ".yaml", ".yml")
    known = Counter({key: n for key, n in seen.items() if key[1] in (*IMAGE_SUFFIXES, *texts)})
    rows = [f"{count} {suffix} in {place}/" for (place, suffix), count in known.most_common(8)]
    listed = ", ".join(row.replace(" in ./", " in the folder itself") for row in rows) or "no images and no annotations"
    what = f"no annotations found in {folder}; seen: {listed}"
    return DataError(what, code="DATA-LAYOUT", where=folder, fix=EXPECTED + _suggestion(known))


def _suggestion(seen: Counter[tuple[str, str]]) -> str:
    """A dataset.toml with the folders that hold most images and most annotations, if both are there."""

    def most(*suffixes: str) -> str:
        return next((place for (place, suffix), _ in seen.most_common() if suffix in suffixes), "")

    images, xml, table = most(*IMAGE_SUFFIXES), most(".xml"), most(".json")
    if not images or not (xml or table or most(".txt")):
        return ""
    if xml:
        lines = ['format = "voc"', "[train]", f"annotations = {json.dumps(xml)}"]
    elif table:
        lines = ['format = "coco"', "[train]", f"annotations = {json.dumps(f'{table}/NAME.json')}"]
    else:
        lines = ['format = "yolo"', 'names = ["first class", "second class"]', "[train]"]
    lines.append(f"images = {json.dumps(images)}")
    return "\nsuch a dataset.toml may begin with\n" + "\n".join(f"  {line}" for line in lines)
