"""Where the annotations and pictures of a split are, what they say, and which files may be opened."""

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np

from ..errors import DataError

WORDS = {"train": ("train", "training", "trainval"), "val": ("val", "valid", "validation"),
         "test": ("test", "testing")}  # what the splits are called in names of files and folders  # fmt: skip


class Category(NamedTuple):
    """A class as the annotations call it."""

    id: int
    name: str


class Split(NamedTuple):
    """One set of annotations, and where its pictures may be."""

    annotations: Path  # a COCO file, YOLO's data.yaml, or VOC's folder of XML files
    image_roots: list[Path]  # tried in this order
    format: str = "coco"  # or yolo, voc
    folder: Path | None = None  # nothing outside of it is opened; None: the pictures' own folder
    listing: tuple[Path, ...] = ()  # YOLO: folders and lists of pictures; VOC: a list of names, or all
    classes: tuple[str, ...] = ()  # YOLO and VOC: their names in order
    first_pixel: int | None = None  # VOC: the number of the first column and row; None: nobody can tell


class Layout(NamedTuple):
    """What was found in a data folder."""

    kind: str
    train: Split  # that of validation where there is none
    val: Split | None  # None: the folder has no split to evaluate on
    test: Split | None = None

    def splits(self) -> dict[str, Split]:
        """Those that are there."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        there = {name: split for name, split in named.items() if split is not None}  # train: may stand in for val
        return {name: split for name, split in there.items() if name != "train" or split != self.val}

    @property
    def gap(self) -> str:
        """What is missing for a training and a judgement of it, in words."""
        if self.train == self.val:
            return "no training split"
        return "" if self.val else "no validation split; evaluation uses the training pictures"


def split_told_by(name: str) -> str:
    """The split that a name tells, as instances_train2017 does, or an empty text."""
    words = re.findall("[a-z]+", name.lower())
    return next((split for word in words for split, known in WORDS.items() if word in known), "")


def layout_of(kind: str, made: Mapping[str, Split]) -> Layout | None:
    """Splits by name, or None of none; test pictures are those to evaluate on where there are no others.

    Without a training split that of validation stands in its place, which is enough for an evaluation.
    """
    val = made.get("val") or made.get("test")
    train = made.get("train") or val
    return Layout(kind, train, val, made.get("test") if "val" in made else None) if train else None


class Table(NamedTuple):
    """What the files of a split say, each value looked at alone: I pictures, M objects."""

    categories: list[Category]
    headings: frozenset[str]  # names that are another category's supercategory
    image_ids: np.ndarray  # (I,) int64
    file_names: list[str]
    sizes: np.ndarray  # (I, 2) int64, width and height; 0 where not said
    owners: np.ndarray  # (M,) int64, image ids
    kinds: np.ndarray  # (M,) int64, category ids
    boxes: np.ndarray  # (M, 4) float64, x y width height
    area: np.ndarray  # (M,) float64, NaN where not said
    crowd: np.ndarray  # (M,) bool
    name: Callable[[int], str]  # what to call an object
    in_shares: bool = False  # boxes are shares of the picture

    def objects(self, keep: np.ndarray) -> "Table":
        """Only those objects, given as a mask or as indices."""
        rows = np.arange(len(self.owners))[keep]
        return self._replace(
            owners=self.owners[rows], kinds=self.kinds[rows], boxes=self.boxes[rows], area=self.area[rows],
            crowd=self.crowd[rows], name=lambda i: self.name(int(rows[i])),
        )  # fmt: skip

    def images(self, keep: np.ndarray) -> "Table":
        """Only those pictures, given as a mask or as indices."""
        rows = np.arange(len(self.file_names))[keep]
        names = [self.file_names[i] for i in rows.tolist()]
        return self._replace(image_ids=self.image_ids[rows], file_names=names, sizes=self.sizes[rows])


def stays_inside(name: str) -> bool:
    """Whether a name of a file is one, and leads nowhere but down."""
    path = PurePosixPath(name)
    try:
        os.fsencode(name)  # JSON can write text that no system takes for a name
    except UnicodeEncodeError:
        return False
    absolute = path.is_absolute() or PureWindowsPath(name).is_absolute()
    return not absolute and ".." not in path.parts and "\0" not in name and bool(path.parts)


class Fence:
    """Which files may be opened: regular ones whose true place is within a folder. Looks at names, opens nothing."""

    def __init__(self, folder: Path, follow_symlinks: bool):
        self.follow_symlinks = follow_symlinks
        self.folder = os.path.realpath(folder)
        self.parents: dict[str, bool] = {}  # whether a folder truly lies within

    def look(self, path: str) -> str:
        """`ok`, `missing`, or `escape`: a link that leads out of the folder."""
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):  # also a name too long, or with a NUL
            return "missing"
        if not self.follow_symlinks and not self._within(path, stat.S_ISLNK(mode)):
            return "escape"
        return "ok" if os.path.isfile(path) else "missing"

    def check(self, path: Path) -> Path:
        """A file or folder that is about to be opened.

        Raises:
            DataError: a link leads out of the folder to it.
        """
        if not self.follow_symlinks and not self._below(os.path.realpath(path)):
            raise DataError(f"a link leads out of the data folder: {path}", code="DATA-PATH-ESCAPE", where=path,
                            fix="put the file itself there, or set data.follow_symlinks=true")  # fmt: skip
        return path

    def _within(self, path: str, is_link: bool) -> bool:
        if is_link:
            return self._below(os.path.realpath(path))
        parent = os.path.dirname(path)
        if parent not in self.parents:
            self.parents[parent] = self._below(os.path.realpath(parent))
        return self.parents[parent]

    def _below(self, real: str) -> bool:
        return real == self.folder or real.startswith(self.folder.rstrip("/") + "/")


def names_of(paths: Sequence[Path], root: Path) -> list[str]:
    """Paths as names below a folder, where they lie in it."""
    return [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths]
