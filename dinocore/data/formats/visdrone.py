"""VisDrone labels, a text file per image: `left,top,width,height,score,category,truncation,occlusion` in pixels.

Source: the toolkit of the challenge (https://github.com/VisDrone/VisDrone2018-DET-toolkit). Category 0 marks regions
that were not annotated, and a score of 0 objects that are not evaluated (most of category 11, others). Both are
skipped, as in the toolkit.
"""

from pathlib import Path

from ..findings import Findings
from ..split import Layout, NamedBox, PathGuard, RawAnnotations, Split, layout_of, named_table, read_text, visible_files
from .pairs import names_on_disk, paired_folders

# categories 1 to 11
NAMES = ("pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
         "others")  # fmt: skip


def find_visdrone(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of `VisDrone2019-DET-train/images/` and `…/annotations/`, or of any two such folders."""
    return visdrone_layout("VisDrone", paired_folders(folder, ".txt", is_visdrone), folder)


def visdrone_layout(kind: str, pairs: dict[str, tuple[Path, Path]], folder: Path) -> Layout | None:
    """The layout of given folders of labels and of images, by split."""
    classes = NAMES[:-1]
    made = {name: Split(labels, [images], "visdrone", folder, (), classes) for name, (labels, images) in pairs.items()}
    return layout_of(kind, made)


def read_visdrone(split: Split, findings: Findings) -> RawAnnotations:
    """Read all label files of a split; each belongs to the image of the same name. Image ids count from 1, by name."""
    files = visible_files(split.annotations, (".txt",))
    boxes, wrong, ignored = [], [], 0
    for number, file in enumerate(files, start=1):
        for line, text in enumerate(read_text(file).splitlines(), start=1):
            if not text.strip():
                continue
            row, place = _row(text), f"{file.name} line {line}"
            if row is None or not 0 <= row[5] <= len(NAMES):
                wrong.append(place)
            elif row[4] == 0 or row[5] in (0, len(NAMES)):
                ignored += 1
            else:
                x, y, width, height = row[:4]
                boxes.append(NamedBox(number, NAMES[row[5] - 1], (x, y, x + width, y + height), place))
    findings.add("DATA-LABEL-LINE", f"lines that are not eight numbers with a category of 0 to {len(NAMES)}", wrong)
    findings.add("DATA-REGION-IGNORED", f"skipped {ignored} regions and objects that are not evaluated", count=ignored)
    names = [file.relative_to(split.annotations).with_suffix("").as_posix() for file in files]
    return named_table(split, names_on_disk(names, split.image_roots), boxes)


def _row(line: str) -> list[int] | None:
    try:
        values = [int(word) for word in line.strip().rstrip(",").split(",")]
    except ValueError:
        return None
    return values if len(values) == 8 else None


def is_visdrone(file: Path) -> bool:
    """Whether the first line of a file has VisDrone's columns."""
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    return bool(lines) and _row(lines[0]) is not None
