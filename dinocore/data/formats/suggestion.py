"""Hints for unrecognised folders: the tool the files come from, and a `dataset.toml` that works as printed."""

import json
import os
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DataError
from ..images import IMAGE_SUFFIXES
from ..split import PathGuard, read_text, visible_files
from .data_yaml import CLASS_LISTS, class_lists, class_names, listed_classes, read_data_yaml
from .voc import is_voc, parse_xml


class Tool(NamedTuple):
    """A tool whose own files are not read, and how they are recognised."""

    name: str  # with what is the tool's
    marks: set[str]  # keys of JSON, columns of a table in lower case, elements of XML in <>; a file's suffix or name
    how: str = ""  # to get a format that is read

    @property
    def fix(self) -> str:
        """What to export instead."""
        return "export it as COCO, YOLO or Pascal VOC" + (f" ({self.how})" if self.how else "")


TOOLS = (
    Tool("labelme's", {"shapes", "imagePath"}, "labelme2coco.py and labelme2voc.py among its examples"),
    Tool("Supervisely's", {"objects", "size"}),
    Tool("Label Studio's", {"data", "annotations"}),
    Tool("Label Studio's", {"id", "annotator"}),  # JSON-MIN, CSV
    Tool("VGG Image Annotator's", {"_via_img_metadata"}),
    Tool("VGG Image Annotator's", {"regions", "file_attributes"}),
    Tool("VGG Image Annotator's", {"region_shape_attributes", "region_attributes"}),  # CSV
    Tool("VGG Image Annotator's", {"project", "metadata", "attribute"}),  # version 3
    Tool("Datumaro's", {"items", "categories"}, "datum convert -if datumaro -i . -f coco -o ../coco -- --save-media"),
    Tool("CreateML's", {"image", "annotations"}),
    Tool("FiftyOne's", {"samples"}, "dataset.export with fo.types.COCODetectionDataset"),
    Tool("BDD100K's", {"labels", "name"}, "python -m bdd100k.label.to_coco -m det"),
    Tool("V7 Darwin's", {"item", "annotations"}),
    Tool("Labelbox's", {"data_row", "projects"}),
    Tool("SageMaker Ground Truth's", {"source-ref"}),
    Tool("Hugging Face's", {"file_name", "objects"}),
    Tool("SuperAnnotate's", {"metadata", "instances"}),
    Tool("VoTT's", {"asset", "regions"}, "its CSV is read, too"),
    Tool("Cityscapes'", {"imgHeight", "objects"}),
    Tool("CrowdHuman's", {"ID", "gtboxes"}),
    Tool("MOT Challenge's", {"seqinfo.ini"}),
    *(Tool("WIDER FACE's", {f"wider_face_{split}_bbx_gt.txt"}) for split in ("train", "val")),
    Tool("CVAT's", {"<annotations>", "<version>"}, "in CVAT: Export dataset, COCO 1.0"),
    Tool("dlib's", {"<dataset>", "<images>"}),
    *(Tool("TensorFlow's TFRecord", {suffix}) for suffix in (".tfrecord", ".tfrecords", ".tfrec", ".record")),
    Tool("a table of Apache Parquet's", {".parquet"}),
)
BY_NAME = (
    *("*.tfrec*", "*.record", "*.record-*", "*.parquet"),  # a-00000-of-00010 may follow the suffix
    *("seqinfo.ini", "wider_face_*_bbx_gt.txt"),
)
JSON_LINES = (".jsonl", ".ndjson", ".manifest", ".odgt")
TABLES = (".csv", ".tsv")
TRIED = 20  # files of each kind that are looked into to tell whose they are
MOST = 2000  # label files that are read to count classes


def suggest(folder: Path, kind: str = "", annotations: Path | None = None) -> str:
    """A dataset.toml that names the folder with most images and the annotations that go with it; or an empty text.

    Args:
        kind, annotations: the format and its file, where they are known.
    """
    images = _fullest(folder, *IMAGE_SUFFIXES)
    if images is None:
        return ""
    xml, texts = _fullest(folder, ".xml"), _fullest(folder, ".txt")
    if kind:
        lines = [
            f'format = "{kind}"',
            "[train]",
            _line("annotations", annotations, folder),
            _line("images", images, folder),
        ]
    elif xml and is_voc(visible_files(xml, (".xml",))[0]):
        xml, images = _widened(xml, images, folder, ".xml")
        lines = ['format = "voc"', "[train]", _line("annotations", xml, folder), _line("images", images, folder)]
    elif texts and (names := _names_of_classes(folder, texts)):
        texts, images = _widened(texts, images, folder, ".txt")
        lines = ['format = "yolo"', f"names = {json.dumps(names, ensure_ascii=False)}", "[train]"]
        lines += [_line("images", images, folder), _line("annotations", texts, folder)]
    else:
        return ""
    return f"\n{folder}/dataset.toml could start with\n" + "\n".join(f"  {line}" for line in lines)


def foreign_files(folder: Path, guard: PathGuard) -> str:
    """Whose files lie in a folder, if they are a known tool's, with what to do; or an empty text."""
    texts = [visible_files(folder, suffixes)[:TRIED] for suffixes in ((".json",), JSON_LINES, (".xml",), TABLES)]
    named = [sorted(folder.rglob(pattern))[:TRIED] for pattern in BY_NAME]
    for file in (file for files in (*texts, *named) for file in files if guard.look(str(file)) == "ok"):
        if tool := tool_of(_marks(file)):
            return f"; {file.relative_to(folder).as_posix()} looks like {tool.name}: {tool.fix}"
    return ""


def tool_of(marks: list[set[str]]) -> Tool | None:
    """The tool that writes files with one of these sets of marks."""
    return next((tool for tool in TOOLS for found in marks if tool.marks <= found), None)


def marks_of_json(content: Any) -> list[set[str]]:
    """The keys of an object and of what it holds first, or of the first one of a list."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return []
    inner = next(iter(first.values()), None)
    return [set(first), set(inner) if isinstance(inner, dict) else set()]


def _marks(file: Path) -> list[set[str]]:
    """What a file may be recognised by; nothing of a file that cannot be read."""
    suffix = file.suffix.lower().partition("-")[0]
    try:
        if suffix == ".json":
            return marks_of_json(json.loads(file.read_bytes()))
        if suffix == ".xml":
            root = parse_xml(file.read_bytes())
            return [{f"<{element.tag}>" for element in (root, *root)}]
        if suffix not in (*JSON_LINES, *TABLES):
            return [{suffix, file.name}]
        first = next(iter(read_text(file, strict=False).splitlines()), "")
        if suffix in JSON_LINES:
            return marks_of_json(json.loads(first))
        return [set(first.lower().replace('"', "").split(","))]
    except (OSError, ValueError, RecursionError, DataError):
        return []


def _widened(labels: Path, images: Path, folder: Path, suffix: str) -> tuple[Path, Path]:
    """The two folders; where labels are beside their images, in these and perhaps in others, the one above all."""
    if labels != images:
        return labels, images
    both = _folders_of(folder, IMAGE_SUFFIXES) & _folders_of(folder, (suffix,))
    above = Path(os.path.commonpath(both))
    return above, above


def _folders_of(folder: Path, suffixes: Container[str]) -> set[Path]:
    return {file.parent for file in visible_files(folder, suffixes)}


def _fullest(folder: Path, *suffixes: str) -> Path | None:
    counts = Counter(file.parent for file in visible_files(folder, suffixes))
    return counts.most_common(1)[0][0] if counts else None


def _names_of_classes(folder: Path, labels: Path) -> list[str]:
    """The classes of YOLO's label files, as lists of them or YAML files anywhere have them, or by their numbers.

    None where the files are not YOLO's, or where lists differ, so that a number has several meanings.
    """
    count = _count_classes(labels)
    known = {listed_classes(file) for file in class_lists(folder) if file.is_file() and not file.is_symlink()}
    known |= set(_names_in_yaml(folder))
    if not count or len(known) > 1:
        return []
    names = next(iter(known), ())
    return [*names] if len(names) >= count else [f"class {n}" for n in range(count)]


def _names_in_yaml(folder: Path) -> Iterator[tuple[str, ...]]:
    """The classes that YOLO's YAML files have, in whatever folder they lie."""
    for file in visible_files(folder, (".yaml", ".yml"))[:TRIED]:
        try:
            if file.is_file() and not file.is_symlink():
                yield class_names(read_data_yaml(file), file)
        except DataError:
            continue


def _count_classes(folder: Path) -> int:
    """How many classes lines of YOLO's have, by their greatest number; 0 if they are none."""
    greatest = -1
    for file in sorted(file for file in folder.glob("*.txt") if file.name not in CLASS_LISTS)[:MOST]:
        for line in file.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) >= 5 and words[0].isdigit() and all(map(_is_share, words[1:])):
                greatest = max(greatest, int(words[0]))
            elif words:
                return 0
    return greatest + 1 if greatest < 1000 else 0


def _is_share(word: str) -> bool:
    """Whether a word is a number that YOLO writes: a share, a confidence, or 2 for a keypoint that is seen."""
    try:
        return abs(float(word)) <= 2
    except ValueError:
        return False


def _line(key: str, path: Path | None, folder: Path) -> str:
    return f"{key} = {json.dumps('' if path is None else path.relative_to(folder).as_posix(), ensure_ascii=False)}"
