"""Pascal VOC: an XML file per image. Corners count pixels from 1 and include the last one.

Source: the VOC development kit (http://host.robots.ox.ac.uk/pascal/VOC/). Others count from 0, and data in which any
corner is 0 are taken so. Where no box touches the left or top edge nobody can tell; that is said. An object marked
`difficult` is a crowd region to us: ignored in training.
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


class Bndbox(NamedTuple):
    """An object as the file has it."""

    name: str
    corners: tuple[float, float, float, float]  # xmin ymin xmax ymax
    difficult: bool


class Described(NamedTuple):
    """One XML file."""

    file_name: str
    size: tuple[int, int]  # 0, 0: not said
    objects: list[Bndbox]


def find_voc(folder: Path, guard: PathGuard) -> Layout | None:
    """VOC's own folders, or XML files beside images, in the folder itself or in `train/`, `valid/`, `test/`."""
    if inner := sorted(p for p in [*folder.glob("VOC20*"), *folder.glob("VOCdevkit/VOC20*")] if p.is_dir()):
        folder = inner[0] if len(inner) == 1 else folder
    for xml, images in FOLDERS:
        listed = xml and (folder / SETS).is_dir() and visible_files(folder / xml, (".xml",))  # in folders below it, too
        if (folder / images).is_dir() and (_has_xml(folder / xml) or listed) and (xml or is_voc(_first_xml(folder))):
            return _devkit(folder, folder / xml, folder / images, guard)
    if _has_xml(folder / "train") and is_voc(_first_xml(folder / "train")):
        return _beside(folder, guard)
    return None


def _has_xml(folder: Path) -> bool:
    """Whether XML files lie directly in a folder, hidden ones aside."""
    return bool(_xml_in(folder))


def _first_xml(folder: Path) -> Path:
    return min(_xml_in(folder))


def _xml_in(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if file.suffix.lower() == ".xml" and not is_hidden(file.name)]


def _devkit(folder: Path, xml: Path, images: Path, guard: PathGuard) -> Layout | None:
    classes, first = overview([xml], _ordered_names(folder / "labelmap.txt", guard), guard)
    lists = {file.stem.lower(): file for file in sorted((folder / SETS).glob("*.txt"))}
    named = {name: next((lists[word] for word in words if word in lists), None) for name, words in WORDS.items()}
    made = {
        name: Split(xml, [images], "voc", folder, (guard.check(file),), classes, first)
        for name, file in named.items() if file is not None
    }  # fmt: skip
    return layout_of("Pascal VOC", made or {"train": Split(xml, [images], "voc", folder, (), classes, first)})


def _beside(folder: Path, guard: PathGuard) -> Layout | None:
    there = {name: [folder / word for word in words if (folder / word).is_dir()] for name, words in WORDS.items()}
    folders = {name: found[0] for name, found in there.items() if found}
    classes, first = overview(list(folders.values()), _ordered_names(folder / "labelmap.txt", guard), guard)
    made = {name: Split(path, [path], "voc", folder, (), classes, first) for name, path in folders.items()}
    return layout_of("Roboflow VOC", made)


def find_voc_anywhere(folder: Path, guard: PathGuard) -> Layout | None:
    """XML files in folders of any name, each paired with the folder that has most images of the same names."""
    pairs = paired_folders(folder, ".xml", is_voc)
    if not pairs:
        return None
    order = _ordered_names(folder / "labelmap.txt", guard)
    classes, first = overview([where for where, _ in pairs.values()], order, guard)
    made = {name: Split(where, [best], "voc", folder, (), classes, first) for name, (where, best) in pairs.items()}
    return layout_of("Pascal VOC, separate XML files", made)


def is_voc(file: Path) -> bool:
    """Whether the top element of an XML file is VOC's."""
    try:
        return file.is_file() and parse_xml(file.read_bytes()).tag == "annotation"
    except (OSError, ValueError):
        return False


def overview(folders: list[Path], order: Sequence[str], guard: PathGuard) -> tuple[tuple[str, ...], int | None]:
    """The classes of all files, those of `order` first and the others by name; and how the first pixel is counted.

    Returns:
        names, and 0, 1, or None where no box begins in the first column or row.
    """
    names, least = set(), np.inf
    for file in (file for folder in folders for file in visible_files(folder, (".xml",))):
        try:
            objects = describe(file).objects if guard.look(str(file)) == "ok" else []
        except (OSError, ValueError):
            continue  # said when the split is read
        names |= {found.name for found in objects}
        least = min([least, *(min(found.corners[:2]) for found in objects)])
    return (*order, *sorted(names - set(order))), 0 if least < 1 else 1 if least < 2 else None


def _ordered_names(labelmap: Path, guard: PathGuard) -> list[str]:
    """CVAT's labelmap.txt, `name:color:parts:actions` a line, or none; `background` is no class."""
    if not labelmap.is_file():
        return []
    lines = read_text(guard.check(labelmap)).splitlines()
    rows = [line for line in lines if line.strip() and not line.startswith("# label:")]
    names = [one_line(row.rsplit(":", 3)[0] if row.count(":") >= 3 else row.split(":")[0]) for row in rows]
    return [name for name in names if name != "background"]


def read_voc(split: Split, findings: Findings, config: DataConfig) -> RawAnnotations:
    """Every XML file of the split; images are numbered from 1 by name, classes from 1."""
    guard = PathGuard(split.folder or split.annotations, config.follow_symlinks)
    names, sizes, boxes = [], [], []
    for file in _files(split, findings):
        if (looked := guard.look(str(file))) != "ok":
            code = "DATA-PATH-ESCAPE" if looked == "escape" else "DATA-XML"
            findings.add(code, "XML files that are missing or lead out of the data folder", [file.name])
            continue
        try:
            described = describe(file)
        except (OSError, ValueError) as error:
            findings.add("DATA-XML", "XML files that cannot be read", [f"{file.name}: {error}"])
            continue
        names.append(_image(described.file_name, file, split, findings))
        sizes.append(described.size)
        for found in described.objects:
            place = f"{file.name} {found.name} {len(boxes)}"
            boxes.append(NamedBox(len(names), found.name, found.corners, place, found.difficult))
    first = _first_pixel(split, len(boxes), findings, config)
    boxes = [box._replace(corners=(box.corners[0] - first, box.corners[1] - first, *box.corners[2:])) for box in boxes]
    return named_table(split, names, boxes, sizes)


def _first_pixel(split: Split, num_boxes: int, findings: Findings, config: DataConfig) -> int:
    """How corners count: as asked, as the data show, or as VOC does."""
    if config.voc_first_pixel != "auto":
        return config.voc_first_pixel
    if split.first_pixel is None and num_boxes:
        what = "no box touches the left or top edge, so it is unclear whether pixels count from 0 or 1; assuming 1"
        findings.add("DATA-VOC-ORIGIN", what, count=1)
    return 1 if split.first_pixel is None else split.first_pixel


def describe(file: Path) -> Described:
    """
    Raises:
        OSError, ValueError: the file cannot be read, or says nothing that we understand.
    """
    root = parse_xml(file.read_bytes())
    objects = []
    for found in root.iter("object"):
        box = found.find("bndbox")
        if box is None:
            raise ValueError(f"object {len(objects) + 1} has no bndbox")
        x0, y0, x1, y1 = (float(box.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
        corners = x0, y0, x1, y1
        if not np.isfinite(corners).all():
            raise ValueError(f"object {len(objects) + 1} has corners {corners}")
        name = one_line(found.findtext("name") or "")
        if not name:
            raise ValueError(f"object {len(objects) + 1} has no name")
        objects.append(Bndbox(name, corners, (found.findtext("difficult") or "0").strip() == "1"))
    if root.tag != "annotation" and not objects:
        raise ValueError(f"it starts with <{root.tag}> instead of Pascal VOC's <annotation>")
    sides = [float(root.findtext(f"size/{key}") or 0) for key in ("width", "height")]
    good = all(0 < side < 2**31 and side % 1 == 0 for side in sides)
    return Described(
        (root.findtext("filename") or "").strip(), (int(sides[0]), int(sides[1])) if good else (0, 0), objects
    )


def parse_xml(content: bytes) -> ElementTree.Element:
    """XML without document type declarations, which VOC doesn't use and with which a small file can fill the memory.

    Raises:
        ValueError: it is not well formed, or declares something.
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
    """All of the folder, or those that a list names, one a line."""
    if not split.listing:
        return visible_files(split.annotations, (".xml",))
    listing = split.listing[0]
    lines = listing.read_text("utf-8-sig", errors="surrogateescape").splitlines()
    names = [_listed(line.strip(), split.annotations) for line in lines if line.strip()]
    unsafe = [name for name in names if not stays_inside(name)]
    findings.add("DATA-PATH-ESCAPE", f"names in {listing.name} that lead out of the folder", unsafe)
    files = {path.relative_to(split.annotations).with_suffix("").as_posix(): path
             for path in visible_files(split.annotations, (".xml",))}  # fmt: skip
    return [files.get(name, split.annotations / f"{name}.xml") for name in dict.fromkeys(names) if name not in unsafe]


def _listed(line: str, folder: Path) -> str:
    """A name by its line in a list: the whole line, if there is such a file, else without quotes, a last column (VOC's
    lists of a class have one), an image's suffix, or folders of another machine.
    """
    columns = line.rsplit(maxsplit=1)
    forms = [line, line.strip("\"'"), columns[0] if len(columns) == 2 else line]
    forms += [form[: -len(PurePosixPath(form).suffix)] for form in forms if _suffix(form) in IMAGE_SUFFIXES]
    forms += [PurePosixPath(form.replace("\\", "/")).name for form in forms]
    safe = (form for form in forms if stays_inside(form))
    there = (form for form in safe for end in (".xml", ".XML") if (folder / f"{form}{end}").is_file())
    return next(there, forms[0] if len(columns) == 1 or columns[1].lstrip("-") not in ("0", "1") else columns[0])


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _image(named: str, file: Path, split: Split, findings: Findings) -> str:
    """The image's name: the XML file's own with an image's suffix, if that is there, or else the one it says.

    A file that was renamed or copied often says an old name, which may be another image by now.
    """
    root, own = split.image_roots[0], file.relative_to(split.annotations).with_suffix("")
    there = (f"{own.as_posix()}{suffix}" for suffix in (*sorted(IMAGE_SUFFIXES), *map(str.upper, sorted(SUFFIXES))))
    stem = next((name for name in there if (root / name).is_file()), "")
    named = PurePosixPath(named.replace("\\", "/")).name if "\0" not in named else ""
    if stem and named and (root / named).is_file() and PurePosixPath(named).stem != own.name:
        what = "XML files whose `<filename>` is another image; the file's own name is used"
        findings.add("DATA-VOC-NAME", what, [f"{file.name} says {named}"])
    return stem or named or f"{own.as_posix()}.jpg"
