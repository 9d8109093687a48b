"""Use an exported file as a detector, for `dino predict`, `dino eval` and `dino benchmark`."""

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..config import Config, EvalConfig
from ..data.annotations import Category
from ..data.batch import Batch
from ..data.split import table_names
from ..errors import CheckpointError, DataError, EnvironmentFault
from ..predict import Detections
from ..system.extras import install_line
from .programs import open_exported
from .runtime import suppress

ORIGINS = {  # where a file's threshold comes from, by its `threshold_from`
    "asked": "set when the file was exported",
    "weights": "the best F1 when these weights were evaluated",
    "default": "the default, because these weights were never evaluated",
}
OUT_OF_MEMORY = ("alloc", "out of memory", "not enough memory", "MemoryError")  # phrases in errors of the runtimes
LOGGER = logging.getLogger("dinocore.export")


class FileDetector:
    """A detector that runs an exported file, with the interface of `dinocore.predict.Detector`."""

    def __init__(self, path: Path, threads: int = 0):
        """
        Raises:
            CheckpointError: the file is damaged, or was not written by `dino export`.
            EnvironmentFault: its runtime is not installed.
        """
        try:
            self.runtime = open_exported(path, threads)
        except ImportError as error:
            extra = "openvino" if path.suffix.lower() == ".xml" else "export"
            raise EnvironmentFault(
                f"{path} needs a runtime that is not installed ({error})", fix=install_line(extra)
            ) from error
        except ValueError as error:
            from .plugin import PLUGIN  # imported here because it imports torch.export

            if PLUGIN in str(error.__cause__):
                raise CheckpointError(
                    f"{path} was exported with --tensorrt-plugin, so it runs in TensorRT only; export it without"
                ) from error
            raise CheckpointError(str(error)) from error
        origin = self.runtime.info.get("threshold_from")
        self.threshold_note = ORIGINS.get(str(origin), "kept in the exported file")  # older files don't say it
        self.device = torch.device("cpu")
        info = self.runtime.info
        self.threshold: float | None = info.get("threshold")
        try:
            limits = {"nms_iou": info["nms_iou"], "max_dets": info["max_dets"]}
            self.config = Config.model_validate({"data": info["data"], "eval": limits})
            self.categories = [Category(i, name) for i, name in zip(info["ids"], info["names"], strict=True)]
            thresholds = info["thresholds"] or []
            self.class_thresholds = dict(zip(table_names(self.categories), thresholds, strict=bool(thresholds)))
        except (KeyError, ValueError, ValidationError) as error:
            raise CheckpointError(f"{path} has unreadable metadata; export it again") from error

    @property
    def config(self) -> Config:
        """The file's settings; `data` has its canvas, so that images are resized only once, to fit into it."""
        return self._config

    @config.setter
    def config(self, config: Config) -> None:
        available, requested = self.runtime.info["max_dets"], config.eval.max_dets
        if requested > available and requested != EvalConfig().max_dets:
            LOGGER.warning("the exported file returns at most %d detections per image, not %d", available, requested)
        data = config.data.on_canvas(self.runtime.info["canvas"])
        self._config = config.model_copy(update={"data": data})

    def detect_batch(self, batch: Batch) -> list[Detections]:
        """Detections for each image of a batch resized for evaluation, in pixels of the original image."""
        canvas = self.runtime.info["canvas"]
        images = []
        for image, outside in zip(batch.images, batch.padding, strict=True):
            height, width = int((~outside[:, 0]).sum()), int((~outside[0]).sum())
            images.append(fit(image[:, :height, :width], (canvas[0], canvas[1])).permute(1, 2, 0).numpy())
        pixels, sizes = self.runtime.place(images)
        rows = self.run(lambda: self.runtime.run(pixels, sizes))
        found = []
        for labels, scores, boxes, (height, width), (h, w) in zip(*rows, batch.sizes, sizes, strict=True):
            labels, scores, boxes = (rows[: self.config.eval.max_dets] for rows in (labels, scores, boxes))
            keep = suppress(boxes, labels, self.config.eval.nms_iou)  # after the top detections, as in `Detector`
            scaled = boxes[keep] * np.array([width / w, height / h] * 2, np.float32)
            found.append(self.named(*map(torch.from_numpy, (labels[keep], scores[keep], scaled))))
        return found

    def named(self, labels: Tensor, scores: Tensor, boxes_xyxy: Tensor) -> Detections:
        """Detections with the names of their classes."""
        return Detections(labels, scores, boxes_xyxy, tuple(self.categories[k].name for k in labels.tolist()))

    def run(self, call: Callable[[], Any]) -> Any:
        """Run a call to the runtime, and translate its errors.

        Raises:
            EnvironmentFault: the runtime ran out of memory.
            DataError: it failed for another reason.
        """
        try:
            return call()
        except (MemoryError, ValueError, RuntimeError) as error:
            reason = repr(error.__cause__ or error)
            if isinstance(error, MemoryError) or any(phrase in reason for phrase in OUT_OF_MEMORY):
                fix = "use smaller batches (dino predict --batch-size 1), or export with a smaller --size"
                raise EnvironmentFault("out of memory in the exported file's runtime", fix=fix) from error
            raise DataError(f"the exported file failed to run: {str(error).splitlines()[0]}") from error


def fit(image: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Shrink an image (3, h, w) to fit into the canvas, if it is larger."""
    height, width = image.shape[1:]
    shrink = min(1.0, canvas[0] / height, canvas[1] / width)
    if shrink == 1.0:
        return image
    return F.resize(image, [max(1, int(height * shrink)), max(1, int(width * shrink))], antialias=True)


class Speed(NamedTuple):
    """The speed of an exported file on this machine."""

    latency_p50_s: float
    latency_p90_s: float
    images_per_s: float


def measure_file(detector: FileDetector, batch: int, repeats: int) -> Speed:
    """Time calls of the runtime on random images, after two warm-up calls."""
    height, width = detector.runtime.info["canvas"]
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3)).astype(np.uint8)
    sizes = np.tile([height, width], (batch, 1))
    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        detector.run(lambda: detector.runtime.run(images, sizes))
        seconds.append(time.perf_counter() - start)
    ranked = sorted(seconds[2:])
    median = statistics.median(ranked)
    return Speed(median, ranked[round(0.9 * (len(ranked) - 1))], batch / median)
