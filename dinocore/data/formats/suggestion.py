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
    """A tool or publisher whose own files are not read, and how they are recognised."""

    name: str  # with what is the tool's
    marks: set[str]  # keys of JSON, columns of a table in lower case, elements of XML in <>; a file's suffix or name
    how: str = ""  # to get a format that is read
    verb: str = "export"  # or convert, where no tool exports anything else

    @property
    def fix(self) -> str:
        """What to do."""
        how = f" ({self.how})" if self.how else ""
        return f"{self.verb} it {'as' if self.verb == 'export' else 'to'} COCO, YOLO or Pascal VOC{how}"


def _published(name: str, marks: set[str], how: str) -> Tool:
    """Files that nobody can export again; `how` names a converter, or what the rows of a CSV table are made of."""
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
TEXTS = {  # how text files begin, by what they are
    "four corners and a class": re.compile(rf"(imagesource:.*\s+gsd:.*\s+)?({NUMBER} ){{8}}[A-Za-z]\S* \d"),
    "frames and tracks": re.compile(rf"\d+,-?\d+(,{NUMBER}){{7,8}}\s*(\n|$)"),
    "bbGt": re.compile("% bbGt"),
    "a count and boxes": re.compile(r"\d+\s*\n\d \d+ \d+ \d+ \d+\s*(\n|$)"),
    "one line of boxes per image": re.compile(r"\S.*\.(?:jpe?g|png|bmp)( \d+,\d+,\d+,\d+,\d+)+\s", re.IGNORECASE),
}
JSON_LINES = (".jsonl", ".ndjson", ".manifest", ".odgt")
TABLES = (".csv", ".tsv")
HEAD = 2000  # letters of a text file that tell what it is
TRIED = 20  # files of each kind that are looked into to tell whose they are
MOST = 2000  # label files that are read to count classes


def suggest(folder: Path, annotations: Mapping[str, Path] | None = None) -> str:
    """A dataset.toml that names, for each split, the annotations and the images that go with them; or an empty text.

    Args:
        annotations: COCO files by split, where these are known; None: XML or text files are looked for.
    """
    if annotations:
        lines = ['format = "coco"']
        parts = {name: (file, _images_of(folder, name)) for name, file in annotations.items()}
    elif parts := _pairs(folder, ".xml", is_voc):
        lines = ['format = "voc"']
    elif (parts := _pairs(folder, ".txt", _may_be_yolo)) and (names := _names_of_classes(folder, parts)):
        lines = ['format = "yolo"', f"names = {json.dumps(names, ensure_ascii=False)}"]
    else:
        return ""
    for name, (labels, images) in parts.items():
        if images is None:
            return ""
        lines += [f"[{name}]", _line("annotations", labels, folder), _line("images", images, folder)]
    return f"\n{folder}/dataset.toml could start with\n" + "\n".join(f"  {line}" for line in lines)


def _pairs(folder: Path, suffix: str, is_format: Callable[[Path], bool]) -> dict[str, tuple[Path, Path | None]]:
    """Annotations and images of each split, if the names of folders tell, or else those of most files for training."""
    pairs = every_pair(folder, suffix, is_format)
    named = {name: pairs[name][0] for name in WORDS if len(pairs.get(name, ())) == 1}
    if "train" in named:
        return {**named}
    labels, images = _fullest(folder, suffix), _fullest(folder, *IMAGE_SUFFIXES)
    if labels is None or images is None or not is_format(visible_files(labels, (suffix,))[0]):
        return {}
    return {"train": _widened(labels, images, folder, suffix)}


def _images_of(folder: Path, split: str) -> Path | None:
    """The folder with most images of those whose path tells the split, or of all."""
    counts = Counter(file.parent for file in visible_files(folder, IMAGE_SUFFIXES))
    own = {place: n for place, n in counts.items() if split_in_path(place.relative_to(folder).parts) == split}
    return max(own or counts, key=lambda place: counts[place], default=None)


def _may_be_yolo(file: Path) -> bool:
    return bool(_count_classes([file])) or not file.stat().st_size


def foreign_files(folder: Path, guard: PathGuard) -> str:
    """Whose files lie in a folder, if they are a known tool's, with what to do; or an empty text."""
    texts = [
        visible_files(folder, suffixes)[:TRIED] for suffixes in ((".json", ".geojson"), JSON_LINES, (".xml",), TABLES)
    ]
    named = [sorted(folder.rglob(pattern))[:TRIED] for pattern in BY_NAME]
    plain = visible_files(folder, (".txt",))[:TRIED]
    for file in (file for files in (*texts, *named, plain) for file in files if guard.look(str(file)) == "ok"):
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
        if suffix in (".json", ".geojson"):
            return marks_of_json(json.loads(file.read_bytes()))
        if suffix == ".xml":
            root = parse_xml(file.read_bytes())
            return [{f"<{element.tag}>" for element in (root, *root)}]
        if suffix == ".txt":
            begin = read_text(file, strict=False)[:HEAD]
            return [{file.name, *(mark for mark, form in TEXTS.items() if form.match(begin))}]
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


def _names_of_classes(folder: Path, parts: Mapping[str, tuple[Path, Path | None]]) -> list[str]:
    """The classes of YOLO's label files, as lists of them or YAML files anywhere have them, or by their numbers.

    None where the files are not YOLO's, or where lists differ, so that a number has several meanings.
    """
    files = [file for labels, _ in parts.values() for file in visible_files(labels, (".txt",))]
    count = _count_classes([file for file in files if file.name not in CLASS_LISTS][:MOST])
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


def _count_classes(files: Sequence[Path]) -> int:
    """How many classes lines of YOLO's have, by their greatest number; 0 if they are none."""
    greatest = -1
    for file in files:
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
