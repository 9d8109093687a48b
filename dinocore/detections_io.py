"""Write detections in the formats of other tools."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import msgspec

from . import __version__
from .data.annotations import Category
from .data.images import SUFFIXES as IMAGES
from .errors import ConfigError, DataError
from .predict import Detections
from .system.files import check_folder_name, is_stream, resuffixed, write_text
from .words import did_you_mean, typed

FORMATS = ("json", "jsonl", "coco", "csv", "yolo", "labelme", "fiftyone", "labelstudio")
# suffixes of formats with a single file
SUFFIXES = {
    "json": ".json", "jsonl": ".jsonl", "coco": ".json", "csv": ".csv", "fiftyone": ".json", "labelstudio": ".json"
}  # fmt: skip
FOLDERS = {"yolo": ".txt", "labelme": ".json"}  # formats with one file per image, and its suffix
CLASSES = "classes.txt"  # of yolo, with one name per line

USE_OTHER_OUT = "give another --out, or drop --resume"


class Detection(TypedDict):
    """A detected object."""

    label: str
    category_id: int
    score: float
    box_xyxy: list[float]


class ImageResultJson(TypedDict):
    """The detections in one image file, as in JSON."""

    file: str
    width: int
    height: int
    detections: list[Detection]


class ImageResult(NamedTuple):
    """The detections in one image file."""

    file: str
    width: int
    height: int
    detections: list[Detection]  # best first


def image_result(
    file: str, size: tuple[int, int], detections: Detections, categories: Sequence[Category], least: Sequence[float]
) -> ImageResult:
    """Detections in one image file, with class names and original category ids.

    Args:
        size: height and width.
        least: the lowest score that is kept, for each class.
    """
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes_xyxy.tolist(), strict=True)
    kept: list[Detection] = [
        {
            "label": categories[label].name,
            "category_id": categories[label].id,
            "score": round(score, 6),
            "box_xyxy": [round(value, 2) for value in box],
        }
        for label, score, box in rows
        if score >= least[label]
    ]
    return ImageResult(file, size[1], size[0], kept)


def write_detections(
    found: Sequence[ImageResult],
    categories: Sequence[Category],
    kind: str,
    out: Path,
    stems: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write detections as `kind` to the file or, for yolo and labelme, into the folder `out`.

    Args:
        stems: by image, the stem of its output file in a folder; see `output_stems`.

    Returns:
        the written paths: `out`, and files that belong to it.
    """
    if kind in FOLDERS:
        stems = stems or output_stems([item.file for item in found])
        for item in found:
            text = _yolo(item, categories) if kind == "yolo" else _labelme(item, out)
            write_text(out / f"{stems[item.file]}{FOLDERS[kind]}", text)
        if kind == "yolo":
            write_text(out / CLASSES, "".join(f"{category.name}\n" for category in categories))
        return [out]
    if kind in ("coco", "fiftyone"):
        write_text(out, {"coco": _coco, "fiftyone": _fiftyone}[kind](found, categories))
        return [out]
    writers = {"json": _json, "jsonl": json_lines, "csv": _csv, "labelstudio": _label_studio}
    write_text(out, writers[kind](found))
    if kind != "labelstudio":
        return [out]
    config = out.with_name(f"{out.stem}.label_config.xml")
    write_text(config, _label_config(categories))
    return [out, config]


def format_of(kind: str, out: Path | None) -> str:
    """Check a format, and resolve `auto` by the suffix of --out; default: json.

    Raises:
        ConfigError: there is no such format.
    """
    if kind == "auto":
        by_suffix = {".csv": "csv", ".jsonl": "jsonl"}
        return by_suffix.get(out.suffix.lower(), "json") if out else "json"
    if kind not in FORMATS:
        meant = did_you_mean(kind, FORMATS) or f"; choose one of {', '.join(FORMATS)}"
        raise ConfigError(f"unknown format `{kind}`{meant}")
    return kind


def check_out(out: Path, kind: str) -> None:
    """Check before any work that --out fits the format.

    Raises:
        ConfigError: `out` is a folder instead of a file or vice versa, has another suffix, or is `-`.
    """
    if str(out) == "-":
        raise ConfigError("--out - would be a file called `-`; to print to stdout, drop --out and add --json")
    if kind in FOLDERS:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file, but --format {kind} writes one file per image to a folder")
        check_folder_name("--out", out)
        return
    suffix = SUFFIXES[kind]
    if kind == "labelstudio" and is_stream(out):
        raise ConfigError(
            f"--out {out} is not a regular file, but --format labelstudio writes two files; choose a file"
        )
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file, such as {out / f'boxes{suffix}'}")
    if out.suffix.lower() not in ("", suffix):
        known = "to draw boxes on images, use --save-images DIR; " if out.suffix.lower() in IMAGES else ""
        raise ConfigError(
            f"--out {out} ends in {out.suffix}, but --format {kind} writes {suffix}; "
            f"{known}try --out {typed(resuffixed(out, suffix))}, or choose a --format: {', '.join(FORMATS)}"
        )


def read_detections(path: Path) -> list[ImageResult]:
    """Read a file that `write_detections` wrote as json or jsonl; an incomplete last line is ignored.

    Raises:
        DataError: the file is not readable or has other content.
    """
    try:
        content = path.read_bytes()
        lines = path.suffix.lower() == ".jsonl"
        if lines:
            content = content[: content.rfind(b"\n") + 1]  # a killed process may leave an incomplete line
        return [ImageResult(**row) for row in _rows(content, lines)]
    except OSError as error:
        raise DataError(
            f"it cannot be read: {error.strerror}", code="DATA-RESULTS", where=path, fix=USE_OTHER_OUT
        ) from None
    except ValueError as error:
        what = f"it was not written by `dino predict --out`:  {error}"
        raise DataError(what, code="DATA-RESULTS", where=path, fix=USE_OTHER_OUT) from None


def _rows(content: bytes, lines: bool) -> Sequence[ImageResultJson]:
    if b"\\udc" in content:  # a file name that is not UTF-8, which msgspec cannot read
        rows = map(json.loads, content.splitlines()) if lines else json.loads(content)
        return msgspec.convert(list(rows), list[ImageResultJson])
    if lines:
        return msgspec.json.Decoder(ImageResultJson).decode_lines(content)
    return msgspec.json.decode(content, type=list[ImageResultJson])


def _json(found: Sequence[ImageResult]) -> str:
    return json.dumps([item._asdict() for item in found], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def json_lines(found: Sequence[ImageResult]) -> str:
    """JSON Lines, with one object per image."""
    return "".join(json.dumps(item._asdict(), ensure_ascii=False, allow_nan=False) + "\n" for item in found)


def _coco(found: Sequence[ImageResult], categories: Sequence[Category]) -> str:
    """A complete COCO file; images are numbered from 1, and detections are annotations with a score."""
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
    kinds = [{"id": category.id, "name": category.name} for category in sorted(categories)]
    return json.dumps({"images": images, "annotations": annotations, "categories": kinds}, allow_nan=False) + "\n"


def _csv(found: Sequence[ImageResult]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "label", "category_id", "score", "x0", "y0", "x1", "y1"])
    for item in found:
        for d in item.detections:
            table.writerow([item.file, d["label"], d["category_id"], d["score"], *d["box_xyxy"]])
    return text.getvalue()


def _yolo(item: ImageResult, categories: Sequence[Category]) -> str:
    """Lines of `class cx cy w h score`, with boxes as fractions of the image and classes as in classes.txt."""
    numbers = {category.id: k for k, category in enumerate(categories)}
    lines = []
    for d in item.detections:
        x0, y0, x1, y1 = d["box_xyxy"]
        fractions = ((x0 + x1) / 2 / item.width, (y0 + y1) / 2 / item.height)
        fractions += ((x1 - x0) / item.width, (y1 - y0) / item.height)
        lines.append(
            f"{numbers[d['category_id']]} {' '.join(f'{value:.6f}' for value in fractions)} {d['score']:.6f}\n"
        )
    return "".join(lines)


def _labelme(item: ImageResult, folder: Path) -> str:
    """A labelme file; its `imagePath` is relative to the folder of the file."""
    shapes = [
        {"label": d["label"], "shape_type": "rectangle", "points": [d["box_xyxy"][:2], d["box_xyxy"][2:]],
         "group_id": None, "flags": {}, "description": f"score {d['score']:.4f}"}
        for d in item.detections
    ]  # fmt: skip
    document = {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": _path_from(folder, item.file),
        "imageData": None,
    }
    return json.dumps(document | {"imageHeight": item.height, "imageWidth": item.width}, allow_nan=False) + "\n"


def _fiftyone(found: Sequence[ImageResult], categories: Sequence[Category]) -> str:
    """FiftyOneImageDetectionDataset: boxes are x y width height as fractions of the image.

    Source: https://docs.voxel51.com/user_guide/import_datasets.html
    """
    labels = {
        _absolute(item.file): [
            {"label": d["label"], "bounding_box": _fractions(d["box_xyxy"], item), "confidence": d["score"]}
            for d in item.detections
        ]
        for item in found
    }
    return json.dumps({"classes": _names(categories), "labels": labels}, allow_nan=False) + "\n"


def _label_studio(found: Sequence[ImageResult]) -> str:
    """Tasks with predictions: boxes are x y width height in percent of the image.

    Source: https://labelstud.io/guide/predictions
    """
    return json.dumps([_task(item) for item in found], indent=1, allow_nan=False) + "\n"


def _task(item: ImageResult) -> dict[str, Any]:
    shared = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "image_rotation": 0}
    shared |= {"original_width": item.width, "original_height": item.height}
    result = []
    for number, d in enumerate(item.detections):
        x, y, width, height = (round(100 * side, 6) for side in _fractions(d["box_xyxy"], item))
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [d["label"]]}
        result.append({"id": f"dino-{number}", **shared, "score": d["score"], "value": value})
    prediction: dict[str, Any] = {"model_version": f"dino-detector {__version__}", "result": result}
    if result:
        prediction["score"] = round(sum(d["score"] for d in item.detections) / len(result), 6)
    address = f"/data/local-files/?d={quote(os.fsencode(_absolute(item.file)).lstrip(b'/'))}"
    return {"data": {"image": address}, "predictions": [prediction]}


def _label_config(categories: Sequence[Category]) -> str:
    """The labelling interface for the tasks."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in _names(categories))
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
        f"{labels}  </RectangleLabels>\n</View>\n"
    )


def _names(categories: Sequence[Category]) -> list[str]:
    """The class names, without duplicates."""
    return list(dict.fromkeys(category.name for category in categories))


def _fractions(box: Sequence[float], item: ImageResult) -> list[float]:
    """x, y, width, height of a box in pixels (xyxy) as fractions of its image, within [0, 1]."""
    x0, x1 = (min(max(x / item.width, 0.0), 1.0) for x in box[::2])
    y0, y1 = (min(max(y / item.height, 0.0), 1.0) for y in box[1::2])
    return [round(value, 8) for value in (x0, y0, x1 - x0, y1 - y0)]


def _absolute(file: str) -> str:
    return file if file == "-" else Path(file).absolute().as_posix()


def _path_from(folder: Path, file: str) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return str(Path(file).absolute())


def output_stems(files: Sequence[str], kind: str = "") -> dict[str, str]:
    """A unique stem for the output file of each image: its own stem, with a number if that is taken.

    Args:
        files: distinct names of images; `-` is standard input.
        kind: the format; `yolo` also writes `classes.txt`, whose stem is not used.
    """
    stems = [Path(file).stem if file != "-" else "stdin" for file in files]
    taken = {"classes"} if kind == "yolo" else set()
    names: dict[str, str] = {}
    duplicates = []
    for file, stem in zip(files, stems, strict=True):
        if stem.casefold() in taken:  # some file systems ignore case
            duplicates.append((file, stem))
        else:
            names[file] = stem
            taken.add(stem.casefold())
    for file, stem in duplicates:
        number = next(n for n in count(2) if f"{stem}-{n}".casefold() not in taken)
        names[file] = f"{stem}-{number}"
        taken.add(names[file].casefold())
    return names
