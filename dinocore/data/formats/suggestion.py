"""Hints for unrecognised folders: the tool the files come from, and a `dataset.toml` that works as printed."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DataError
from ..images import IMAGE_SUFFIXES
from ..split import WORDS, PathGuard, read_text, split_in_path, visible_files
from .data_yaml import CLASS_LISTS, class_lists, class_names, listed_classes, read_data_yaml
from .pairs import every_pair
from .voc import is_voc, parse_xml


class Tool(NamedTuple):
    """A tool or publisher whose own format is not supported, and how to recognize it."""

    name: str  # in the possessive, or the name of the format
    marks: set[str]  # JSON keys, columns of a table in lower case, XML elements in <>; or a file's suffix or name
    how: str = ""  # how to get a supported format
    verb: str = "export"  # or "convert" if no tool can export it in another format

    @property
    def fix(self) -> str:
        """What to do, for error messages."""
        how = f" ({self.how})" if self.how else ""
        return f"{self.verb} it {'as' if self.verb == 'export' else 'to'} COCO, YOLO or Pascal VOC{how}"


def _published(name: str, marks: set[str], how: str) -> Tool:
    """A published format, which cannot be exported again; `how` names a converter, or how to write a CSV table."""
    return Tool(name, marks, how, "convert")


TABLE = "or to a CSV table filename,x,y,w,h,class: "
CORNERS = "or to a CSV table filename,xmin,ymin,xmax,ymax,class: "
MMDET = "MMDetection's tools/dataset_converters/{}.py writes COCO"
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
    Tool("V7 Darwin's", {"item", "annotations"}),
    Tool("Labelbox's", {"data_row", "projects"}),
    Tool("Labelbox's", {"Labeled Data", "Label"}),  # before 2023
    Tool("SuperAnnotate's", {"metadata", "instances"}),
    Tool("VoTT's", {"asset", "regions"}, "its CSV is read, too"),
    Tool("CVAT's", {"<annotations>", "<version>"}, "in CVAT: Export dataset, COCO 1.0"),
    Tool("Roboflow's YOLO Darknet TXT", {"one line of boxes per image"}),
    Tool("Roboflow's PaliGemma JSONL", {"image", "prefix", "suffix"}),
    _published("BDD100K's", {"labels", "name"}, "python -m bdd100k.label.to_coco -m det"),
    _published("BDD100K's", {"frames", "name"}, "python -m bdd100k.label.to_coco -m det, with the labels det_20"),
    _published("SageMaker Ground Truth's", {"source-ref"}, TABLE + "`annotations` have left, top, width, height"),
    _published("Hugging Face's", {"file_name", "objects"}, TABLE + "usually, `bbox` is x, y, width, height"),
    _published("Cityscapes'", {"imgHeight", "objects"}, MMDET.format("cityscapes")),
    _published("CrowdHuman's", {"ID", "gtboxes"}, MMDET.format("crowdhuman2coco")),
    _published("MOT Challenge's", {"seqinfo.ini"}, MMDET.format("mot2coco")),
    _published("a tracking benchmark's", {"frames and tracks"}, TABLE + "lines start with frame,track,x,y,w,h"),
    *(
        _published("WIDER FACE's", {f"wider_face_{split}_bbx_gt.txt"}, TABLE + "lines start with x y w h")
        for split in ("train", "val")
    ),
    _published("DOTA's", {"four corners and a class"}, "DOTA_devkit's DOTA2COCO.py"),
    _published("ExDark's", {"bbGt"}, TABLE + "lines start with class x y w h"),
    _published("WiderPerson's", {"a count and boxes"}, CORNERS + "lines are class x1 y1 x2 y2"),
    _published("xView's", {"type", "features"}, CORNERS + "`bounds_imcoords` has the corners, `type_id` the class"),
    _published("a table of run lengths", {"encodedpixels"}, CORNERS + "the extent of each mask is its box"),
    _published("dlib's", {"<dataset>", "<images>"}, TABLE + "`box` has left, top, width, height"),
    *(
        _published("TensorFlow's TFRecord", {suffix}, CORNERS + "image/object/bbox/xmin and the like, as fractions")
        for suffix in (".tfrecord", ".tfrecords", ".tfrec", ".record")
    ),
    _published("a table of Apache Parquet's", {".parquet"}, "or to a CSV table, and its images to files"),
)
BY_NAME = (
    *("*.tfrec*", "*.record", "*.record-*", "*.parquet"),  # a-00000-of-00010 may follow the suffix
    *("seqinfo.ini", "wider_face_*_bbx_gt.txt"),
)
NUMBER = r"-?\d+(?:\.\d+)?"
# how text files of various kinds start
TEXTS = {
    "four corners and a class": re.compile(rf"(imagesource:.*\s+gsd:.*\s+)?({NUMBER} ){{8}}[A-Za-z]\S* \d"),
    "frames and tracks": re.compile(rf"\d+,-?\d+(,{NUMBER}){{7,8}}\s*(\n|$)"),
    "bbGt": re.compile("% bbGt"),
    "a count and boxes": re.compile(r"\d+\s*\n\d \d+ \d+ \d+ \d+\s*(\n|$)"),
    "one line of boxes per image": re.compile(r"\S.*\.(?:jpe?g|png|bmp)( \d+,\d+,\d+,\d+,\d+)+\s", re.IGNORECASE),
}
JSON_LINES = (".jsonl", ".ndjson", ".manifest", ".odgt")
TABLES = (".csv", ".tsv")
HEAD_LENGTH = 2000  # characters at the start of a text file that are matched with TEXTS
MAX_PROBED_FILES = 20  # files of each kind that are opened to recognize the tool
MAX_LABEL_FILES = 2000  # label files that are read to count classes


def suggest(folder: Path, annotations: Mapping[str, Path] | None = None) -> str:
    """A dataset.toml with the annotations and the images of each split; or an empty text.

    Args:
        annotations: COCO files by split; None: search for XML or text files.
    """
    if annotations:
        lines = ['format = "coco"']
        parts = {name: (file, _images_of(folder, name)) for name, file in annotations.items()}
    elif parts := _pairs(folder, ".xml", is_voc):
        lines = ['format = "voc"']
    elif (parts := _pairs(folder, ".txt", _may_be_yolo)) and (names := _class_names(folder, parts)):
        lines = ['format = "yolo"', f"names = {json.dumps(names, ensure_ascii=False)}"]
    else:
        return ""
    for name, (labels, images) in parts.items():
        if images is None:
            return ""
        lines += [f"[{name}]", _toml_line("annotations", labels, folder), _toml_line("images", images, folder)]
    return f"\n{folder}/dataset.toml could start with\n" + "\n".join(f"  {line}" for line in lines)


def _pairs(folder: Path, suffix: str, is_format: Callable[[Path], bool]) -> dict[str, tuple[Path, Path | None]]:
    """The folders of annotations and images of each split; if no name contains train, those with most files."""
    pairs = every_pair(folder, suffix, is_format)
    named = {name: pairs[name][0] for name in WORDS if len(pairs.get(name, ())) == 1}
    if "train" in named:
        return {**named}
    labels, images = _folder_with_most(folder, suffix), _folder_with_most(folder, *IMAGE_SUFFIXES)
    if labels is None or images is None or not is_format(visible_files(labels, (suffix,))[0]):
        return {}
    return {"train": _with_common_parent(labels, images, folder, suffix)}


def _images_of(folder: Path, split: str) -> Path | None:
    """The folder with most images among those whose path contains the split, or among all if there are none."""
    counts = Counter(file.parent for file in visible_files(folder, IMAGE_SUFFIXES))
    own = {place: n for place, n in counts.items() if split_in_path(place.relative_to(folder).parts) == split}
    return max(own or counts, key=lambda place: counts[place], default=None)


def _may_be_yolo(file: Path) -> bool:
    return bool(_count_classes([file])) or not file.stat().st_size


def foreign_files(folder: Path, guard: PathGuard) -> str:
    """A message about the first file that an unsupported tool wrote, with what to do; or an empty text."""
    texts = [
        visible_files(folder, suffixes)[:MAX_PROBED_FILES]
        for suffixes in ((".json", ".geojson"), JSON_LINES, (".xml",), TABLES)
    ]
    named = [sorted(folder.rglob(pattern))[:MAX_PROBED_FILES] for pattern in BY_NAME]
    plain = visible_files(folder, (".txt",))[:MAX_PROBED_FILES]
    for file in (file for files in (*texts, *named, plain) for file in files if guard.status(str(file)) == "ok"):
        if tool := tool_of(_marks(file)):
            return f"; {file.relative_to(folder).as_posix()} looks like {tool.name}: {tool.fix}"
    return ""


def tool_of(marks: list[set[str]]) -> Tool | None:
    """The tool whose marks are all in one of the sets, if any."""
    return next((tool for tool in TOOLS for found in marks if tool.marks <= found), None)


def marks_of_json(content: Any) -> list[set[str]]:
    """The keys of a JSON object and of its first value; for a list, of its first element."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return []
    inner = next(iter(first.values()), None)
    return [set(first), set(inner) if isinstance(inner, dict) else set()]


def _marks(file: Path) -> list[set[str]]:
    """The marks by which a file may be recognized; empty if it cannot be read."""
    suffix = file.suffix.lower().partition("-")[0]
    try:
        if suffix in (".json", ".geojson"):
            return marks_of_json(json.loads(file.read_bytes()))
        if suffix == ".xml":
            root = parse_xml(file.read_bytes())
            return [{f"<{element.tag}>" for element in (root, *root)}]
        if suffix == ".txt":
            head = read_text(file, strict=False)[:HEAD_LENGTH]
            return [{file.name, *(mark for mark, pattern in TEXTS.items() if pattern.match(head))}]
        if suffix not in (*JSON_LINES, *TABLES):
            return [{suffix, file.name}]
        first = next(iter(read_text(file, strict=False).splitlines()), "")
        if suffix in JSON_LINES:
            return marks_of_json(json.loads(first))
        return [set(first.lower().replace('"', "").split(","))]
    except (OSError, ValueError, RecursionError, DataError):
        return []


def _with_common_parent(labels: Path, images: Path, folder: Path, suffix: str) -> tuple[Path, Path]:
    """The two folders; if labels are beside their images, the common parent of all folders with both, twice."""
    if labels != images:
        return labels, images
    both = _folders_of(folder, IMAGE_SUFFIXES) & _folders_of(folder, (suffix,))
    parent = Path(os.path.commonpath(both))
    return parent, parent


def _folders_of(folder: Path, suffixes: Container[str]) -> set[Path]:
    return {file.parent for file in visible_files(folder, suffixes)}


def _folder_with_most(folder: Path, *suffixes: str) -> Path | None:
    counts = Counter(file.parent for file in visible_files(folder, suffixes))
    return counts.most_common(1)[0][0] if counts else None


def _class_names(folder: Path, parts: Mapping[str, tuple[Path, Path | None]]) -> list[str]:
    """Class names for YOLO label files, from a list of classes or a YAML file in the folder; or `class 0`, `class 1` ….

    Empty if the files are not YOLO's, or if there are several different lists.
    """
    files = [file for labels, _ in parts.values() for file in visible_files(labels, (".txt",))]
    count = _count_classes([file for file in files if file.name not in CLASS_LISTS][:MAX_LABEL_FILES])
    known = {listed_classes(file) for file in class_lists(folder) if file.is_file() and not file.is_symlink()}
    known |= set(_names_in_yaml(folder))
    if not count or len(known) > 1:
        return []
    names = next(iter(known), ())
    return [*names] if len(names) >= count else [f"class {n}" for n in range(count)]


def _names_in_yaml(folder: Path) -> Iterator[tuple[str, ...]]:
    """The class names in each of YOLO's YAML files in the folder and its subfolders."""
    for file in visible_files(folder, (".yaml", ".yml"))[:MAX_PROBED_FILES]:
        try:
            if file.is_file() and not file.is_symlink():
                yield class_names(read_data_yaml(file), file)
        except DataError:
            continue


def _count_classes(files: Sequence[Path]) -> int:
    """The number of classes in YOLO label files, by the largest class number; 0 if they are not YOLO's."""
    largest = -1
    for file in files:
        for line in file.read_text(errors="replace").splitlines():
            columns = line.split()
            if len(columns) >= 5 and columns[0].isdigit() and all(map(_is_yolo_number, columns[1:])):
                largest = max(largest, int(columns[0]))
            elif columns:
                return 0
    return largest + 1 if largest < 1000 else 0


def _is_yolo_number(word: str) -> bool:
    """Whether a word is a number that YOLO writes: a fraction, a confidence, or 2 for a visible keypoint."""
    try:
        return abs(float(word)) <= 2
    except ValueError:
        return False


def _toml_line(key: str, path: Path | None, folder: Path) -> str:
    return f"{key} = {json.dumps('' if path is None else path.relative_to(folder).as_posix(), ensure_ascii=False)}"
