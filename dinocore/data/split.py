"""Splits and layouts of datasets, annotations as read from files, and which files may be opened."""

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

# names of splits in the names of files and folders
WORDS = {"train": ("train", "training", "trainval"), "val": ("val", "valid", "validation", "validate", "dev"),
         "test": ("test", "testing")}  # fmt: skip
JUNK = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")  # files and folders of systems
Found = TypeVar("Found")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # not allowed in XML or lists of names


class Category(NamedTuple):
    """A class, with its id and name in the annotations."""

    id: int
    name: str


def table_names(categories: Sequence[Category]) -> list[str]:
    """Class names for tables and keys; the id is added to names that several classes have."""
    count = Counter(category.name for category in categories)
    return [c.name if count[c.name] == 1 else f"{c.name} (id {c.id})" for c in categories]


class Split(NamedTuple):
    """The annotations of a split, and the possible folders of its images."""

    annotations: Path  # a COCO file, YOLO's data.yaml, or VOC's folder of XML files
    image_roots: list[Path]  # tried in this order
    format: str = "coco"  # or yolo, voc, csv, kitti, visdrone
    folder: Path | None = None  # no files outside it are opened; None: the folder of the images
    listing: tuple[Path, ...] = ()  # YOLO: folders and lists of images; VOC: a list of names; empty: all files
    classes: tuple[str, ...] = ()  # all formats but COCO: the class names in order
    first_pixel: int | None = None  # VOC: the index of the first column and row; None: unknown
    labels: Path | None = None  # YOLO: the folder of label files, if set in a dataset.toml
    keypoints: tuple[int, int] | None = None  # YOLO's kpt_shape: keypoints per line, and values per keypoint
    held_out: "Split | None" = None  # the validation split, whose images are dropped from a split `trainval`
    class_ids: tuple[int, ...] = ()  # CSV: the ids of `classes`, ascending; empty: from 1
    part: str = ""  # CSV: which rows are used, by the split column; empty: all of them
    by_year: bool = False  # VOC: `annotations` has a devkit folder per year, and `listing` a list of names from each

    @property
    def source(self) -> Path:
        """The list or folder of images, or else the annotations."""
        return self.listing[0] if self.listing else self.annotations


class Layout(NamedTuple):
    """The layout of a data folder: its format and splits."""

    kind: str
    train: Split  # the validation split if there is none
    val: Split | None  # None: the folder has no split to evaluate on
    test: Split | None = None  # see val_is_test
    trainable: bool = True  # False: there is no training split
    missing: str = ""  # why the validation split that the dataset names is not used
    val_is_test: bool = False  # the test split stands in for validation

    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
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
    """Check the name of a split.

    Raises:
        ConfigError: it is not train, val or test.
    """
    if name not in WORDS:
        raise ConfigError(f"no split `{name}`; choose {', '.join(list(WORDS)[:-1])} or {list(WORDS)[-1]}")


def split_in_name(name: str) -> str:
    """The split that a name contains, such as train in instances_train2017; or an empty text."""
    words = re.findall("[a-z]+", name.lower())
    return next((split for word in words for split, known in WORDS.items() if word in known), "")


def split_in_path(parts: Sequence[str]) -> str:
    """The split in the last part of a path that contains one; or an empty text."""
    return next((split for part in reversed(parts) if (split := split_in_name(part))), "")


def unnamed_as_train(found: dict[str, Found]) -> dict[str, Found]:
    """Entries by split, without the one whose split is unknown (""); if there is no train or val, it becomes train."""
    if "" in found and not found.keys() & {"train", "val"}:
        return {"train": found[""]}
    return {name: entry for name, entry in found.items() if name}


def layout_of(kind: str, made: Mapping[str, Split], missing: str = "") -> Layout | None:
    """The layout of splits by name; None if there are no splits to train or evaluate on.

    Without a validation split, the test split is used for validation. Without a training split, the validation split
    takes its place, which is enough for an evaluation. A validation split with the same files as training is ignored,
    and validation images are dropped from a training split called `trainval`.
    """
    train, val, test = (made.get(name) for name in ("train", "val", "test"))
    if train is not None and val == train:
        val, missing = None, "`train` and `val` are the same images"
    if train is not None and val is not None:
        sources = train.listing or (train.annotations,)
        if any("trainval" in re.findall("[a-z]+", source.stem.lower()) for source in sources):
            train = train._replace(held_out=val)
    val_is_test = val is None and test is not None and test != train
    if val_is_test:
        val, test = test, None
    first = train or val
    return Layout(kind, first, val, test, train is not None, missing, val_is_test) if first else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or was created by the system: `.DS_Store`, `._a.jpg`, `@eaDir`, ..."""
    return name.startswith(".") or name in JUNK


def visible_files(folder: Path, suffixes: Container[str], follow_symlinks: bool = False) -> list[Path]:
    """All files below a folder with one of the suffixes (in lower case), sorted, except hidden ones.

    Links to folders are followed if they lead into `folder`, or with `follow_symlinks`.
    """
    top, found, seen = os.path.realpath(folder), [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        inside = real == top or real.startswith(top.rstrip("/") + "/")
        if real in seen or not (inside or follow_symlinks):  # a cycle of links, or a link that leads out
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [
            Path(here, name) for name in names if os.path.splitext(name)[1].lower() in suffixes and not is_hidden(name)
        ]
    return sorted(found)


def one_line(name: Any) -> str:
    """A class name without line breaks and tabs; see `clean_name` for other control characters."""
    return re.sub("[ \t\r\n]+", " ", str(name)).strip()


def clean_name(name: Any) -> str:
    """A class name that every format can store: no control characters, single spaces."""
    return " ".join(CONTROL.sub(" ", str(name)).split())


class RawAnnotations(NamedTuple):
    """The annotations of a split as read from its files: I images, M objects. Only single values are checked."""

    categories: list[Category]
    headings: frozenset[str]  # names that are another category's supercategory
    image_ids: np.ndarray  # (I,) int64
    file_names: list[str]
    sizes: np.ndarray  # (I, 2) int64, width and height; 0 if unknown
    owners: np.ndarray  # (M,) int64, image ids
    category_ids: np.ndarray  # (M,) int64, category ids
    boxes: np.ndarray  # (M, 4) float64, x y width height
    area: np.ndarray  # (M,) float64, NaN if unknown
    crowd: np.ndarray  # (M,) bool
    name: Callable[[int], str]  # identifies an object in messages
    in_fractions: bool = False  # whether boxes are fractions of the image size instead of pixels

    def objects(self, keep: np.ndarray) -> "RawAnnotations":
        """A subset of objects, given by a mask or indices."""
        rows = np.arange(len(self.owners))[keep]
        return self._replace(
            owners=self.owners[rows], category_ids=self.category_ids[rows], boxes=self.boxes[rows],
            area=self.area[rows], crowd=self.crowd[rows], name=lambda i: self.name(int(rows[i])),
        )  # fmt: skip

    def images(self, keep: np.ndarray) -> "RawAnnotations":
        """A subset of images, given by a mask or indices; objects are kept."""
        rows = np.arange(len(self.file_names))[keep]
        names = [self.file_names[i] for i in rows.tolist()]
        return self._replace(image_ids=self.image_ids[rows], file_names=names, sizes=self.sizes[rows])


class NamedBox(NamedTuple):
    """A box with the name of its class, for `named_table`."""

    owner: int  # number of its image, from 1
    label: str
    corners: tuple[float, float, float, float]  # xyxy
    place: str  # identifies it in messages
    crowd: bool = False


def named_table(
    split: Split,
    files: list[str],
    boxes: Sequence[NamedBox],
    sizes: Sequence[Sequence[int]] = (),
    in_fractions: bool = False,
) -> RawAnnotations:
    """Raw annotations from image files and boxes. Image ids count from 1.

    A label that is not one of the split's classes gets an unused id: the lowest id minus 1.
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
    """Read a text file in UTF-8 or, with a byte order mark, UTF-16.

    Args:
        strict: whether another encoding is an error; otherwise the text is decoded as Latin-1, which is enough to
            detect its format.

    Raises:
        DataError: it cannot be read, or has another encoding.
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
    """The folders that may have the images of an annotation file, most likely first.

    They are train2017/ for instances_train2017.json, folders whose name contains the split, images/ and the like, and
    the folder of the file.
    """
    names = [file.stem.removeprefix("instances_"), *WORDS.get(split, ())]
    bases = (folder, folder / "images", folder / "data")
    named = [base / name for base in bases for name in names]
    of_split = [p for base in bases if base.is_dir() for p in sorted(base.iterdir()) if split_in_name(p.name) == split]
    of_split = [p for p in of_split if p not in named and p.is_dir()]
    inner = [p / name for p in (*named, *of_split) for name in ("images", "data") if (p / name).is_dir()]
    usual = [folder / name for name in ("images", "imgs", "img", "data", "JPEGImages")]
    return [*named, *of_split, *inner, *usual, folder, file.parent, file.parent / "images"]


def stays_inside(name: str) -> bool:
    """Whether a name is a valid relative path that does not leave the folder."""
    path = PurePosixPath(name)
    try:
        os.fsencode(name)  # JSON can contain text that is not a valid file name
    except UnicodeEncodeError:
        return False
    absolute = path.is_absolute() or PureWindowsPath(name).is_absolute()
    return not absolute and ".." not in path.parts and "\0" not in name and bool(path.parts)


def tails(name: str) -> list[str]:
    """A path, and the path without its leading folders, longest first; all are relative and without `..`."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("..", "/")]
    return ["/".join(parts[n:]) for n in range(len(parts))]


class PathGuard:
    """Decides which files may be opened: regular files whose real path is in a folder. Does not open any files."""

    def __init__(self, folder: Path, follow_symlinks: bool):
        self.follow_symlinks = follow_symlinks
        self.folder = os.path.realpath(folder)
        self.parents: dict[str, bool] = {}  # whether the real path of a folder is within `folder`

    def status(self, path: str) -> str:
        """`ok`, `missing`, or `escape`: a link that leads out of the folder."""
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):  # also if the name is too long, or has a NUL
            return "missing"
        if not self.follow_symlinks and not self._within(path, stat.S_ISLNK(mode)):
            return "escape"
        return "ok" if os.path.isfile(path) else "missing"

    def check(self, path: Path) -> Path:
        """Check a file or folder before it is opened, and return it.

        Raises:
            DataError: a link leads out of the folder, or it is something else, such as a pipe, which may never end.
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


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` indices below `count`, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int)).tolist()


def names_of(paths: Sequence[Path], root: Path) -> list[str]:
    """Paths relative to a folder, or unchanged if they are not in it."""
    return [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths]
