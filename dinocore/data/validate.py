"""Check a split for consistency: ids, file names, images, boxes and classes. Invalid entries are dropped."""

import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from ..config import DataConfig
from ..error_codes import ERROR, WARNING
from ..errors import DataError
from ..words import counted
from .findings import KEPT, Findings, Location, short_box
from .images import IMAGE_SUFFIXES, read_header
from .split import (
    CONTROL,
    Category,
    PathGuard,
    RawAnnotations,
    Split,
    clean_name,
    split_in_path,
    stays_inside,
    tails,
    visible_files,
)

HUGE = 10  # a box with a side more than this many times the image's is a mistake
MIN_EVIDENCE = 10  # boxes that are needed to infer that they have another format
MAX_FLAT = 2  # boxes without width or height that are acceptable even in a small dataset
SAMPLE = 50  # file names that are searched for to find the folder of images


def drop_duplicate_ids(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Keep only the first of images, and of categories, with the same id."""
    for ids, name in ((table.image_ids, "images"), (np.array([c.id for c in table.categories]), "categories")):
        values, counts = np.unique(ids, return_counts=True)
        repeated = values[counts > 1].tolist()
        findings.add("DATA-ID-TWICE", f"ids that appear more than once in `{name}`", map(str, repeated), len(repeated))
    first = {category.id: category for category in reversed(table.categories)}
    table = table._replace(categories=[c for c in table.categories if first[c.id] is c])
    return table.images(np.sort(np.unique(table.image_ids, return_index=True)[1]))


def drop_unsafe_names(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Drop images whose names lead out of the folder, and normalize the other names."""
    names = [name.replace("\\", "/") for name in table.file_names]
    good = np.array([stays_inside(name) for name in names], dtype=bool)
    wrong = [
        Location(f"image {table.image_ids[i]}: {table.file_names[i][:60]!r}") for i in np.flatnonzero(~good).tolist()
    ]
    findings.add("DATA-PATH-ESCAPE", "`file_name` that is not a file name or leads out of the image folder", wrong)
    plain = [str(PurePosixPath(name)) for name in names]
    seen: dict[str, list[int]] = {}
    for i in np.flatnonzero(good).tolist():
        seen.setdefault(plain[i], []).append(i)
    shared = [f"{name}: images {', '.join(str(table.image_ids[i]) for i in rows)}" for name, rows in seen.items()
              if len(rows) > 1]  # fmt: skip
    findings.add("DATA-IMAGE-TWICE", "entries of `images` that share a file", shared)
    return table._replace(file_names=plain).images(good)


def find_images(
    table: RawAnnotations, split: Split, config: DataConfig, findings: Findings
) -> tuple[RawAnnotations, Path]:
    """Keep the images that exist, and return them with their folder: the root that has most of a sample of the names.

    A name matches a file that differs only in case, suffix, or the spelling of Unicode or %20, if there is only one
    such file and no other entry has it.
    """
    if not table.file_names or not split.image_roots:
        return table, split.annotations.parent
    root = _likely_root(table.file_names, split)
    if root is None:
        tried = ", ".join(str(root) for root in split.image_roots)
        findings.fail("DATA-IMAGE-MISSING", f"its images, such as {table.file_names[0][:300]}, are in none of {tried}")
    guard = PathGuard(split.folder or root, config.follow_symlinks)
    states = [guard.status(f"{root}/{name}") for name in table.file_names]
    missing = [i for i, state in enumerate(states) if state == "missing"]
    if missing and (similar := similar_names(table.file_names, missing, root, config.follow_symlinks)):
        names = [similar.get(i, name) for i, name in enumerate(table.file_names)]
        renamed = [f"{table.file_names[i]} -> {name}" for i, name in similar.items()]
        findings.add("DATA-IMAGE-NAME", f"{counted(len(renamed), 'file name')} not spelled as on disk", renamed)
        states = ["ok" if i in similar else state for i, state in enumerate(states)]
        table = table._replace(file_names=names)
    for kind, code, what in (("missing", "DATA-IMAGE-MISSING", "are not in"),
                             ("escape", "DATA-PATH-ESCAPE", "lead through a link out of")):  # fmt: skip
        dropped = [name[:300] for name, state in zip(table.file_names, states, strict=True) if state == kind]
        findings.add(code, f"{len(dropped)} of {len(states)} images {what} {root}", dropped)
    return table.images(np.array([state == "ok" for state in states], dtype=bool)), root


def _likely_root(names: Sequence[str], split: Split) -> Path | None:
    """The root that has most of an even sample of the names; the first of equals."""
    sample = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, SAMPLE).round().astype(int)).tolist()]
    for ends in (lambda name: [name], lambda name: tails(unquote(name))):  # as written, or without leading folders
        hits = [
            sum(any(os.path.lexists(root / end) for end in ends(name)) for name in sample) for root in split.image_roots
        ]
        if any(hits):
            return split.image_roots[hits.index(max(hits))]
    folders = [root for root in dict.fromkeys(split.image_roots) if root.is_dir()]
    keys = {_plain_name(PurePosixPath(str(name)).name) for name in sample}
    stems = {key.rpartition(".")[0] for key in keys}
    for root in folders:
        here = {_plain_name(path.name) for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        if keys & here or stems & {key.rpartition(".")[0] for key in here}:
            return root
    for root in folders:  # subfolders whose names contain no split, such as one per class
        files = [path for path in visible_files(root, IMAGE_SUFFIXES)
                 if not split_in_path(path.relative_to(root).parts[:-1])]  # fmt: skip
        if keys <= {_plain_name(path.name) for path in files}:
            return root
    return None


def similar_names(names: Sequence[str], missing: Sequence[int], root: Path, follow: bool) -> dict[int, str]:
    """Files below `root` that match missing names, by index. Each matches one name, and must be the only match."""
    taken = set(names)  # including missing ones: a pipe may have such a name
    on_disk = [path.relative_to(root).as_posix() for path in visible_files(root, IMAGE_SUFFIXES, follow)]
    on_disk = [name for name in on_disk if name not in taken]
    keys: tuple[Callable[[str], str], ...] = (
        _plain_name,
        lambda name: str(PurePosixPath(_plain_name(name)).with_suffix("")),
        lambda name: PurePosixPath(_plain_name(name)).name,
    )
    found: dict[int, str] = {}
    for key in keys:
        files: dict[str, list[str]] = {}
        for name in on_disk:
            if name not in found.values():
                files.setdefault(key(name), []).append(name)
        rows_by_key: dict[str, list[int]] = {}
        for i in missing:
            if i not in found:
                rows_by_key.setdefault(key(names[i]), []).append(i)
        single = {rows[0]: files[k][0] for k, rows in rows_by_key.items() if len(rows) == len(files.get(k, ())) == 1}
        found |= {i: name for i, name in single.items() if _same_folders(names[i], name)}
    return found


def _same_folders(one: str, other: str) -> bool:
    """Whether the folders of one name are the last folders of the other: cam1/a.jpg does not match cam2/a.jpg."""
    first, second = (PurePosixPath(_plain_name(name)).parent.parts[::-1] for name in (one, other))
    return all(a == b for a, b in zip(first, second, strict=False))


def _plain_name(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).replace("\\", "/").casefold()


def complete_sizes(table: RawAnnotations, root: Path, config: DataConfig, findings: Findings) -> RawAnnotations:
    """Read unknown image sizes from the files, drop images that cannot be read, and convert fractions to pixels."""
    sizes = table.sizes.copy()
    bad: dict[int, str] = {}
    orientations = np.ones(len(sizes), np.int64)
    for i in np.flatnonzero((sizes == 0).any(1)).tolist():
        try:
            sizes[i], _, orientations[i], _ = read_header(root / table.file_names[i], config)
        except DataError as error:
            bad[i] = error.what
            findings.add(error.code, "images without a size, in the annotations or in the file",
                         [Location(error.what, root / table.file_names[i])])  # fmt: skip
    table = table._replace(sizes=sizes)
    check_rotated(table, orientations, root, findings)
    table = table.images(np.array([i not in bad for i in range(len(sizes))], dtype=bool))
    if not table.in_fractions:
        return table
    rows = positions(table)
    side = np.where(rows[:, None] >= 0, table.sizes[rows], 0) if len(table.sizes) else np.zeros((len(rows), 2))
    return table._replace(boxes=_in_pixels(table.boxes, side.astype(np.float64)), in_fractions=False)


def _in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) from fractions to pixels, rounded to whole pixels if six decimals cannot tell the difference."""
    scale = np.tile(sizes, 2)  # (M, 4)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * scale
    exact = _are_whole(boxes, sizes)
    corners[exact] = np.rint(corners[exact])
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def _are_whole(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes (M, 4), as fractions of images (M, 2), have corners at whole pixels, to six decimals."""
    scale = np.tile(sizes, 2)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * scale
    return (np.abs(corners - np.rint(corners)) <= 1e-6 * scale.max(1, keepdims=True)).all(1)


def check_rotated(table: RawAnnotations, orientations: np.ndarray, root: Path, findings: Findings) -> None:
    """Report images that EXIF rotates if their boxes were drawn on the pixels as stored, or if that is unclear.

    Used if annotations have no image sizes. Tools place corners on whole pixels, so boxes whose corners are whole in
    the stored image but not in the upright one were drawn on the stored one. `orientations` is (I,), EXIF's 1 to 8.
    """
    rows = positions(table)
    own = np.where(rows >= 0, orientations[rows], 1) if len(orientations) else np.ones(0, np.int64)
    at = np.flatnonzero(own > 1)
    if not len(at):
        return
    upright = table.sizes[rows[at]].astype(np.float64)
    stored = np.where(own[at, None] >= 5, upright[:, ::-1], upright)
    if table.in_fractions:
        fits_upright, fits_stored = (_are_whole(table.boxes[at], sizes) for sizes in (upright, stored))
    else:
        ends = table.boxes[at, :2] + table.boxes[at, 2:]
        fits_upright, fits_stored = ((ends <= sizes + 1).all(1) for sizes in (upright, stored))
    as_stored, as_upright = (fits_stored & ~fits_upright).sum(), (fits_upright & ~fits_stored).sum()
    images = np.unique(rows[at]).tolist()
    places = [Location(table.file_names[i], root / table.file_names[i]) for i in images[:KEPT]]
    opening = f"{counted(len(images), 'image')} with boxes {'is' if len(images) == 1 else 'are'} rotated by EXIF, and"
    if as_stored > as_upright:
        fit = "fits" if as_stored == 1 else "fit"
        what = f"{opening} {as_stored} of {len(at)} boxes {fit} the image as stored, not the upright image"
        findings.add("DATA-IMAGE-TURNED", what, places, len(images), ERROR, "set data.exif=false")
    elif not as_upright:
        what = f"{opening} it is unclear whether the boxes were drawn on the upright image; assuming that they were"
        findings.add("DATA-IMAGE-TURNED", what, places, len(images))


def report_orphans(table: RawAnnotations, config: DataConfig, findings: Findings) -> None:
    """Report objects whose image or class does not exist."""
    kinds = np.array([category.id for category in table.categories])
    for ids, known, key, name in ((table.owners, table.image_ids, "image_id", "images"),
                                  (table.category_ids, kinds, "category_id", "categories")):  # fmt: skip
        orphans = np.flatnonzero(~np.isin(ids, known))
        examples = (f"{table.name(i)} -> {ids[i]}" for i in orphans.tolist())
        level = WARNING if config.allow_orphans else ""
        findings.add("DATA-ORPHAN", f"`{key}` that is not in `{name}`", examples, len(orphans), level)


def drop_orphans(table: RawAnnotations) -> RawAnnotations:
    """Keep the objects whose image and class exist."""
    kinds = [category.id for category in table.categories]
    return table.objects(np.isin(table.owners, table.image_ids) & np.isin(table.category_ids, kinds))


def sort_by_file(table: RawAnnotations) -> tuple[RawAnnotations, np.ndarray]:
    """Sort images by file name, for any format, and objects by image; also return each image's first row, (I + 1,)."""
    table = table.images(np.argsort(np.array([os.fsencode(name) for name in table.file_names]), kind="stable"))
    rows = positions(table)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(table.image_ids)))])
    return table.objects(np.argsort(rows, kind="stable")), starts


def positions(table: RawAnnotations) -> np.ndarray:
    """The index of each object's image, (M,); -1 if it does not exist."""
    if not len(table.image_ids):
        return np.full(len(table.owners), -1)
    order = np.argsort(table.image_ids)
    near = order[np.searchsorted(table.image_ids[order], table.owners).clip(max=len(order) - 1)]
    return np.where(table.image_ids[near] == table.owners, near, -1)


def check_boxes(table: RawAnnotations, root: Path, config: DataConfig, findings: Findings) -> None:
    """Report boxes that cannot be trained on, and boxes that seem to have another format."""
    rows, boxes, count = positions(table), table.boxes, len(table.boxes)
    sizes = table.sizes[rows] if count else np.zeros((0, 2))

    def places(which: np.ndarray) -> list[Location]:
        return [
            Location(f"{table.name(i)}: {short_box(boxes[i])}", root / table.file_names[rows[i]], [boxes[i].tolist()])
            for i in np.flatnonzero(which)[:KEPT].tolist()
        ]

    flat = np.any(boxes[:, 2:] <= 0, axis=1)
    huge = np.any(boxes[:, 2:] > HUGE * sizes, axis=1)
    outside = ~flat & (huge | np.any((boxes[:, :2] >= sizes) | (boxes[:, :2] + boxes[:, 2:] <= 0), axis=1))
    tiny = ~flat & ~outside & np.any(visible_sides(boxes, sizes) < config.min_box_size, axis=1)
    code = "DATA-BOX-FLAT-MANY" if flat.sum() > max(0.05 * count, MAX_FLAT) else "DATA-BOX-FLAT"
    for kind, which, one, many in ((code, flat, "has no width or height", "have no width or height"),
                              ("DATA-BOX-OUTSIDE", outside, "lies outside its image, or is far larger",
                               "lie outside their image, or are far larger"),
                              ("DATA-BOX-TINY", tiny, f"is smaller than {config.min_box_size} pixels",
                               f"are smaller than {config.min_box_size} pixels")):  # fmt: skip
        number = int(which.sum())
        ignored = "" if kind.endswith("MANY") else ", not trained on"
        findings.add(kind, f"{number} of {count} boxes {one if number == 1 else many}{ignored}", places(which), number)
    unit = boxes.max(1, initial=0) <= 1.0
    if unit.sum() > 0.5 * count:
        what = f"{unit.sum()} of {count} boxes {'lies' if unit.sum() == 1 else 'lie'} within [0, 1]"
        findings.add("DATA-BOX-SHARES", what, places(unit), int(unit.sum()))
    beyond, meant = _misread_format(boxes, sizes)
    verb = "reaches beyond its" if beyond.sum() == 1 else "reach beyond their"
    what = f"{beyond.sum()} of {count} boxes {verb} image; are they {meant}?"
    findings.add("DATA-BOX-CORNERS", what, places(beyond), int(beyond.sum()))


def visible_sides(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Width and height of the part of each box (M, 4) within its image (M, 2); 0 or less if there is none.

    A box that is far larger than its image counts as having none.
    """
    sides = (boxes[:, :2] + boxes[:, 2:]).clip(max=sizes) - boxes[:, :2].clip(0)
    return np.where((boxes[:, 2:] > HUGE * sizes).any(1, keepdims=True), 0, sides)


def compare_categories(known: Sequence[Category], own: Sequence[Category], used: set[int], findings: Findings) -> None:
    """Report classes of a split that the training split does not have; an error if no object has a known class."""
    ids = {c.id for c in known}
    extra = [c.name for c in own if c.id not in ids and c.id in used]
    if extra and not used & ids:
        names = ", ".join(c.name for c in known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        what = f"no object in {findings.file} has a class that the model knows ({names})"
        findings.add("DATA-CLASS-UNKNOWN", what, extra, level=ERROR)
        return
    findings.add("DATA-CLASS-UNKNOWN", "classes that were not trained on; not evaluated", extra)


def match_categories(table: RawAnnotations, known: Sequence[Category], findings: Findings) -> RawAnnotations:
    """Give classes the ids of the `known` classes with the same name, or else with a name that differs only in case.

    If several known classes have the name, the one with the same id is used, or else the first.
    If all known names are such as class_7, they are those of weights without names, and ids are not changed.
    """
    if all(category.name == f"class_{category.id}" for category in known):
        return table
    exact = {category.name: category.id for category in reversed(known)}
    folded = {name.casefold(): i for name, i in exact.items()}
    same = {(category.id, category.name) for category in known}
    found = {c.id: c.id if (c.id, c.name) in same else exact.get(c.name) for c in table.categories}
    taken = {i for i in found.values() if i is not None}
    free = max([*exact.values(), *(c.id for c in table.categories)], default=0) + 1
    new = {}
    for n, category in enumerate(table.categories):
        match, similar = found[category.id], folded.get(category.name.casefold())
        if match is None and similar not in taken:
            match = similar
        new[category.id] = free + n if match is None else match
    groups: dict[int, list[int]] = {}
    for old_id, new_id in new.items():
        groups.setdefault(new_id, []).append(old_id)
    _report_same_name(groups, {c.id: c.name for c in table.categories}, findings)
    ids = np.array([new[kind] for kind in table.category_ids.tolist()], dtype=np.int64)
    return table._replace(categories=[Category(new[c.id], c.name) for c in table.categories], category_ids=ids)


def _report_same_name(groups: Mapping[Any, Sequence[int]], names: Mapping[int, str], findings: Findings) -> None:
    """Report ids that are merged into one class."""
    merged = [f"{names[ids[0]]}: ids {', '.join(map(str, sorted(ids)))}" for ids in groups.values() if len(ids) > 1]
    findings.add("DATA-CLASS-NAME", "classes with the same name are merged", merged)


def clean_names(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Drop control characters from class names, so that they do not reach terminals or files."""
    new = [Category(c.id, clean_name(c.name)) for c in table.categories]
    pairs = zip(table.categories, new, strict=True)
    dirty = [f"{old.name!a} -> {clean.name}" for old, clean in pairs if CONTROL.search(old.name)]
    findings.add("DATA-CLASS-CONTROL", "control characters dropped from class names", dirty)
    return table._replace(categories=new, headings=frozenset(map(clean_name, table.headings)))


def merge_names(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Merge classes with the same name into the first one that has objects, or into the first one."""
    used = set(np.unique(table.category_ids).tolist())
    groups: dict[str, list[int]] = {}
    for category in sorted(table.categories, key=lambda c: (c.id not in used, c.id)):
        groups.setdefault(category.name, []).append(category.id)
    _report_same_name(groups, {c.id: c.name for c in table.categories}, findings)
    new = {i: ids[0] for ids in groups.values() for i in ids}
    ids = np.array([new[kind] for kind in table.category_ids.tolist()], dtype=np.int64)
    return table._replace(categories=[c for c in table.categories if new[c.id] == c.id], category_ids=ids)


def drop_headings(table: RawAnnotations, findings: Findings) -> list[Category]:
    """Categories by id, without headings: Roboflow adds one without objects that is the supercategory of the others."""
    used = set(np.unique(table.category_ids).tolist())
    roots = [c for c in table.categories if c.id not in used and c.name in table.headings]
    findings.add("DATA-CLASS-HEADING", "skipped as headings without objects", [c.name for c in roots])
    return [c for c in sorted(table.categories) if c not in roots]


def report_similar_names(categories: Sequence[Category], used: np.ndarray, findings: Findings) -> None:
    """Report names that may be two spellings of one class; `used` has the class id of each object."""
    groups: dict[str, list[Category]] = {}
    for category in categories:
        key = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", unicodedata.normalize("NFKC", category.name)).casefold()
        groups.setdefault(key, []).append(category)
    similar = [
        [f"{c.name} ({(used == c.id).sum()} objects)" for c in group] for group in groups.values() if len(group) > 1
    ]
    what = "classes whose names differ only in case, spaces, `-` and `_`"
    findings.add("DATA-CLASS-ALIKE", what, [" ~ ".join(names) for names in similar])


def _misread_format(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, str]:
    """Which boxes, (M,) bool, reach beyond their image, if all boxes fit in another format; and that format."""
    near, far, sizes = boxes[:, :2], boxes[:, 2:], sizes + 1  # + 1: tolerates rounding
    beyond = np.asarray((near + far > sizes).any(1))
    as_corners = (far >= near).all() and (far <= sizes).all()
    as_centers = (near - far / 2 >= -1).all() and (near + far / 2 <= sizes).all()
    many = beyond.sum() > 0.2 * len(near) and len(near) > MIN_EVIDENCE
    is_misread = bool(many and (as_corners or as_centers))
    box_format = "x0 y0 x1 y1" if as_corners else "the center, width and height"
    return beyond if is_misread else np.zeros_like(beyond), box_format
