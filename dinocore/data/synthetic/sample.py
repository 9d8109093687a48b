"""A dataset without a download: synthetic blood smears that resemble BCCD, in COCO layout."""

import json
import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dinocore.data.synthetic.cells import PLATELET, RBC, WBC
from dinocore.data.synthetic.smear import draw_smear
from dinocore.errors import ConfigError, EnvironmentFault
from dinocore.words import in_bytes

__all__ = ["CATEGORIES", "SampleSummary", "draw_smear", "write_sample_data"]

CATEGORIES = {RBC: "RBC", WBC: "WBC", PLATELET: "Platelets"}  # as in BCCD
PARTS = ("annotations", "train2017", "val2017")  # names of the folders that are written
MIN_SIDE, MAX_SIDE = 64, 4096  # drawing takes about 40 bytes of memory per pixel
TRAIN_FRACTION = 0.8
JPEG_QUALITY = 85
MIN_BYTES_PER_PIXEL = 0.04  # of a file; measured at 640 x 480: 0.045 to 0.13


class SampleSummary(NamedTuple):
    """Counts of images and objects that `write_sample_data` wrote."""

    train_images: int
    val_images: int
    objects: dict[str, int]  # by category name, train and val together
    empty_images: int


def write_sample_data(
    folder: Path, num_images: int = 200, seed: int = 0, size: tuple[int, int] = (640, 480)
) -> SampleSummary:
    """Write `num_images` synthetic blood smears of `size` (width, height) in pixels, with exact boxes, in COCO layout.

    About 80 % go to train2017 and the others to val2017, at least one to each. A single image goes to train2017, and
    the validation annotations are then a valid file without images. With the same versions of numpy and Pillow, the
    same arguments give the same bytes. Annotations are written last, so that an interrupted call does not leave a
    folder that looks complete. Existing files are replaced.

    Raises:
        ConfigError: an argument is invalid.
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    _check(num_images, seed, size)
    _check_space(folder, num_images, size)
    num_train = num_images if num_images == 1 else min(max(round(TRAIN_FRACTION * num_images), 1), num_images - 1)
    annotations = {split: folder / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")}
    for path in annotations.values():
        if path.is_file():
            path.unlink()  # otherwise an interrupted call could leave old boxes with new images
    parts = {"train": range(num_train), "val": range(num_train, num_images)}
    documents = {split: _write_images(folder / f"{split}2017", indices, seed, size) for split, indices in parts.items()}
    for split, document in documents.items():
        _write(annotations[split], json.dumps(document, separators=(",", ":")).encode())
    labels = [a["category_id"] for document in documents.values() for a in document["annotations"]]
    objects = {name: labels.count(label) for label, name in CATEGORIES.items()}
    num_filled = sum(len({a["image_id"] for a in document["annotations"]}) for document in documents.values())
    return SampleSummary(num_train, num_images - num_train, objects, num_images - num_filled)


def _check(num_images: int, seed: int, size: tuple[int, int]) -> None:
    if num_images < 1:
        raise ConfigError(f"cannot write {num_images} images; choose 1 or more")
    if seed < 0:
        raise ConfigError(f"seed = {seed} is negative; choose 0 or more")
    if min(size) < MIN_SIDE:
        raise ConfigError(
            f"images of {size[0]} x {size[1]} are too small for cells; choose sides of {MIN_SIDE} or more"
        )
    if max(size) > MAX_SIDE:
        raise ConfigError(f"images of {size[0]} x {size[1]} are too large; choose sides of {MAX_SIDE} or less")


def _check_space(folder: Path, num_images: int, size: tuple[int, int]) -> None:
    """Raise an error if the images certainly do not fit on the disk."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = num_images * size[0] * size[1] * MIN_BYTES_PER_PIXEL, shutil.disk_usage(existing).free
    if needed > free:
        raise EnvironmentFault(
            f"{num_images} images need {in_bytes(needed)} or more, and {existing} has {in_bytes(free)} left; "
            "draw fewer or smaller ones"
        )


def _write_images(folder: Path, indices: range, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """Write the images of one split and return its COCO document."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    _create_folder(folder)  # even if it will have no images
    for index in indices:
        image, labels, boxes = draw_smear(seed, index, size)
        name, image_id = f"smear_{index + 1:06d}.jpg", index + 1
        content = BytesIO()
        Image.fromarray(image).save(content, "JPEG", quality=JPEG_QUALITY)
        _write(folder / name, content.getvalue())
        images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1], "license": 1})
        for label, box in zip(labels, boxes.tolist(), strict=True):
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "bbox": box}
            annotations.append(row | {"area": box[2] * box[3], "iscrowd": 0})
    description = f"Drawn blood smears, not photographs: dino sample-data, seed {seed}"
    return {
        "info": {"description": description, "version": "1.0"},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": name, "supercategory": "cell"} for label, name in CATEGORIES.items()],
    }


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that a file that exists is complete."""
    _create_folder(path.parent)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EnvironmentFault(f"{path} cannot be written: {error.strerror or error}") from error


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{folder} cannot be written: {error.strerror or error}") from error
