"""Detections in the formats that other tools read."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import msgspec

from .data.annotations import Category
from .errors import ConfigError, DataError
from .predict import Detections
from .system.files import write_text

FORMATS = ("json", "coco", "csv", "yolo", "labelme")
FOLDERS = ("yolo", "labelme")  # these write a file per picture

OTHER = "give another --out, or leave --resume out"


class Detection(TypedDict):
    """One object."""

    label: str
    category_id: int
    score: float
    box_xyxy: list[float]


class Row(TypedDict):
    """What was detected in one picture file, as JSON has it."""

    file: str
    width: int
    height: int
    detections: list[Detection]


class Found(NamedTuple):
    """What was detected in one picture file."""

    file: str
    width: int
    height: int
    detections: list[Detection]  # best first


def as_found(
    file: str, size: tuple[int, int], detections: Detections, categories: Sequence[Category], threshold: float
) -> Found:
    """Detections of at least `threshold`, with names and original category ids; `size` is (height, width)."""
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes_xyxy.tolist(), strict=True)
    kept: list[Detection] = [
        {
            "label": categories[label].name,
            "category_id": categories[label].id,
            "score": round(score, 6),
            "box_xyxy": [round(value, 2) for value in box],
        }
        for label, score, box in rows
        if score >= threshold
    ]
    return Found(file, size[1], size[0], kept)


def write_found(found: Sequence[Found], categories: Sequence[Category], kind: str, out: Path) -> None:
    """Write detections as `kind` to the file or, for yolo and labelme, into the folder `out`."""
    if kind in FOLDERS:
        for item, name in zip(found, _unlike_names(found), strict=True):
            suffix, text = (".txt", _yolo(item, categories)) if kind == "yolo" else (".json", _labelme(item))
            write_text(out / f"{name}{suffix}", text)
        if kind == "yolo":
            write_text(out / "classes.txt", "".join(f"{category.name}\n" for category in categories))
        return
    writers = {"json": _json, "coco": _coco, "csv": _csv}
    write_text(out, writers[kind](found))


def check_out(out: Path, kind: str) -> None:
    """Refuse an --out that cannot be written, before any work is done.

    Raises:
        ConfigError: the format is unknown, or `out` is a folder where a file is needed, or the other way round.
    """
    if kind not in FORMATS:
        raise ConfigError(f"there is no format `{kind}`; choose one of {', '.join(FORMATS)}")
    if kind in FOLDERS and out.is_file():
        raise ConfigError(f"--out {out} is a file, but --format {kind} writes a file per picture into a folder")
    if kind not in FOLDERS and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file, such as {out / ('boxes.' + _suffix(kind))}")


def read_found(path: Path) -> list[Found]:
    """What `write_found` wrote as json.

    Raises:
        DataError: it is something else.
    """
    try:
        return [Found(**row) for row in msgspec.json.decode(path.read_bytes(), type=list[Row])]
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", code="DATA-RESULTS", where=path, fix=OTHER) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = f"it is not what `dino predict --out` writes: {error}"
        raise DataError(what, code="DATA-RESULTS", where=path, fix=OTHER) from None


def _suffix(kind: str) -> str:
    return "csv" if kind == "csv" else "json"


def _json(found: Sequence[Found]) -> str:
    return json.dumps([item._asdict() for item in found], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _coco(found: Sequence[Found]) -> str:
    """A complete COCO file: pictures are numbered from 1, detections are annotations with a score."""
    kinds = {d["category_id"]: d["label"] for item in found for d in item.detections}
    images = [{"id": i, "file_name": f.file, "width": f.width, "height": f.height} for i, f in enumerate(found, 1)]
    annotations = []
    for image, item in enumerate(found, start=1):
        for d in item.detections:
            x0, y0, x1, y1 = d["box_xyxy"]
            box = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": d["category_id"], "bbox": box,
                 "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": d["score"]}
            )  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in sorted(kinds.items())]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}, allow_nan=False) + "\n"


def _csv(found: Sequence[Found]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "label", "category_id", "score", "x0", "y0", "x1", "y1"])
    for item in found:
        for d in item.detections:
            table.writerow([item.file, d["label"], d["category_id"], d["score"], *d["box_xyxy"]])
    return text.getvalue()


def _yolo(item: Found, categories: Sequence[Category]) -> str:
    """Lines of `class cx cy w h score`, shares of the picture; classes are numbered as in classes.txt."""
    numbers = {category.id: k for k, category in enumerate(categories)}
    lines = []
    for d in item.detections:
        x0, y0, x1, y1 = d["box_xyxy"]
        shares = ((x0 + x1) / 2 / item.width, (y0 + y1) / 2 / item.height)
        shares += ((x1 - x0) / item.width, (y1 - y0) / item.height)
        lines.append(f"{numbers[d['category_id']]} {' '.join(f'{s:.6f}' for s in shares)} {d['score']:.6f}\n")
    return "".join(lines)


def _labelme(item: Found) -> str:
    shapes = [
        {"label": d["label"], "shape_type": "rectangle", "points": [d["box_xyxy"][:2], d["box_xyxy"][2:]],
         "group_id": None, "flags": {}, "description": f"score {d['score']:.4f}"}
        for d in item.detections
    ]  # fmt: skip
    document = {"version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": item.file, "imageData": None}
    return json.dumps(document | {"imageHeight": item.height, "imageWidth": item.width}, allow_nan=False) + "\n"


def _unlike_names(found: Sequence[Found]) -> list[str]:
    """The stem of each file; a number is added where two are the same."""
    return unlike([Path(item.file).stem for item in found])


def unlike(names: Sequence[str]) -> list[str]:
    """Names with -2, -3, ... added from their second appearance on."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result
