"""Draw the images of `--save-images`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dinocore.data.images import read_image
from dinocore.draw.boxes import Box, class_color, draw_boxes
from dinocore.system.files import write_atomically

if TYPE_CHECKING:
    from dinocore.detections_io import ImageResult
    from dinocore.predict import AnyDetector


def draw_detections(source: Path, found: ImageResult, detector: AnyDetector, path: Path) -> None:
    """Write an image with its detections drawn.

    Raises:
        DataError: the image can no longer be read.
        EnvironmentFault: the drawing cannot be written.
    """
    image = read_image(source, detector.config.data)
    numbers = {category.name: k for k, category in enumerate(detector.categories)}
    boxes = [
        Box(d["box_xyxy"], class_color(numbers[d["label"]]), f"{d['label']} {d['score']:.2f}")
        for d in reversed(found.detections)  # the best on top
    ]
    drawn = draw_boxes(image, boxes)
    write_atomically(path, lambda temporary: drawn.save(temporary, "JPEG", quality=92))
