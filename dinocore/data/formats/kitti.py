"""KITTI labels, a text file per image: `type truncated occluded alpha left top right bottom` and seven 3D numbers.

Source: the development kit of the object benchmark (https://www.cvlibs.net/datasets/kitti/eval_object.php). Pixels are
counted from 0. `DontCare` marks regions that were not annotated; they are skipped, and their number is reported.
"""

from pathlib import Path

from ..findings import Findings
from ..split import (
    Layout,
    NamedBox,
    PathGuard,
    RawAnnotations,
    Split,
    layout_of,
    named_table,
    one_line,
    read_text,
    visible_files,
)
from .pairs import names_on_disk, paired_folders

NUM_COLUMNS = (15, 16)  # 16 with a score, as in files of detections
IGNORED = "DontCare"


def find_kitti(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of `training/image_2/` and `training/label_2/`, or of any two such folders."""
    return kitti_layout("KITTI", paired_folders(folder, ".txt", is_kitti), folder)


def kitti_layout(kind: str, pairs: dict[str, tuple[Path, Path]], folder: Path) -> Layout | None:
    """The layout of given folders of labels and of images, by split."""
    names = {
        one_line(words[0])
        for labels, _ in pairs.values() for file in visible_files(labels, (".txt",)) for _, words in _lines(file)
    } - {IGNORED}  # fmt: skip
    made = {
        name: Split(labels, [images], "kitti", folder, (), tuple(sorted(names)))
        for name, (labels, images) in pairs.items()
    }
    return layout_of(kind, made)


def read_kitti(split: Split, findings: Findings) -> RawAnnotations:
    """Read all label files of a split; each belongs to the image of the same name. Image ids count from 1, by name."""
    files = visible_files(split.annotations, (".txt",))
    boxes, wrong, ignored = [], [], 0
    for number, file in enumerate(files, start=1):
        for line, words in _lines(file):
            place = f"{file.name} line {line}"
            if not _is_row(words):
                wrong.append(place)
            elif words[0] == IGNORED:
                ignored += 1
            else:
                left, top, right, bottom = map(float, words[4:8])
                boxes.append(NamedBox(number, one_line(words[0]), (left, top, right, bottom), place))
    findings.add("DATA-LABEL-LINE", "lines that are not a type and 14 or 15 numbers", wrong)
    findings.add("DATA-REGION-IGNORED", f"{ignored} `{IGNORED}` regions skipped", count=ignored)
    names = [file.relative_to(split.annotations).with_suffix("").as_posix() for file in files]
    return named_table(split, names_on_disk(names, split.image_roots), boxes)


def _lines(file: Path) -> list[tuple[int, list[str]]]:
    rows = enumerate(read_text(file).splitlines(), start=1)
    return [(number, line.split()) for number, line in rows if line.strip()]


def is_kitti(file: Path) -> bool:
    """Whether the first line of a file has KITTI's columns."""
    rows = _lines(file)
    return bool(rows) and _is_row(rows[0][1])


def _is_row(words: list[str]) -> bool:
    try:
        return len(words) in NUM_COLUMNS and not words[0][0].isdigit() and all(float(w) == float(w) for w in words[1:])
    except ValueError:
        return False
