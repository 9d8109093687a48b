"""Check a split for consistency: ids, names and files, boxes and images. Invalid entries are dropped."""

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

HUGE = 10  # times the side of its image: such a box is a slip
MIN_EVIDENCE = 10  # boxes, before a file is said to mean another format
MAX_FLAT = 2  # boxes without a size that are slips in a set however small
SAMPLE = 50  # names that are looked for to tell the folder of images


def unique_ids(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Of images and categories with one id, the first."""
    for ids, name in ((table.image_ids, "images"), (np.array([c.id for c in table.categories]), "categories")):
        values, counts = np.unique(ids, return_counts=True)
        twice = values[counts > 1].tolist()
        findings.add("DATA-ID-TWICE", f"ids that appear more than once in `{name}`", map(str, twice), len(twice))
    first = {category.id: category for category in reversed(table.categories)}
    table = table._replace(categories=[c for c in table.categories if first[c.id] is c])
    return table.images(np.sort(np.unique(table.image_ids, return_index=True)[1]))


def safe_names(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Images whose names lead out of the folder are left out; the others' names are made plain."""
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


def present_files(
    table: RawAnnotations, split: Split, config: DataConfig, findings: Findings
) -> tuple[RawAnnotations, Path]:
    """Images that are there, and the folder they are in: of those that may be it, the one that holds most of a sample.

    A name that differs from one in the folder only in capitals, in how Unicode or %20 is written, or in its suffix, is
    taken for it, if there is one such file and no other entry has it.
    """
    if not table.file_names or not split.image_roots:
        return table, split.annotations.parent
    root = _likely_root(table.file_names, split)
    if root is None:
        tried = ", ".join(str(root) for root in split.image_roots)
        findings.fail("DATA-IMAGE-MISSING", f"its images, such as {table.file_names[0][:300]}, are in none of {tried}")
    guard = PathGuard(split.folder or root, config.follow_symlinks)
    found = [guard.status(f"{root}/{name}") for name in table.file_names]
    missing = [i for i, state in enumerate(found) if state == "missing"]
    if missing and (similar := similar_names(table.file_names, missing, root, config.follow_symlinks)):
        names = [similar.get(i, name) for i, name in enumerate(table.file_names)]
        renamed = [f"{table.file_names[i]} -> {name}" for i, name in similar.items()]
        findings.add("DATA-IMAGE-NAME", f"{counted(len(renamed), 'file name')} not spelled as on disk", renamed)
        found = ["ok" if i in similar else state for i, state in enumerate(found)]
        table = table._replace(file_names=names)
    for state, code, what in (("missing", "DATA-IMAGE-MISSING", "are not in"),
                              ("escape", "DATA-PATH-ESCAPE", "lead through a link out of")):  # fmt: skip
        gone = [name[:300] for name, looked in zip(table.file_names, found, strict=True) if looked == state]
        findings.add(code, f"{len(gone)} of {len(found)} images {what} {root}", gone)
    return table.images(np.array([looked == "ok" for looked in found], dtype=bool)), root


def _likely_root(names: Sequence[str], split: Split) -> Path | None:
    """The folder with most of an even sample of the names; the first of equals."""
    sample = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, SAMPLE).round().astype(int)).tolist()]
    for ends in (lambda name: [name], lambda name: tails(unquote(name))):  # as written, or else without its first parts
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
    for root in folders:  # folders below it, such as one for each class, that tell no split
        files = [path for path in visible_files(root, IMAGE_SUFFIXES)
                 if not split_in_path(path.relative_to(root).parts[:-1])]  # fmt: skip
        if keys <= {_plain_name(path.name) for path in files}:
            return root
    return None


def similar_names(names: Sequence[str], missing: Sequence[int], root: Path, follow: bool) -> dict[int, str]:
    """Files below `root` that missing names are taken for; each for one name, and only where there is one of them."""
    taken = set(names)  # also of what has a missing one's name and is no file, such as a pipe
    here = [path.relative_to(root).as_posix() for path in visible_files(root, IMAGE_SUFFIXES, follow)]
    here = [name for name in here if name not in taken]
    keys: tuple[Callable[[str], str], ...] = (
        _plain_name,
        lambda name: str(PurePosixPath(_plain_name(name)).with_suffix("")),
        lambda name: PurePosixPath(_plain_name(name)).name,
    )
    found: dict[int, str] = {}
    for key in keys:
        files: dict[str, list[str]] = {}
        for name in here:
            if name not in found.values():
                files.setdefault(key(name), []).append(name)
        wanted: dict[str, list[int]] = {}
        for i in missing:
            if i not in found:
                wanted.setdefault(key(names[i]), []).append(i)
        single = {rows[0]: files[k][0] for k, rows in wanted.items() if len(rows) == len(files.get(k, ())) == 1}
        found |= {i: name for i, name in single.items() if _same_folders(names[i], name)}
    return found


def _same_folders(one: str, other: str) -> bool:
    """Whether the folders of one name are the last ones of the other: cam1/a.jpg is no way to write cam2/a.jpg."""
    first, second = (PurePosixPath(_plain_name(name)).parent.parts[::-1] for name in (one, other))
    return all(a == b for a, b in zip(first, second, strict=False))


def _plain_name(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).replace("\\", "/").casefold()


def known_sizes(table: RawAnnotations, root: Path, config: DataConfig, findings: Findings) -> RawAnnotations:
    """Sizes that are not said are read from the files; what cannot be read is left out. Shares become pixels."""
    sizes = table.sizes.copy()
    bad: dict[int, str] = {}
    turned = np.ones(len(sizes), np.int64)
    for i in np.flatnonzero((sizes == 0).any(1)).tolist():
        try:
            sizes[i], _, turned[i], _ = read_header(root / table.file_names[i], config)
        except DataError as error:
            bad[i] = error.what
            findings.add(error.code, "images without a size, in the annotations or in the file",
                         [Location(error.what, root / table.file_names[i])])  # fmt: skip
    table = table._replace(sizes=sizes)
    check_turned(table, turned, root, findings)
    table = table.images(np.array([i not in bad for i in range(len(sizes))], dtype=bool))
    if not table.in_fractions:
        return table
    rows = positions(table)
    side = np.where(rows[:, None] >= 0, table.sizes[rows], 0) if len(table.sizes) else np.zeros((len(rows), 2))
    return table._replace(boxes=_in_pixels(table.boxes, side.astype(np.float64)), in_fractions=False)


def _in_pixels(shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) in pixels; those that six decimals cannot tell from whole pixels are whole pixels."""
    scale = np.tile(sizes, 2)  # (M, 4)
    corners = np.concatenate([shares[:, :2], shares[:, :2] + shares[:, 2:]], 1) * scale
    exact = _are_whole(shares, sizes)
    corners[exact] = np.rint(corners[exact])
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def _are_whole(shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes (M, 4), as shares of images (M, 2), have their corners at whole pixels, but for six decimals."""
    scale = np.tile(sizes, 2)
    corners = np.concatenate([shares[:, :2], shares[:, :2] + shares[:, 2:]], 1) * scale
    return (np.abs(corners - np.rint(corners)) <= 1e-6 * scale.max(1, keepdims=True)).all(1)


def check_turned(table: RawAnnotations, turned: np.ndarray, root: Path, findings: Findings) -> None:
    """Whether boxes of images that EXIF turns, (I,) orientations, were drawn on the pixels as stored.

    Only annotations that say no sizes come here. Tools place corners on whole pixels: boxes whose corners are whole in
    the stored image and not in the upright one were drawn on the stored one. Where nothing shows it, that is said.
    """
    rows = positions(table)
    own = np.where(rows >= 0, turned[rows], 1) if len(turned) else np.ones(0, np.int64)
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
    """Objects of images and classes that are not there."""
    kinds = np.array([category.id for category in table.categories])
    for ids, known, key, name in ((table.owners, table.image_ids, "image_id", "images"),
                                  (table.category_ids, kinds, "category_id", "categories")):  # fmt: skip
        lost = np.flatnonzero(~np.isin(ids, known))
        named = (f"{table.name(i)} -> {ids[i]}" for i in lost.tolist())
        level = WARNING if config.allow_orphans else ""
        findings.add("DATA-ORPHAN", f"`{key}` that is not in `{name}`", named, len(lost), level)


def drop_orphans(table: RawAnnotations) -> RawAnnotations:
    """Objects whose image and class are there."""
    kinds = [category.id for category in table.categories]
    return table.objects(np.isin(table.owners, table.image_ids) & np.isin(table.category_ids, kinds))


def sort_by_file(table: RawAnnotations) -> tuple[RawAnnotations, np.ndarray]:
    """Images by file name, whatever the format, objects by image; and where objects begin, (I + 1,)."""
    table = table.images(np.argsort(np.array([os.fsencode(name) for name in table.file_names]), kind="stable"))
    rows = positions(table)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(table.image_ids)))])
    return table.objects(np.argsort(rows, kind="stable")), starts


def positions(table: RawAnnotations) -> np.ndarray:
    """The row of each object's image, (M,); -1 where it is not there."""
    if not len(table.image_ids):
        return np.full(len(table.owners), -1)
    order = np.argsort(table.image_ids)
    near = order[np.searchsorted(table.image_ids[order], table.owners).clip(max=len(order) - 1)]
    return np.where(table.image_ids[near] == table.owners, near, -1)


def check_boxes(table: RawAnnotations, root: Path, config: DataConfig, findings: Findings) -> None:
    """Boxes that cannot be learned from; many of them mean that the file means something else."""
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
    tiny = ~flat & ~outside & np.any(seen_sides(boxes, sizes) < config.min_box_size, axis=1)
    code = "DATA-BOX-FLAT-MANY" if flat.sum() > max(0.05 * count, MAX_FLAT) else "DATA-BOX-FLAT"
    for kind, which, one, many in ((code, flat, "has no width or height", "have no width or height"),
                              ("DATA-BOX-OUTSIDE", outside, "lies outside its image, or is far larger",
                               "lie outside their image, or are far larger"),
                              ("DATA-BOX-TINY", tiny, f"is smaller than {config.min_box_size} pixels",
                               f"are smaller than {config.min_box_size} pixels")):  # fmt: skip
        number = int(which.sum())
        left_out = "" if kind.endswith("MANY") else ", not trained on"
        findings.add(kind, f"{number} of {count} boxes {one if number == 1 else many}{left_out}", places(which), number)
    shares = boxes.max(1, initial=0) <= 1.0
    if shares.sum() > 0.5 * count:
        what = f"{shares.sum()} of {count} boxes {'lies' if shares.sum() == 1 else 'lie'} within [0, 1]"
        findings.add("DATA-BOX-SHARES", what, places(shares), int(shares.sum()))
    beyond, meant = _like_another_form(boxes, sizes)
    verb = "reaches beyond its" if beyond.sum() == 1 else "reach beyond their"
    what = f"{beyond.sum()} of {count} boxes {verb} image; are they {meant}?"
    findings.add("DATA-BOX-CORNERS", what, places(beyond), int(beyond.sum()))


def seen_sides(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Width and height of that part of each box (M, 4) that is within its image (M, 2), at most 0 where none is.

    A box far larger than its image shows nothing of it.
    """
    sides = (boxes[:, :2] + boxes[:, 2:]).clip(max=sizes) - boxes[:, :2].clip(0)
    return np.where((boxes[:, 2:] > HUGE * sizes).any(1, keepdims=True), 0, sides)


def compare_categories(known: Sequence[Category], own: Sequence[Category], used: set[int], findings: Findings) -> None:
    """Say which of a split's classes are none of training's; if all are that have objects, nothing can be judged."""
    ids = {c.id for c in known}
    extra = [c.name for c in own if c.id not in ids and c.id in used]
    if extra and not used & ids:
        names = ", ".join(c.name for c in known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        what = f"no object in {findings.file} has a class that the model knows ({names})"
        findings.add("DATA-CLASS-UNKNOWN", what, extra, level=ERROR)
        return
    findings.add("DATA-CLASS-UNKNOWN", "classes that were not trained on; not evaluated", extra)


def match_categories(table: RawAnnotations, known: Sequence[Category], findings: Findings) -> RawAnnotations:
    """Classes by name, else by a name that differs only in capitals; ids follow those of `known`.

    Of known classes with one name, it is the one with the same id, or else the first.

    Names such as class_7 are those of weights that came without any: there the ids count.
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
        at, like = found[category.id], folded.get(category.name.casefold())
        if at is None and like not in taken:
            at = like
        new[category.id] = free + n if at is None else at
    groups: dict[int, list[int]] = {}
    for own, its in new.items():
        groups.setdefault(its, []).append(own)
    _report_one_name(groups, {c.id: c.name for c in table.categories}, findings)
    ids = np.array([new[kind] for kind in table.category_ids.tolist()], dtype=np.int64)
    return table._replace(categories=[Category(new[c.id], c.name) for c in table.categories], category_ids=ids)


def _report_one_name(groups: Mapping[Any, Sequence[int]], names: Mapping[int, str], findings: Findings) -> None:
    """Say which ids are taken for one class."""
    twice = [f"{names[ids[0]]}: ids {', '.join(map(str, sorted(ids)))}" for ids in groups.values() if len(ids) > 1]
    findings.add("DATA-CLASS-NAME", "classes with the same name are merged", twice)


def clean_names(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Names of classes without control characters, which no terminal obeys and no file of ours holds."""
    new = [Category(c.id, clean_name(c.name)) for c in table.categories]
    pairs = zip(table.categories, new, strict=True)
    dirty = [f"{old.name!a} -> {clean.name}" for old, clean in pairs if CONTROL.search(old.name)]
    findings.add("DATA-CLASS-CONTROL", "control characters dropped from class names", dirty)
    return table._replace(categories=new, headings=frozenset(map(clean_name, table.headings)))


def merge_names(table: RawAnnotations, findings: Findings) -> RawAnnotations:
    """Of classes with one name, the first that has objects, or just the first; the objects of the others are its."""
    used = set(np.unique(table.category_ids).tolist())
    groups: dict[str, list[int]] = {}
    for category in sorted(table.categories, key=lambda c: (c.id not in used, c.id)):
        groups.setdefault(category.name, []).append(category.id)
    _report_one_name(groups, {c.id: c.name for c in table.categories}, findings)
    new = {i: ids[0] for ids in groups.values() for i in ids}
    ids = np.array([new[kind] for kind in table.category_ids.tolist()], dtype=np.int64)
    return table._replace(categories=[c for c in table.categories if new[c.id] == c.id], category_ids=ids)


def without_headings(table: RawAnnotations, findings: Findings) -> list[Category]:
    """Categories by id, less what Roboflow adds: one without objects that is only the heading of others."""
    used = set(np.unique(table.category_ids).tolist())
    roots = [c for c in table.categories if c.id not in used and c.name in table.headings]
    findings.add("DATA-CLASS-HEADING", "skipped as headings without objects", [c.name for c in roots])
    return [c for c in sorted(table.categories) if c not in roots]


def report_alike(categories: Sequence[Category], used: np.ndarray, findings: Findings) -> None:
    """Say which classes have names that a hand may have written in two ways; `used` has the class of each object."""
    groups: dict[str, list[Category]] = {}
    for category in categories:
        key = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", unicodedata.normalize("NFKC", category.name)).casefold()
        groups.setdefault(key, []).append(category)
    alike = [
        [f"{c.name} ({(used == c.id).sum()} objects)" for c in group] for group in groups.values() if len(group) > 1
    ]
    what = "classes whose names differ only in case, spaces, `-` and `_`"
    findings.add("DATA-CLASS-ALIKE", what, [" ~ ".join(names) for names in alike])


def _like_another_form(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, str]:
    """Which boxes, (M,) bool, reach beyond their image, if all of them read well in another form; and that form."""
    near, far, sizes = boxes[:, :2], boxes[:, 2:], sizes + 1  # rounding
    beyond = np.asarray((near + far > sizes).any(1))
    as_corners = (far >= near).all() and (far <= sizes).all()
    as_centers = (near - far / 2 >= -1).all() and (near + far / 2 <= sizes).all()
    enough = beyond.sum() > 0.2 * len(near) and len(near) > MIN_EVIDENCE
    meant = bool(enough and (as_corners or as_centers))
    form = "x0 y0 x1 y1" if as_corners else "the center, width and height"
    return beyond if meant else np.zeros_like(beyond), form
