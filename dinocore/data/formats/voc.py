"""Pascal VOC: an XML file per image. Corners count pixels from 1 and include the last one.

Source: the VOC development kit (http://host.robots.ox.ac.uk/pascal/VOC/). Some tools count from 0; a split is read this
way if any of its corners is below 1. If no box touches the left or top edge, the origin is unclear, and a finding
reports the assumption. Objects marked `difficult` are treated as crowd regions, which are ignored in training.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ...config import DataConfig
from ..findings import Findings
from ..images import IMAGE_SUFFIXES, SUFFIXES
from ..split import (
    WORDS,
    Layout,
    NamedBox,
    PathGuard,
    RawAnnotations,
    Split,
    is_hidden,
    layout_of,
    named_table,
    one_line,
    read_text,
    stays_inside,
    visible_files,
)  # fmt: skip
from .pairs import paired_folders

SETS = "ImageSets/Main"
FOLDERS = (("Annotations", "JPEGImages"), ("Annotations", "images"), ("annotations", "images"), ("", ""))


class VocObject(NamedTuple):
    """An object in an XML file."""

    name: str
    corners: tuple[float, float, float, float]  # xmin ymin xmax ymax
    difficult: bool


class VocFile(NamedTuple):
    """The content of an XML file."""

    file_name: str
    size: tuple[int, int]  # (0, 0) if missing
    objects: list[VocObject]


def find_voc(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of VOC's folders, or of XML files beside images in the folder or in `train/`, `valid/`, `test/`."""
    inner = sorted(p for p in [*folder.glob("VOC20*"), *folder.glob("VOCdevkit/VOC20*")] if p.is_dir())
    if len(inner) > 1 and len({year.parent for year in inner}) == 1:
        lists = [_lists(year, guard) for year in inner]
        if all(lists) and all((year / name).is_dir() for year in inner for name in FOLDERS[0]):
            return _several_years(inner, lists, guard)
    folder = inner[0] if len(inner) == 1 else folder
    for xml, images in FOLDERS:
        # with lists of names, XML files may also be in subfolders
        listed = xml and (folder / SETS).is_dir() and visible_files(folder / xml, (".xml",))
        if (folder / images).is_dir() and (_has_xml(folder / xml) or listed) and (xml or is_voc(_first_xml(folder))):
            return _devkit(folder, folder / xml, folder / images, guard)
    if _has_xml(folder / "train") and is_voc(_first_xml(folder / "train")):
        return _beside(folder, guard)
    return None


def _has_xml(folder: Path) -> bool:
    """Whether there are XML files directly in a folder, except hidden ones."""
    return bool(_xml_in(folder))


def _first_xml(folder: Path) -> Path:
    return min(_xml_in(folder))


def _xml_in(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if file.suffix.lower() == ".xml" and not is_hidden(file.name)]


def _devkit(folder: Path, xml: Path, images: Path, guard: PathGuard) -> Layout | None:
    classes, first = scan_voc([xml], _ordered_names(folder / "labelmap.txt", guard), guard)
    made = {
        name: Split(xml, [images], "voc", folder, (file,), classes, first)
        for name, file in _lists(folder, guard).items()
    }
    return layout_of("Pascal VOC", made or {"train": Split(xml, [images], "voc", folder, (), classes, first)})


def _several_years(years: Sequence[Path], lists: Sequence[dict[str, Path]], guard: PathGuard) -> Layout | None:
    """The layout of VOC2007 and VOC2012 next to each other: each split has the images of all years' lists."""
    top = years[0].parent
    classes, first = scan_voc([year / FOLDERS[0][0] for year in years], (), guard)
    files = {name: tuple(found[name] for found in lists if name in found) for name in WORDS}
    made = {
        name: Split(top, [top], "voc", top, listing, classes, first, by_year=True)
        for name, listing in files.items() if listing
    }  # fmt: skip
    return layout_of(f"Pascal VOC, {' and '.join(year.name for year in years)}", made)


def _lists(folder: Path, guard: PathGuard) -> dict[str, Path]:
    """The list of names of each split for which there is one."""
    lists = {file.stem.lower(): file for file in sorted((folder / SETS).glob("*.txt"))}
    named = {name: next((lists[word] for word in words if word in lists), None) for name, words in WORDS.items()}
    return {name: guard.check(file) for name, file in named.items() if file is not None}


def _beside(folder: Path, guard: PathGuard) -> Layout | None:
    existing = {name: [folder / word for word in words if (folder / word).is_dir()] for name, words in WORDS.items()}
    folders = {name: found[0] for name, found in existing.items() if found}
    classes, first = scan_voc(list(folders.values()), _ordered_names(folder / "labelmap.txt", guard), guard)
    made = {name: Split(path, [path], "voc", folder, (), classes, first) for name, path in folders.items()}
    return layout_of("Roboflow VOC", made)


def find_voc_anywhere(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of XML files in any folders, each paired with the folder that has most images of the same names."""
    pairs = paired_folders(folder, ".xml", is_voc)
    if not pairs:
        return None
    order = _ordered_names(folder / "labelmap.txt", guard)
    classes, first = scan_voc([where for where, _ in pairs.values()], order, guard)
    made = {name: Split(where, [best], "voc", folder, (), classes, first) for name, (where, best) in pairs.items()}
    return layout_of("Pascal VOC, separate XML files", made)


def is_voc(file: Path) -> bool:
    """Whether the root element of an XML file is VOC's."""
    try:
        return file.is_file() and parse_xml(file.read_bytes()).tag == "annotation"
    except (OSError, ValueError):
        return False


def scan_voc(folders: list[Path], order: Sequence[str], guard: PathGuard) -> tuple[tuple[str, ...], int | None]:
    """Collect the classes of all files, and detect the index of the first pixel.

    Returns:
        class names, those of `order` first and the others sorted; and 0, 1, or None if no box starts in the first
        column or row.
    """
    names, lowest = set(), np.inf
    for file in (file for folder in folders for file in visible_files(folder, (".xml",))):
        try:
            objects = read_voc_file(file).objects if guard.status(str(file)) == "ok" else []
        except (OSError, ValueError):
            continue  # reported when the split is read
        names |= {one.name for one in objects}
        lowest = min([lowest, *(min(one.corners[:2]) for one in objects)])
    return (*order, *sorted(names - set(order))), 0 if lowest < 1 else 1 if lowest < 2 else None


def _ordered_names(labelmap: Path, guard: PathGuard) -> list[str]:
    """The classes in CVAT's labelmap.txt, with lines `name:color:parts:actions`, except `background`."""
    if not labelmap.is_file():
        return []
    lines = read_text(guard.check(labelmap)).splitlines()
    rows = [line for line in lines if line.strip() and not line.startswith("# label:")]
    names = [one_line(row.rsplit(":", 3)[0] if row.count(":") >= 3 else row.split(":")[0]) for row in rows]
    return [name for name in names if name != "background"]


def read_voc(split: Split, findings: Findings, config: DataConfig) -> RawAnnotations:
    """Read all XML files of a split. Ids of images and classes count from 1; images are sorted by name."""
    guard = PathGuard(split.folder or split.annotations, config.follow_symlinks)
    names, sizes, boxes = [], [], []
    for file in _files(split, findings):
        shown = file.relative_to(split.annotations).as_posix()
        if (status := guard.status(str(file))) != "ok":
            code = "DATA-PATH-ESCAPE" if status == "escape" else "DATA-XML"
            findings.add(code, "XML files that are missing or lead out of the data folder", [shown])
            continue
        try:
            content = read_voc_file(file)
        except (OSError, ValueError) as error:
            findings.add("DATA-XML", "XML files that cannot be read", [f"{shown}: {error}"])
            continue
        names.append(_image_name(content.file_name, file, split, findings))
        sizes.append(content.size)
        for one in content.objects:
            place = f"{file.name} {one.name} {len(boxes)}"
            boxes.append(NamedBox(len(names), one.name, one.corners, place, one.difficult))
    first = _first_pixel(split, len(boxes), findings, config)
    boxes = [box._replace(corners=(box.corners[0] - first, box.corners[1] - first, *box.corners[2:])) for box in boxes]
    return named_table(split, names, boxes, sizes)


def _first_pixel(split: Split, num_boxes: int, findings: Findings, config: DataConfig) -> int:
    """The index of the first pixel: from the settings, as detected in the data, or 1 as in VOC."""
    if config.voc_first_pixel != "auto":
        return config.voc_first_pixel
    if split.first_pixel is None and num_boxes:
        what = "no box touches the left or top edge, so it is unclear whether pixels count from 0 or 1; assuming 1"
        findings.add("DATA-VOC-ORIGIN", what, count=1)
    return 1 if split.first_pixel is None else split.first_pixel


def read_voc_file(file: Path) -> VocFile:
    """Read an XML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not valid XML, not VOC's, or an object has no name or no valid box.
    """
    root = parse_xml(file.read_bytes())
    objects = []
    for element in root.iter("object"):
        box = element.find("bndbox")
        if box is None:
            raise ValueError(f"object {len(objects) + 1} has no bndbox")
        x0, y0, x1, y1 = (float(box.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
        corners = x0, y0, x1, y1
        if not np.isfinite(corners).all():
            raise ValueError(f"object {len(objects) + 1} has corners {corners}")
        name = one_line(element.findtext("name") or "")
        if not name:
            raise ValueError(f"object {len(objects) + 1} has no name")
        objects.append(VocObject(name, corners, (element.findtext("difficult") or "0").strip() == "1"))
    if root.tag != "annotation" and not objects:
        raise ValueError(f"it starts with <{root.tag}> instead of Pascal VOC's <annotation>")
    sides = [float(root.findtext(f"size/{key}") or 0) for key in ("width", "height")]
    valid = all(0 < side < 2**31 and side % 1 == 0 for side in sides)
    size = (int(sides[0]), int(sides[1])) if valid else (0, 0)
    return VocFile((root.findtext("filename") or "").strip(), size, objects)


def parse_xml(content: bytes) -> ElementTree.Element:
    """Parse XML, refusing document type declarations: VOC has none, and a small file with one can fill the memory.

    Raises:
        ValueError: it is not well formed, or has a document type declaration.
    """

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type declaration, which is not allowed")

    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, LookupError, AssertionError) as error:
        raise ValueError(str(error)) from None


def _files(split: Split, findings: Findings) -> list[Path]:
    """All XML files of the folder, or those whose names are in the split's lists, one per line."""
    if not split.listing:
        return visible_files(split.annotations, (".xml",))
    folders = [file.parents[2] / FOLDERS[0][0] if split.by_year else split.annotations for file in split.listing]
    return [xml for listing, folder in zip(split.listing, folders, strict=True)
            for xml in _listed_files(listing, folder, findings)]  # fmt: skip


def _listed_files(listing: Path, folder: Path, findings: Findings) -> list[Path]:
    """The XML files in a folder whose names are in a list."""
    lines = listing.read_text("utf-8-sig", errors="surrogateescape").splitlines()
    names = [_listed(line.strip(), folder) for line in lines if line.strip()]
    unsafe = [name for name in names if not stays_inside(name)]
    findings.add("DATA-PATH-ESCAPE", f"names in {listing.name} that lead out of the folder", unsafe)
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in visible_files(folder, (".xml",))}
    return [files.get(name, folder / f"{name}.xml") for name in dict.fromkeys(names) if name not in unsafe]


def _listed(line: str, folder: Path) -> str:
    """The name in a line of a list: the first variant of the line for which there is an XML file.

    The variants are the whole line, and the line without quotes, without the last column (which VOC's lists of a class
    have), without an image suffix, and without folders.
    """
    columns = line.rsplit(maxsplit=1)
    names = [line, line.strip("\"'"), columns[0] if len(columns) == 2 else line]
    names += [name[: -len(PurePosixPath(name).suffix)] for name in names if _suffix(name) in IMAGE_SUFFIXES]
    names += [PurePosixPath(name.replace("\\", "/")).name for name in names]
    safe = (name for name in names if stays_inside(name))
    existing = (name for name in safe for suffix in (".xml", ".XML") if (folder / f"{name}{suffix}").is_file())
    return next(existing, names[0] if len(columns) == 1 or columns[1].lstrip("-") not in ("0", "1") else columns[0])


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _image_name(named: str, file: Path, split: Split, findings: Findings) -> str:
    """The image of an XML file: the one of the same name if it exists, or else `named`, the file's `<filename>`.

    A renamed or copied XML file often has an old `<filename>`, which may now be another image.
    """
    root, own = split.image_roots[0], file.relative_to(split.annotations).with_suffix("")
    folder = ""
    if split.by_year:
        year, _, *rest = own.parts
        folder = f"{year}/{FOLDERS[0][1]}/"
        own = Path(folder, *rest)
    suffixes = (*sorted(IMAGE_SUFFIXES), *map(str.upper, sorted(SUFFIXES)))
    candidates = (f"{own.as_posix()}{suffix}" for suffix in suffixes)
    same_name = next((name for name in candidates if (root / name).is_file()), "")
    named = PurePosixPath(named.replace("\\", "/")).name if "\0" not in named else ""
    named = f"{folder}{named}" if named else ""
    if same_name and named and (root / named).is_file() and PurePosixPath(named).stem != own.name:
        what = "XML files whose `<filename>` is another image; the file's own name is used"
        findings.add("DATA-VOC-NAME", what, [f"{file.name} says {named}"])
    return same_name or named or f"{own.as_posix()}.jpg"
