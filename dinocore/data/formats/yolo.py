"""YOLO's layout: `data.yaml`, images, and label files with lines `class cx cy width height` in fractions.

Source: the documentation by Ultralytics (https://docs.ultralytics.com/datasets/detect/). The path of a label file is
that of its image with `labels` instead of `images`. A line with more columns is a polygon, which is replaced by its
bounding box, or a box with keypoints; this is known from `kpt_shape`, or inferred from all such lines of the split.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from ...config import DataConfig
from ...error_codes import CODES, WARNING
from ...errors import DataError
from ..bands import ARRAYS
from ..findings import Findings, Location
from ..images import IMAGE_SUFFIXES
from ..split import (
    WORDS,
    Category,
    Layout,
    PathGuard,
    RawAnnotations,
    Split,
    layout_of,
    names_of,
    tails,
    visible_files,
)
from .coco import is_number
from .data_yaml import bad_yaml, class_names, keypoints_of, read_data_yaml
from .suggestion import suggest

MAX_FRACTION = 1.5  # allows for boxes that reach beyond their image; larger numbers are pixels
SLACK = 0.02  # fraction of the image by which keypoints may lie outside their box
MIN_EVIDENCE = 10  # lines that are needed to infer that they have another format


def find_yolo(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout that a folder's data.yaml describes, or None if there is no such file.

    Raises:
        DataError: the file is invalid, or a link leads out of the folder.
    """
    file = _yaml_file(folder, guard)
    if file is None:
        return None
    content = read_data_yaml(guard.check(file))
    classes = class_names(content, file)
    keypoints = keypoints_of(content.get("kpt_shape"), file)
    splits, missing = {}, ""
    for name, words in WORDS.items():
        entry = next((content[word] for word in words if content.get(word)), None)
        if entry:
            listing = folders_of_entry(entry, content.get("path"), folder, file, guard)
        else:
            listing = usual_folders(folder, words)
        if listing:
            splits[name] = Split(file, [folder], "yolo", folder, listing, classes, keypoints=keypoints)
        elif name == "train" and entry:
            raise bad_yaml(f"`train: {entry}` is not in {folder}{_did_you_mean(entry, folder)}", file)
        elif name == "val" and entry:
            missing = f"`val: {entry}` of {file.name} does not exist{_did_you_mean(entry, folder)}"
    layout = layout_of("YOLO", splits, missing)
    if layout is None:
        what = "its image folders (`train`, `val`) do not exist"
        raise DataError(what, code="DATA-YAML", where=file, fix=CODES["DATA-YAML"].fix + suggest(folder))
    return layout


def _yaml_file(folder: Path, guard: PathGuard) -> Path | None:
    """data.yaml, or the only other YAML file that has `names`; YAML files that cannot be read are skipped."""
    usual = [folder / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    if existing := [file for file in usual if file.is_file()]:
        return existing[0]
    found = []
    for file in visible_files_here(folder, (".yaml", ".yml")):
        try:
            if "names" in read_data_yaml(guard.check(file)):
                found.append(file)
        except DataError:
            continue
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        what = f"{folder} has several YAML files with `names`: {listed}; rename the right one to data.yaml"
        raise bad_yaml(what, found[0])
    return found[0] if found else None


def visible_files_here(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files directly in a folder with one of the suffixes, except hidden ones, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())


def read_yolo(split: Split, findings: Findings, config: DataConfig) -> RawAnnotations:
    """Read the label files of all images of a split. Images are numbered from 1, by name."""
    root = split.image_roots[0]
    follow = config.follow_symlinks
    images = sorted({path for listing in split.listing for path in _images(listing, root, follow)})
    labelled = 0
    guard = PathGuard(split.folder or root, follow)
    owners, rows, places = [], [], []
    users = defaultdict[Path, list[str]](list)  # the images of each label file
    for number, image in enumerate(images, start=1):
        file = label_file(image, split)
        status = guard.status(str(file))
        if status == "escape":
            what = "label files that are outside the data folder because of a link"
            findings.add("DATA-PATH-ESCAPE", what, [str(file)])
        if status == "ok":
            labelled += 1
            users[file].append(image.name)
            for line, row in _lines(file, len(split.classes), split.keypoints, findings):
                owners.append(number)
                rows.append(row)
                places.append(f"{file.name} line {line}")
    _report_labels_without_image(images, split, findings)
    shared = [f"{file.name} ({', '.join(names)})" for file, names in users.items() if len(names) > 1]
    findings.add("DATA-LABEL-SHARED", "label files that several images share", shared)
    if images and not labelled:
        place = label_file(images[0], split)
        findings.add("DATA-LABEL-NONE", f"none of {len(images)} images has a label file, such as {place}", count=1)
    values = _boxes(rows, places, split.keypoints, findings)
    _check_box_format(values[:, 1:], places, findings)
    used = set(values[:, 0].astype(int).tolist())
    if len(split.classes) > 1 and used == set(range(1, len(split.classes))):
        what = f"no line has class 0, {split.classes[0]}, but all other classes are used; do the numbers start at 1?"
        findings.add("DATA-CLASS-FIRST", what, count=1)
    return RawAnnotations(
        categories=[Category(i, name) for i, name in enumerate(split.classes)],
        headings=frozenset(),
        image_ids=np.arange(1, len(images) + 1),
        file_names=names_of(images, root),
        sizes=np.zeros((len(images), 2), np.int64),
        owners=np.array(owners, dtype=np.int64),
        category_ids=values[:, 0].astype(np.int64),
        boxes=np.concatenate([values[:, 1:3] - values[:, 3:] / 2, values[:, 3:]], 1),
        area=np.full(len(rows), np.nan),
        crowd=np.zeros(len(rows), bool),
        name=lambda i: places[i],
        in_fractions=True,
    )


def _boxes(
    rows: list[list[float]], places: list[str], keypoints: tuple[int, int] | None, findings: Findings
) -> np.ndarray:
    """Class, cx, cy, width and height of every line, (M, 5).

    Whether longer lines are polygons or boxes with keypoints is inferred from all of them. Lines with keypoints have
    the same length, so lines of several lengths are polygons.
    """
    values = np.array([row[:5] for row in rows], dtype=np.float64).reshape(-1, 5)
    lengths = np.array([len(row) for row in rows])
    longer = [] if keypoints and keypoints[0] else np.unique(lengths[lengths > 5]).tolist()
    for length in longer:
        at = np.flatnonzero(lengths == length)
        lines = np.array([rows[i] for i in at.tolist()])
        kind = _polygon_or_problem(lines) if keypoints or len(longer) > 1 else _kind_of_lines(lines)
        if kind == "polygon":
            x, y = lines[:, 1::2], lines[:, 2::2]
            low, high = np.stack([x.min(1), y.min(1)], 1), np.stack([x.max(1), y.max(1)], 1)  # (m, 2)
            values[at, 1:] = np.concatenate([(low + high) / 2, high - low], 1)
        elif kind != "keypoints":
            findings.add("DATA-LABEL-FORM", f"lines of {length} columns {kind}", [places[i] for i in at.tolist()])
    return values


def _kind_of_lines(lines: np.ndarray) -> str:
    """What lines (m, n) of one length n > 5 are: `polygon`, `keypoints`, or a message why it is unclear.

    Points of a polygon lie anywhere. Keypoints lie in the box at the start of the line; a third value is 0, 1 or 2. A
    box with a confidence and a track id has 7 columns, the last of which is an integer.
    """
    count, length = lines.shape
    if length == 7 and not (lines[:, 6] % 1).any():
        return "end in a whole number: a box, a confidence and a track id, as from a tracker"
    center, side, others = lines[:, None, 1:3], lines[:, None, 3:5], lines[:, 5:]
    plausible = (side > 0).all() and (np.abs(center - 0.5) + side / 2 <= 0.5 + SLACK).all()
    for dims in (3, 2):
        if others.shape[1] % dims or not plausible:
            continue
        points = others.reshape(count, -1, dims)
        annotated = points[..., :2].any(-1)  # (0, 0) means not annotated
        inside = (np.abs(points[..., :2] - center) <= side / 2 + SLACK).all(-1)
        valid_flags = dims == 2 or np.isin(points[..., 2], (0, 1, 2)).all()
        if valid_flags and (inside | ~annotated).all():
            certain = dims == 3 or (count >= MIN_EVIDENCE and not _second_point_fits(lines))
            return "keypoints" if certain else "are either polygons or boxes with keypoints"
    return _polygon_or_problem(lines)


def _polygon_or_problem(lines: np.ndarray) -> str:
    """`polygon`, or a message why the lines cannot be polygons."""
    if lines.shape[1] % 2 == 0:
        return "are neither polygons, which have pairs of numbers, nor keypoints"
    if np.abs(lines[:, 1:]).max() > MAX_FRACTION:
        return "are not fractions of the image's width and height"
    return "polygon"


def _second_point_fits(lines: np.ndarray) -> bool:
    """Whether columns 3 and 4 (the width and height, if the line is a box) may be a point of a polygon in most lines.

    They may be if the point is no farther from the other points than these are from each other.
    """
    x, y = lines[:, 1::2], lines[:, 2::2]
    near = []
    for values in (x, y):
        others = np.delete(values, 1, axis=1)
        low, high = others.min(1), others.max(1)
        near.append((values[:, 1] >= 2 * low - high) & (values[:, 1] <= 2 * high - low))
    return bool((near[0] & near[1]).mean() > 0.5)


def _check_box_format(boxes: np.ndarray, places: list[str], findings: Findings) -> None:
    """Report boxes (M, 4) that reach beyond their images, if all boxes would fit as corners or as x, y, w, h.

    This is an error, or a warning if there are only a few boxes, which may be mistakes.
    """
    if not len(boxes):
        return
    near, far = boxes[:, :2], boxes[:, 2:]
    beyond = ((near - far / 2 < -SLACK) | (near + far / 2 > 1 + SLACK)).any(1)
    if beyond.mean() <= 0.2:
        return
    as_corners = (far >= near).all() and (far <= 1 + SLACK).all()
    as_top_left = (near + far <= 1 + SLACK).all()
    if as_corners or as_top_left:
        meant = "x0 y0 x1 y1" if as_corners else "the top left corner, width and height"
        reach = "reaches beyond its" if beyond.sum() == 1 else "reach beyond their"
        what = f"{beyond.sum()} of {len(boxes)} boxes {reach} image; are they {meant}?"
        level = "" if len(boxes) > MIN_EVIDENCE else WARNING
        findings.add("DATA-BOX-CORNERS", what, [places[i] for i in np.flatnonzero(beyond).tolist()], level=level)


def label_file(image: Path, split: Split | None = None) -> Path:
    """The path of an image's label file.

    It is in the split's folder of labels, if set. Otherwise it is the first file that exists: with `labels` instead of
    the last `images` in the path, also in capitals as in `Images/` and `Labels/`, or beside the image.
    """
    if split is not None and split.labels is not None:
        return split.labels / image.relative_to(split.image_roots[0]).with_suffix(".txt")
    usual, beside = usual_label_file(image), image.with_suffix(".txt")
    existing = (
        file
        for path in (usual, *_capital_label_files(image), beside)
        for file in (path, path.with_suffix(".TXT"))
        if file.is_file()
    )
    return next(existing, usual)


def usual_label_file(image: Path) -> Path:
    """An image's path with `labels` instead of the last `images` and the suffix .txt, whether or not it exists."""
    parts = list(image.parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _capital_label_files(image: Path) -> list[Path]:
    """An image's path with `Labels`, `LABELS` or `labels` instead of the last `Images` or `IMAGES`, if it has that."""
    parts = image.parts[:-1]
    at = next((i for i in reversed(range(len(parts))) if parts[i] in ("Images", "IMAGES")), None)
    if at is None:
        return []
    folders = [(*parts[:at], name, *parts[at + 1 :]) for name in ("Labels", "LABELS", "labels")]
    return [Path(*folder, image.name).with_suffix(".txt") for folder in folders]


def _lines(
    file: Path, num_classes: int, keypoints: tuple[int, int] | None, findings: Findings
) -> Iterator[tuple[int, list[float]]]:
    """The line number and the values of every valid line."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        findings.add("DATA-FILE", "label files that cannot be read", [f"{file.name}: {error}"])
        return
    invalid = []
    for number, line in enumerate(text.splitlines(), start=1):
        if columns := line.split():
            try:
                yield number, _parse_row(columns, num_classes, keypoints)
            except ValueError as error:
                invalid.append(f"{file.name} line {number}: {error}")
    findings.add("DATA-LABEL-LINE", "lines of label files that cannot be read", invalid)


def _parse_row(columns: list[str], num_classes: int, keypoints: tuple[int, int] | None) -> list[float]:
    """The numbers of a line.

    Raises:
        ValueError: the line is invalid; with a description of the error.
    """
    if any("," in column for column in columns):
        raise ValueError("commas; use a decimal point, and spaces between numbers")
    try:
        values = [float(column) for column in columns]
    except ValueError:
        raise ValueError("not numbers") from None
    if not all(map(is_number, values)):
        raise ValueError("numbers that are not finite")
    if values[0] % 1 or not 0 <= values[0] < num_classes:
        raise ValueError(f"class {columns[0]}, known are 0 to {num_classes - 1}")
    if keypoints and keypoints[0] and len(values) not in (5, 5 + keypoints[0] * keypoints[1]):
        expected = 5 + keypoints[0] * keypoints[1]
        raise ValueError(f"{len(values)} columns, a box has 5 and with kpt_shape {list(keypoints)} {expected}")
    if len(values) != 5 and len(values) < 7:
        score = ", the last one may be a confidence" if len(values) == 6 else ""
        raise ValueError(f"{len(values)} columns, a box has 5{score}")
    if max(map(abs, values[1:5])) > MAX_FRACTION:
        largest = max(values[1:5], key=abs)
        raise ValueError(f"{largest:g}, but fractions of the image's width and height are at most 1")
    return values


def _report_labels_without_image(images: list[Path], split: Split, findings: Findings) -> None:
    """Report label files without an image. If the split is a list, images beside the listed ones count as well."""
    beside = {image for here in {image.parent for image in images} if split.listing[0].is_file()
              for image in visible_files(here, IMAGE_SUFFIXES)}  # fmt: skip
    expected = {label_file(image, split) for image in {*images, *beside}}
    folders = sorted({file.parent for file in expected})
    unmatched = [file for folder in folders if folder.is_dir() for file in visible_files_here(folder, (".txt",))
                 if file not in expected and file.stem not in ("classes", "train", "val", "test")]  # fmt: skip
    findings.add("DATA-LABEL-LOST", "label files without an image", [Location(file.name) for file in unmatched])


def _images(listing: Path, root: Path, follow_symlinks: bool) -> list[Path]:
    """The images in a folder, or in a list with one name per line."""
    if listing.is_dir():
        # array files beside images are copies of them
        found = visible_files(listing, IMAGE_SUFFIXES, follow_symlinks)
        return found or visible_files(listing, ARRAYS, follow_symlinks)
    names = listing.read_text("utf-8-sig", errors="surrogateescape").splitlines()
    found = (_listed(name.strip(), root) for name in names if name.strip())
    return [path for path in found if path is not None]


def _listed(line: str, root: Path) -> Path | None:
    """The image in a line of a list; None for a comment.

    The line may have more columns after the path. Of a path of another machine, leading folders are dropped until the
    rest exists in the root or in images/.
    """
    for name in (line, line.replace("\\", "/"), line.replace("\\", "/").split()[0]):
        for tail in (name.removeprefix("./"), *tails(name)):
            if path := next((base / tail for base in (root, root / "images") if os.path.lexists(base / tail)), None):
                return path
    return None if line.startswith("#") else root / line.replace("\\", "/").removeprefix("./")


def usual_folders(folder: Path, words: Sequence[str]) -> tuple[Path, ...]:
    """The folder with the images of a split if data.yaml does not name one: train/images/ or images/train/."""
    names = [name for word in words for name in (f"{word}/images", f"images/{word}")]
    return tuple(folder / name for name in names if (folder / name).is_dir())[:1]


def folders_of_entry(entry: Any, path: Any, folder: Path, file: Path, guard: PathGuard) -> tuple[Path, ...]:
    """The folders or lists of images that an entry of data.yaml names.

    Of a path of another machine, or of Roboflow's `../train/images`, leading folders are dropped until the rest exists.

    Raises:
        DataError: the path leads out of the data folder, and the settings do not allow it.
    """
    found, top = [], folder.resolve()
    for name in (str(e).replace("\\", "/") for e in (entry if isinstance(entry, list) else [entry])):
        bases = [folder / path.replace("\\", "/"), folder] if isinstance(path, str) else [folder]
        below = [base / tail for tail in tails(name) for base in bases]
        candidates = [*below, folder / name]
        inside = [p for p in candidates if p.exists() and p.resolve().is_relative_to(top)]
        if inside:
            found.append(folder / inside[0].resolve().relative_to(top))
        elif guard.follow_symlinks and (linked := next((p for p in below if p.exists()), None)):
            found.append(linked)
        elif any(p.exists() for p in candidates):
            raise DataError(f"{name} leads out of the data folder", code="DATA-PATH-ESCAPE", where=file,
                            fix="move the images to the folder of data.yaml, set data.follow_symlinks=true for "
                                "a link, or write a dataset.toml")  # fmt: skip
    return tuple(found)


def _did_you_mean(entry: Any, folder: Path) -> str:
    """A hint with a folder of a similar name; or an empty text."""
    names = [p.relative_to(folder).as_posix() for depth in ("*", "*/*") for p in folder.glob(depth) if p.is_dir()]
    close = get_close_matches(str(entry), names, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""
