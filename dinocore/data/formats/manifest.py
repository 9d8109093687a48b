"""`dataset.toml`: a file that lists a dataset's paths.

    format = "coco"                      # coco, yolo, voc, csv, kitti or visdrone
    [train]
    annotations = "labels/train.json"    # COCO, CSV: a file; others: a folder with a file per image
    images = "images/train"              # a folder
    list = "train.txt"                   # VOC: a list of image names; optional
    [val]                                # and [test]; optional

For YOLO and VOC, `names = ["a", "b"]` are the classes in order (VOC: optional); for VOC, `first_pixel` is 1 or 0.
YOLO's label files are found by replacing `images` in the path with `labels`, or beside the images, unless `annotations`
names their folder.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import DataError
from ..split import Layout, PathGuard, Split, layout_of
from .csv import csv_layout
from .kitti import kitti_layout
from .visdrone import visdrone_layout
from .voc import scan_voc

NAME = "dataset.toml"


class SplitEntry(BaseModel):
    """The paths of one split."""

    model_config = ConfigDict(extra="forbid", strict=True)
    annotations: str = ""
    images: str
    list: str = ""


class Manifest(BaseModel):
    """The content of a dataset.toml."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["coco", "yolo", "voc", "csv", "kitti", "visdrone"]
    names: list[str] = []
    first_pixel: Literal[0, 1] | None = None
    train: SplitEntry
    val: SplitEntry | None = None
    test: SplitEntry | None = None


def find_manifest(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout that a folder's dataset.toml describes, or None if there is no such file.

    Raises:
        DataError: the file is invalid, or names paths that do not exist.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    manifest = _read(guard.check(file))
    parts = {name: part for name in ("train", "val", "test") if (part := getattr(manifest, name)) is not None}
    for name, part in parts.items():
        _check(name, part, manifest, folder, file)
    if manifest.format in ("csv", "kitti", "visdrone"):
        return _tables(manifest.format, parts, folder)
    classes, first = tuple(manifest.names), manifest.first_pixel
    if manifest.format == "voc":
        folders = [folder / part.annotations for part in parts.values()]
        # the paths in the file are trusted, hence follow_symlinks=True
        all_classes, detected_first = scan_voc(folders, classes, PathGuard(folder, True))
        classes, first = all_classes, detected_first if first is None else first
    splits = {name: _split(part, manifest.format, classes, first, folder, file) for name, part in parts.items()}
    return layout_of(f"{NAME}, {manifest.format}", splits)


def _tables(kind: str, parts: dict[str, SplitEntry], folder: Path) -> Layout | None:
    """The layout for formats whose classes are read from the annotations."""
    paths = {name: (folder / part.annotations, folder / part.images) for name, part in parts.items()}
    if kind == "csv":
        tables = {name: file for name, (file, _) in paths.items()}
        images_of = dict(paths.values())  # by table, for splits that only a column of the table names

        def roots(name: str, file: Path) -> list[Path]:
            return [paths[name][1] if name in paths else images_of[file]]

        return csv_layout(f"{NAME}, {kind}", tables, folder, roots)
    make = kitti_layout if kind == "kitti" else visdrone_layout
    return make(f"{NAME}, {kind}", paths, folder)


def _split(part: SplitEntry, kind: str, classes: tuple[str, ...], first: int | None, folder: Path, file: Path) -> Split:
    images = folder / part.images
    listing = (images,) if kind == "yolo" else (folder / part.list,) if part.list else ()
    annotations = file if kind == "yolo" else folder / part.annotations
    # images outside the folder are allowed, because the paths in the file are trusted
    inside = images.resolve().is_relative_to(folder.resolve())
    made = Split(annotations, [images], kind, folder if inside else images.parent, listing, classes, first)
    labels = folder / part.annotations if kind == "yolo" and part.annotations else None
    return made._replace(labels=labels)


def _check(name: str, part: SplitEntry, manifest: Manifest, folder: Path, file: Path) -> None:
    if not (folder / part.images).is_dir():
        raise _bad(f"[{name}] images = {part.images!r} is not a folder", file)
    if manifest.format == "yolo":
        if not manifest.names:
            raise _bad("YOLO labels have no class names; `names` is missing", file)
        if part.annotations and not (folder / part.annotations).is_dir():
            raise _bad(f"[{name}] annotations = {part.annotations!r} is not a folder of label files", file)
    elif not part.annotations or not (folder / part.annotations).exists():
        raise _bad(f"[{name}] annotations = {part.annotations!r} does not exist", file)
    if part.list and not (manifest.format == "voc" and (folder / part.list).is_file()):
        raise _bad(f"[{name}] list = {part.list!r} is not a list of VOC names", file)


def _read(file: Path) -> Manifest:
    try:
        content: dict[str, Any] = tomllib.loads(file.read_bytes().decode())
        return Manifest(**content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise _bad(problems, file) from None
    except (OSError, ValueError) as error:
        raise _bad(f"it cannot be read: {error}", file) from None


def _bad(what: str, file: Path) -> DataError:
    return DataError(what, code="DATA-MANIFEST", where=file)
