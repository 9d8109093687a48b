"""YOLO's layout: `data.yaml`, images, and label files with lines `class cx cy width height` in fractions.

Source: what Ultralytics documents (https://docs.ultralytics.com/datasets/detect/). Labels are where `images` in an
image's path reads `labels`. A line with more columns is an outline, of which the extent counts, or a box with
keypoints: `kpt_shape` says so, or all such lines of the split together.
"""

import os
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

MOST = 1.5  # a share of an image, leaving room for boxes that reach beyond it; more is a number of pixels
SLACK = 0.02  # of an image, by which keypoints may lie outside of their box
MIN_EVIDENCE = 10  # lines, before all of them together are said to mean something else


def find_yolo(folder: Path, guard: PathGuard) -> Layout | None:
    """
    Raises:
        DataError: there is a data.yaml that cannot be used, or a link to one outside.
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
        listing = (
            folders_of_entry(entry, content.get("path"), folder, file, guard) if entry else usual_folders(folder, words)
        )
        if listing:
            splits[name] = Split(file, [folder], "yolo", folder, listing, classes, keypoints=keypoints)
        elif name == "train" and entry:
            raise bad_yaml(f"`train: {entry}` is not in {folder}{_nearest(entry, folder)}", file)
        elif name == "val" and entry:
            missing = f"`val: {entry}` of {file.name} does not exist{_nearest(entry, folder)}"
    layout = layout_of("YOLO", splits, missing)
    if layout is None:
        what = "its image folders (`train`, `val`) do not exist"
        raise DataError(what, code="DATA-YAML", where=file, fix=CODES["DATA-YAML"].fix + suggest(folder))
    return layout


def _yaml_file(folder: Path, guard: PathGuard) -> Path | None:
    """data.yaml, or the one other YAML file that has `names`; what else is YAML is nobody's business here."""
    named = [folder / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    if there := [file for file in named if file.is_file()]:
        return there[0]
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
    """Files directly in a folder with one of the suffixes, less hidden ones, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())


def read_yolo(split: Split, findings: Findings, config: DataConfig) -> RawAnnotations:
    """Every image of the split, and the lines of its label file; images are numbered from 1 by name."""
    root = split.image_roots[0]
    follow = config.follow_symlinks
    images = sorted({path for listing in split.listing for path in _images(listing, root, follow)})
    labelled = 0
    guard = PathGuard(split.folder or root, follow)
    owners, rows, places = [], [], []
    for number, image in enumerate(images, start=1):
        file = label_file(image, split)
        looked = guard.look(str(file))
        if looked == "escape":
            findings.add(
                "DATA-PATH-ESCAPE", "label files that are outside the data folder because of a link", [str(file)]
            )
        if looked == "ok":
            labelled += 1
            for line, row in _lines(file, len(split.classes), split.keypoints, findings):
                owners.append(number)
                rows.append(row)
                places.append(f"{file.name} line {line}")
    _lost_labels(images, split, findings)
    if images and not labelled:
        place = label_file(images[0], split)
        findings.add("DATA-LABEL-NONE", f"none of {len(images)} images has a label file, such as {place}", count=1)
    values = _boxes(rows, places, split.keypoints, findings)
    _check_form(values[:, 1:], places, findings)
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
        in_shares=True,
    )


def _boxes(
    rows: list[list[float]], places: list[str], keypoints: tuple[int, int] | None, findings: Findings
) -> np.ndarray:
    """Class, cx, cy, width and height of every line, (M, 5); what longer ones are, all of them together tell.

    Keypoints make lines of one length, so lines of several are outlines.
    """
    values = np.array([row[:5] for row in rows], dtype=np.float64).reshape(-1, 5)
    lengths = np.array([len(row) for row in rows])
    longer = [] if keypoints and keypoints[0] else np.unique(lengths[lengths > 5]).tolist()
    for length in longer:
        at = np.flatnonzero(lengths == length)
        several = np.array([rows[i] for i in at.tolist()])
        form = _form_of_outline(several) if keypoints or len(longer) > 1 else _form(several)
        if form == "outline":
            x, y = several[:, 1::2], several[:, 2::2]
            low, high = np.stack([x.min(1), y.min(1)], 1), np.stack([x.max(1), y.max(1)], 1)  # (m, 2)
            values[at, 1:] = np.concatenate([(low + high) / 2, high - low], 1)
        elif form != "keypoints":
            which = [places[i] for i in at.tolist()]
            findings.add("DATA-LABEL-FORM", f"lines of {length} columns {form}", which)
    return values


def _form(lines: np.ndarray) -> str:
    """What lines (m, n) of one length n > 5 are: `outline`, `keypoints`, or in words why nobody can tell.

    An outline's points lie anywhere. Keypoints lie in the box that the line begins with; if they have a third value it
    is 0, 1 or 2. A box with a confidence and the number of a track has 7 columns, the last one whole.
    """
    count, length = lines.shape
    if length == 7 and not (lines[:, 6] % 1).any():
        return "end in a whole number: a box, a confidence and a track id, as from a tracker"
    center, side, rest = lines[:, None, 1:3], lines[:, None, 3:5], lines[:, 5:]
    plausible = (side > 0).all() and (np.abs(center - 0.5) + side / 2 <= 0.5 + SLACK).all()
    for dims in (3, 2):
        if rest.shape[1] % dims or not plausible:
            continue
        points = rest.reshape(count, -1, dims)
        seen = points[..., :2].any(-1)  # 0, 0: not annotated
        inside = (np.abs(points[..., :2] - center) <= side / 2 + SLACK).all(-1)
        shown = dims == 2 or np.isin(points[..., 2], (0, 1, 2)).all()
        if shown and (inside | ~seen).all():
            certain = dims == 3 or (count >= MIN_EVIDENCE and not _second_point_fits(lines))
            return "keypoints" if certain else "are either polygons or boxes with keypoints"
    return _form_of_outline(lines)


def _form_of_outline(lines: np.ndarray) -> str:
    if lines.shape[1] % 2 == 0:
        return "are neither polygons, which have pairs of numbers, nor keypoints"
    return "outline" if np.abs(lines[:, 1:]).max() <= MOST else "are not fractions of the image's width and height"


def _second_point_fits(lines: np.ndarray) -> bool:
    """Whether the numbers that are width and height of a box with keypoints may be a point of an outline in most lines:
    no farther from the other points than these are from each other.
    """
    x, y = lines[:, 1::2], lines[:, 2::2]
    near = []
    for values in (x, y):
        others = np.delete(values, 1, axis=1)
        low, high = others.min(1), others.max(1)
        near.append((values[:, 1] >= 2 * low - high) & (values[:, 1] <= 2 * high - low))
    return bool((near[0] & near[1]).mean() > 0.5)


def _check_form(boxes: np.ndarray, places: list[str], findings: Findings) -> None:
    """Boxes (M, 4) that reach beyond their images as centre, width, height and read well as something else: an error,
    or of a few boxes, which may be slips, a warning.
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
    """Where an image's labels are: the last `images` of its path reads `labels`; or with capitals, as in `Images/` and
    `Labels/`, or beside it, if they are there; or in the folder that the split names.
    """
    if split is not None and split.labels is not None:
        return split.labels / image.relative_to(split.image_roots[0]).with_suffix(".txt")
    usual, beside = usual_label_file(image), image.with_suffix(".txt")
    there = (
        file
        for path in (usual, *_capital_label_files(image), beside)
        for file in (path, path.with_suffix(".TXT"))
        if file.is_file()
    )
    return next(there, usual)


def usual_label_file(image: Path) -> Path:
    """The path of an image whose last `images` reads `labels`, whether or not there is such a file."""
    parts = list(image.parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _capital_label_files(image: Path) -> list[Path]:
    """The paths of an image whose last `Images` or `IMAGES` reads `labels`, in any of the usual capitals."""
    parts = image.parts[:-1]
    at = next((i for i in reversed(range(len(parts))) if parts[i] in ("Images", "IMAGES")), None)
    if at is None:
        return []
    forms = [(*parts[:at], name, *parts[at + 1 :]) for name in ("Labels", "LABELS", "labels")]
    return [Path(*form, image.name).with_suffix(".txt") for form in forms]


def _lines(
    file: Path, num_classes: int, keypoints: tuple[int, int] | None, findings: Findings
) -> Iterator[tuple[int, list[float]]]:
    """Number and values of every line that can be read."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        findings.add("DATA-FILE", "label files that cannot be read", [f"{file.name}: {error}"])
        return
    wrong = []
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            try:
                yield number, _row(words, num_classes, keypoints)
            except ValueError as error:
                wrong.append(f"{file.name} line {number}: {error}")
    findings.add("DATA-LABEL-LINE", "lines of label files that cannot be read", wrong)


def _row(words: list[str], num_classes: int, keypoints: tuple[int, int] | None) -> list[float]:
    """The numbers of a line.

    Raises:
        ValueError: what is wrong with the line.
    """
    if any("," in word for word in words):
        raise ValueError("commas; use a decimal point, and spaces between numbers")
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError("not numbers") from None
    if not all(map(is_number, values)):
        raise ValueError("numbers that are not finite")
    if values[0] % 1 or not 0 <= values[0] < num_classes:
        raise ValueError(f"class {words[0]}, known are 0 to {num_classes - 1}")
    if keypoints and keypoints[0] and len(values) not in (5, 5 + keypoints[0] * keypoints[1]):
        wanted = 5 + keypoints[0] * keypoints[1]
        raise ValueError(f"{len(values)} columns, a box has 5 and with kpt_shape {list(keypoints)} {wanted}")
    if len(values) != 5 and len(values) < 7:
        score = ", the last one may be a confidence" if len(values) == 6 else ""
        raise ValueError(f"{len(values)} columns, a box has 5{score}")
    if max(map(abs, values[1:5])) > MOST:
        most = max(values[1:5], key=abs)
        raise ValueError(f"{most:g}, but fractions of the image's width and height are at most 1")
    return values


def _lost_labels(images: list[Path], split: Split, findings: Findings) -> None:
    """Label files that belong to no image, of this split or, where lists name its images, of another."""
    beside = {image for here in {image.parent for image in images} if split.listing[0].is_file()
              for image in visible_files(here, IMAGE_SUFFIXES)}  # fmt: skip
    known = {label_file(image, split) for image in {*images, *beside}}
    folders = sorted({file.parent for file in known})
    lost = [file for folder in folders if folder.is_dir() for file in visible_files_here(folder, (".txt",))
            if file not in known and file.stem not in ("classes", "train", "val", "test")]  # fmt: skip
    findings.add("DATA-LABEL-LOST", "label files without an image", [Location(file.name) for file in lost])


def _images(listing: Path, root: Path, follow_symlinks: bool) -> list[Path]:
    """Images of a folder, or of a list with a name on each line."""
    if listing.is_dir():
        found = visible_files(listing, IMAGE_SUFFIXES, follow_symlinks)
        return found or visible_files(listing, ARRAYS, follow_symlinks)  # beside images they are copies of them
    names = listing.read_text("utf-8-sig", errors="surrogateescape").splitlines()
    found = (_listed(name.strip(), root) for name in names if name.strip())
    return [path for path in found if path is not None]


def _listed(line: str, root: Path) -> Path | None:
    """An image by its line in a list, None of a comment.

    A path of another machine counts from the first part that is there, or that is there in images/, and a line may have
    more columns.
    """
    for name in (line, line.replace("\\", "/"), line.replace("\\", "/").split()[0]):
        for tail in (name.removeprefix("./"), *tails(name)):
            if place := next((base / tail for base in (root, root / "images") if os.path.lexists(base / tail)), None):
                return place
    return None if line.startswith("#") else root / line.replace("\\", "/").removeprefix("./")


def usual_folders(folder: Path, words: Sequence[str]) -> tuple[Path, ...]:
    """Where images of a split are if the yaml doesn't say."""
    names = [name for word in words for name in (f"{word}/images", f"images/{word}")]
    return tuple(folder / name for name in names if (folder / name).is_dir())[:1]


def folders_of_entry(entry: Any, path: Any, folder: Path, file: Path, guard: PathGuard) -> tuple[Path, ...]:
    """Folders or lists of images that an entry names, all within the data folder.

    A path of another machine or Roboflow's `../train/images` counts from the first part that is there.
    """
    found, top = [], folder.resolve()
    for name in (str(e).replace("\\", "/") for e in (entry if isinstance(entry, list) else [entry])):
        bases = [folder / path.replace("\\", "/"), folder] if isinstance(path, str) else [folder]
        below = [base / tail for tail in tails(name) for base in bases]
        tried = [*below, folder / name]
        there = [p for p in tried if p.exists() and p.resolve().is_relative_to(top)]
        if there:
            found.append(folder / there[0].resolve().relative_to(top))
        elif guard.follow_symlinks and (linked := next((p for p in below if p.exists()), None)):
            found.append(linked)
        elif any(p.exists() for p in tried):
            raise DataError(f"{name} leads out of the data folder", code="DATA-PATH-ESCAPE", where=file,
                            fix="move the images to the folder of data.yaml, set data.follow_symlinks=true for "
                                "a link, or write a dataset.toml")  # fmt: skip
    return tuple(found)


def _nearest(entry: Any, folder: Path) -> str:
    """A folder that an entry may have meant, in words."""
    here = [p.relative_to(folder).as_posix() for depth in ("*", "*/*") for p in folder.glob(depth) if p.is_dir()]
    close = get_close_matches(str(entry), here, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""
