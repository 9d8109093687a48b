"""The files of a split, its annotations, and which files may be opened."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..errors import ConfigError, DataError
from ..system.files import is_stream
from ..words import typed

WORDS = {"train": ("train", "training", "trainval"), "val": ("val", "valid", "validation", "validate", "dev"),
         "test": ("test", "testing")}  # what the splits are called in names of files and folders  # fmt: skip
JUNK = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")  # what systems leave behind
Found = TypeVar("Found")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # what XML and lists of names cannot hold


class Category(NamedTuple):
    """A class as named in the annotations."""

    id: int
    name: str


def table_names(categories: Sequence[Category]) -> list[str]:
    """Class names for tables and keys; names that several classes share are shown with the id."""
    count = Counter(category.name for category in categories)
    return [c.name if count[c.name] == 1 else f"{c.name} (id {c.id})" for c in categories]


class Split(NamedTuple):
    """One set of annotations, and the possible folders of its images."""

    annotations: Path  # a COCO file, YOLO's data.yaml, or VOC's folder of XML files
    image_roots: list[Path]  # tried in this order
    format: str = "coco"  # or yolo, voc, csv, kitti, visdrone
    folder: Path | None = None  # nothing outside it is opened; None: the images' own folder
    listing: tuple[Path, ...] = ()  # YOLO: folders and lists of images; VOC: a list of names, or all
    classes: tuple[str, ...] = ()  # YOLO and VOC: their names in order
    first_pixel: int | None = None  # VOC: the index of the first column and row; None: unknown
    labels: Path | None = None  # YOLO: the folder of label files, if set in a dataset.toml
    keypoints: tuple[int, int] | None = None  # YOLO's kpt_shape: how many each line has, and numbers of each
    held_out: "Split | None" = None  # the validation split, whose images are left out of a training split `trainval`
    class_ids: tuple[int, ...] = ()  # CSV: those of `classes`, in rising order, where the data have ids; or from 1
    part: str = ""  # CSV: the split whose rows are used, if a column has it; empty: all of them

    @property
    def source(self) -> Path:
        """What names the images: a list or folder of them, or else the annotations."""
        return self.listing[0] if self.listing else self.annotations


class Layout(NamedTuple):
    """The layout found in a data folder."""

    kind: str
    train: Split  # the validation split if there is none
    val: Split | None  # None: the folder has no split to evaluate on
    test: Split | None = None  # see val_is_test
    trainable: bool = True  # False: there is no training split
    missing: str = ""  # why there is no validation split, although the dataset names one
    val_is_test: bool = False  # the test split stands in for validation

    def splits(self) -> dict[str, Split]:
        """Those that are there."""
        named = {"train": self.train if self.trainable else None, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def gap(self) -> str:
        """A message about missing training or evaluation splits."""
        if not self.trainable:
            return "no training split"
        why = f" ({self.missing})" if self.missing else ""
        return "" if self.val else f"no validation split{why}; evaluation uses the training images"


def check_split(name: str) -> None:
    """
    Raises:
        ConfigError: it is not the name of a split.
    """
    if name not in WORDS:
        raise ConfigError(f"no split `{name}`; choose {', '.join(list(WORDS)[:-1])} or {list(WORDS)[-1]}")


def split_in_name(name: str) -> str:
    """The split that a name tells, as instances_train2017 does, or an empty text."""
    words = re.findall("[a-z]+", name.lower())
    return next((split for word in words for split, known in WORDS.items() if word in known), "")


def split_in_path(parts: Sequence[str]) -> str:
    """The split that the last part of a path tells that tells one, or an empty text."""
    return next((split for part in reversed(parts) if (split := split_in_name(part))), "")


def unnamed_as_train(found: dict[str, Found]) -> dict[str, Found]:
    """What was found, by split; what tells none is for training, or left out where something tells train or val."""
    if "" in found and not found.keys() & {"train", "val"}:
        return {"train": found[""]}
    return {name: one for name, one in found.items() if name}


def layout_of(kind: str, made: Mapping[str, Split], missing: str = "") -> Layout | None:
    """Splits by name, or None of none; test images are those to evaluate on where there are no others.

    Without a training split that of validation stands in its place, which is enough for an evaluation. Validation on
    the very images of training is no validation, and a training split called `trainval` is less those of validation.
    """
    train, val, test = (made.get(name) for name in ("train", "val", "test"))
    if train is not None and val == train:
        val, missing = None, "`train` and `val` are the same images"
    if train is not None and val is not None and "trainval" in re.findall("[a-z]+", train.source.stem.lower()):
        train = train._replace(held_out=val)
    val_is_test = val is None and test is not None and test != train
    if val_is_test:
        val, test = test, None
    first = train or val
    return Layout(kind, first, val, test, train is not None, missing, val_is_test) if first else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is what systems and tools leave behind: `.DS_Store`, `._a.jpg`, `@eaDir`, ..."""
    return name.startswith(".") or name in JUNK


def visible_files(folder: Path, suffixes: Container[str], follow_symlinks: bool = False) -> list[Path]:
    """Files below a folder with one of the suffixes (in lower case), sorted; hidden ones and those in hidden folders
    are skipped. A linked folder is entered where it leads into `folder`, or anywhere with `follow_symlinks`.
    """
    top, found, seen = os.path.realpath(folder), [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        inside = real == top or real.startswith(top.rstrip("/") + "/")
        if real in seen or not (inside or follow_symlinks):  # a circle of links, or a link that leads out
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [
            Path(here, name) for name in names if os.path.splitext(name)[1].lower() in suffixes and not is_hidden(name)
        ]
    return sorted(found)


def one_line(name: Any) -> str:
    """A class's name without line breaks and tabs; see `clean_names` for other control characters."""
    return re.sub("[ \t\r\n]+", " ", str(name)).strip()


def clean_name(name: Any) -> str:
    """A class's name as every format can hold it: no control characters, single spaces."""
    return " ".join(CONTROL.sub(" ", str(name)).split())


class RawAnnotations(NamedTuple):
    """What the files of a split say, each value looked at alone: I images, M objects."""

    categories: list[Category]
    headings: frozenset[str]  # names that are another category's supercategory
    image_ids: np.ndarray  # (I,) int64
    file_names: list[str]
    sizes: np.ndarray  # (I, 2) int64, width and height; 0 where not said
    owners: np.ndarray  # (M,) int64, image ids
    category_ids: np.ndarray  # (M,) int64, category ids
    boxes: np.ndarray  # (M, 4) float64, x y width height
    area: np.ndarray  # (M,) float64, NaN where not said
    crowd: np.ndarray  # (M,) bool
    name: Callable[[int], str]  # what to call an object
    in_fractions: bool = False  # boxes are shares of the image

    def objects(self, keep: np.ndarray) -> "RawAnnotations":
        """Only those objects, given as a mask or as indices."""
        rows = np.arange(len(self.owners))[keep]
        return self._replace(
            owners=self.owners[rows], category_ids=self.category_ids[rows], boxes=self.boxes[rows],
            area=self.area[rows], crowd=self.crowd[rows], name=lambda i: self.name(int(rows[i])),
        )  # fmt: skip

    def images(self, keep: np.ndarray) -> "RawAnnotations":
        """Only those images, given as a mask or as indices."""
        rows = np.arange(len(self.file_names))[keep]
        names = [self.file_names[i] for i in rows.tolist()]
        return self._replace(image_ids=self.image_ids[rows], file_names=names, sizes=self.sizes[rows])


class NamedBox(NamedTuple):
    """A box of a reader that names classes."""

    owner: int  # number of its image, from 1
    label: str
    corners: tuple[float, float, float, float]  # xyxy
    place: str  # what to call it
    crowd: bool = False


def named_table(
    split: Split,
    files: list[str],
    boxes: Sequence[NamedBox],
    sizes: Sequence[Sequence[int]] = (),
    in_fractions: bool = False,
) -> RawAnnotations:
    """A table of images, numbered from 1, and of boxes; a label that is none of the split's classes becomes 0, or the
    number below the least id.
    """
    ids = split.class_ids or range(1, len(split.classes) + 1)
    numbers = dict(zip(split.classes, ids, strict=True))
    unknown = min(ids, default=1) - 1
    corners = np.array([box.corners for box in boxes], dtype=np.float64).reshape(-1, 4)
    return RawAnnotations(
        categories=[Category(n, name) for name, n in numbers.items()],
        headings=frozenset(),
        image_ids=np.arange(1, len(files) + 1),
        file_names=files,
        sizes=np.array(sizes or np.zeros((len(files), 2)), dtype=np.int64).reshape(-1, 2),
        owners=np.array([box.owner for box in boxes], dtype=np.int64),
        category_ids=np.array([numbers.get(box.label, unknown) for box in boxes], dtype=np.int64),
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
        area=np.full(len(boxes), np.nan),
        crowd=np.array([box.crowd for box in boxes], dtype=bool),
        name=lambda i: boxes[i].place,
        in_fractions=in_fractions,
    )


def read_text(file: Path, strict: bool = True) -> str:
    """A text in UTF-8 or, with its mark, UTF-16.

    Args:
        strict: refuse what is neither; or else it is read for its structure alone.

    Raises:
        DataError: it cannot be read, or is in another encoding, whose letters nobody can tell.
    """
    try:
        content = file.read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        if not strict:
            return file.read_bytes().decode("latin-1")
        what = f"it is not UTF-8: {error.reason} in byte {error.start}"
        raise DataError(what, code="DATA-FILE", where=file, fix="save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"it cannot be read: {error}", code="DATA-FILE", where=file) from error


def image_roots(folder: Path, split: str, file: Path) -> list[Path]:
    """Where images of annotations may be: train2017/ of instances_train2017.json, any folder that tells the split,
    images/, beside them.
    """
    names = [file.stem.removeprefix("instances_"), *WORDS.get(split, ())]
    bases = (folder, folder / "images", folder / "data")
    own = [base / name for base in bases for name in names]
    of_split = [p for base in bases if base.is_dir() for p in sorted(base.iterdir()) if split_in_name(p.name) == split]
    of_split = [p for p in of_split if p not in own and p.is_dir()]
    inner = [p / name for p in (*own, *of_split) for name in ("images", "data") if (p / name).is_dir()]
    usual = [folder / name for name in ("images", "imgs", "img", "data", "JPEGImages")]
    return [*own, *of_split, *inner, *usual, folder, file.parent, file.parent / "images"]


def stays_inside(name: str) -> bool:
    """Whether a name of a file is one, and leads nowhere but down."""
    path = PurePosixPath(name)
    try:
        os.fsencode(name)  # JSON can write text that no system takes for a name
    except UnicodeEncodeError:
        return False
    absolute = path.is_absolute() or PureWindowsPath(name).is_absolute()
    return not absolute and ".." not in path.parts and "\0" not in name and bool(path.parts)


def tails(name: str) -> list[str]:
    """A path, and what is left of it without its first parts, longest first; they lead nowhere but down."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("..", "/")]
    return ["/".join(parts[n:]) for n in range(len(parts))]


class PathGuard:
    """Which files may be opened: regular ones whose true place is within a folder. Looks at names, opens nothing."""

    def __init__(self, folder: Path, follow_symlinks: bool):
        self.follow_symlinks = follow_symlinks
        self.folder = os.path.realpath(folder)
        self.parents: dict[str, bool] = {}  # whether a folder truly lies within

    def status(self, path: str) -> str:
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
            DataError: a link leads out of the folder to it, or it is neither, such as a pipe, which may never end.
        """
        if not self.follow_symlinks and not self._below(os.path.realpath(path)):
            raise DataError(f"a link leads out of the data folder: {path}", code="DATA-PATH-ESCAPE", where=path,
                            fix="put the file itself there, or set data.follow_symlinks=true")  # fmt: skip
        if is_stream(path):
            raise DataError(f"{path} is not a regular file", code="DATA-FILE", where=path,
                            fix=f"check what it is: ls -l {typed(path)}")  # fmt: skip
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


def evenly(count: int, most: int) -> list[int]:
    """Numbers below `count`, at most so many, spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def names_of(paths: Sequence[Path], root: Path) -> list[str]:
    """Paths as names below a folder, where they lie in it."""
    return [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths]
