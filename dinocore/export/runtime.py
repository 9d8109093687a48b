"""Run a detector that `dino export` wrote: numpy and Pillow, and ONNX Runtime or OpenVINO; copy this file if you like.

detector = ExportedDetector("model.onnx")
labels, scores, boxes_xyxy = detector("image.jpg")  # boxes in pixels of the image
names = [detector.info["names"][k] for k in labels]
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class ExportedDetections(NamedTuple):
    """The objects found in one image, best first."""

    labels: np.ndarray  # (n,) int64, index into `info["names"]` and `info["ids"]`
    scores: np.ndarray  # (n,) in [0, 1]
    boxes_xyxy: np.ndarray  # (n, 4) in pixels of the upright image


class ExportedDetector:
    """A file of `dino export`, ready to use; `info` holds its names, ids, sizes and thresholds."""

    def __init__(self, path: str | Path, threads: int = 0):
        """
        Args:
            path: an .onnx file, or an OpenVINO .xml with its .bin beside it.
            threads: of the runtime; 0: one for each core.

        Raises:
            ValueError: the file is damaged, or was not written by `dino export`.
            ImportError: the runtime is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: this file does not exist")
        try:
            self._run, info = (_open_openvino if path.suffix == ".xml" else _open_onnx)(path, threads)
        except ImportError:
            raise
        except Exception as error:  # runtimes have no common class of errors
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{path} cannot be read, it is damaged or incomplete ({first}); export it again"
            ) from error
        self.info: dict[str, Any] = json.loads(info or "{}")
        if self.info.get("schema") != 1:
            raise ValueError(f"{path} was not written by this version of `dino export`; export the weights again")

    def __call__(
        self, image: str | Path | Image.Image | np.ndarray, threshold: float | None = None
    ) -> ExportedDetections:
        """Detect in a file, a Pillow image or an RGB array (H, W, 3) of uint8; only scores from `threshold` on."""
        return self.detect([image], threshold)[0]

    def detect(self, images: Sequence[Any], threshold: float | None = None) -> list[ExportedDetections]:
        """The same for several images in one call of the runtime."""
        upright = [load(image) for image in images]
        inputs = [image.resize(self.input_size(image.size), Image.Resampling.BILINEAR) for image in upright]
        pixels, sizes = self.place(list(map(np.asarray, inputs)))
        floor, count = self.info["threshold"] if threshold is None else threshold, len(self.info["names"])
        least = (threshold is None and self.info.get("thresholds")) or [floor] * count  # of each class
        found = []
        for rows, image, (height, width) in zip(
            zip(*self.run(pixels, sizes), strict=True), upright, sizes, strict=True
        ):
            labels, scores, boxes = rows
            boxes = boxes * (np.array(image.size * 2, np.float32) / np.array([width, height] * 2, np.float32))
            kept = [i for i in suppress(boxes, labels, self.info["nms_iou"]) if scores[i] >= least[labels[i]]]
            found.append(ExportedDetections(labels[kept], scores[kept], boxes[kept]))
        return found

    def run(self, images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (B, D), scores (B, D) and boxes (B, D, 4) in pixels of canvases (B, H, W, 3) with sizes (B, 2)."""
        canvas = tuple(self.info["canvas"])
        if images.ndim != 4 or images.shape[1:] != (*canvas, 3) or sizes.shape != (len(images), 2):
            wanted = f"images (B, {canvas[0]}, {canvas[1]}, 3) and sizes (B, 2)"
            raise ValueError(f"this model takes {wanted}; got {images.shape} and {sizes.shape}")
        if (sizes < 1).any() or (sizes > canvas).any():
            raise ValueError(f"sizes must be 1 to {canvas}, height before width; got {sizes.tolist()}")
        labels, scores, boxes = self._run(images.astype(self.info["pixels"], copy=False), sizes.astype(np.int64))
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise ValueError("the model's output is not finite; the file is damaged, or its runtime is at fault")
        return labels, scores, boxes

    def place(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Put arrays (h, w, 3) at the top left of canvases: (B, H, W, 3), and their sizes (B, 2)."""
        pixels = np.zeros((len(images), *self.info["canvas"], 3), self.info["pixels"])
        for canvas, image in zip(pixels, images, strict=True):
            canvas[: image.shape[0], : image.shape[1]] = image
        return pixels, np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height to which an image (width, height) is resized: as in training, or to fit the canvas."""
        width, height = size
        low, high = min(size), max(size)
        short, most = self.info["eval_scale"], self.info["max_size"]
        if high / low * short > most:
            short = max(1, round(most * low / high))
        long = min(int(short * high / low), most)
        new = (long, short) if width > height else (short, long)
        shrink = min(1.0, self.info["canvas"][1] / new[0], self.info["canvas"][0] / new[1])
        return max(1, int(new[0] * shrink)), max(1, int(new[1] * shrink))


def load(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """An upright RGB image, turned as its EXIF data say."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)
    return ImageOps.exif_transpose(image).convert("RGB")


def suppress(boxes: np.ndarray, labels: np.ndarray, iou: float) -> list[int]:
    """Rows that stay when, of two boxes (n, 4) of a class that overlap by more than `iou`, the later one goes."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for i in range(len(boxes)):
        others = boxes[kept]
        sides = np.minimum(others[:, 2:], boxes[i, 2:]) - np.maximum(others[:, :2], boxes[i, :2])
        shared = sides.clip(0).prod(1)
        union = np.maximum(area[kept] + area[i] - shared, 1e-9)
        if iou >= 1 or not ((shared / union > iou) & (labels[kept] == labels[i])).any():
            kept.append(i)
    return kept


def _open_onnx(path: Path, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0  # not more than may be used
    options.intra_op_num_threads, options.log_severity_level = threads or cores, 3
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda images, sizes: session.run(None, {"images": images, "sizes": sizes}), metadata.get("dino", "")


def _open_openvino(path: Path, threads: int) -> tuple[Run, str]:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    info = model.get_rt_info(["dino"]).astype(str) if model.has_rt_info(["dino"]) else ""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}  # else bfloat16 where the CPU has it
    compiled = core.compile_model(model, "CPU", exact)
    return lambda images, sizes: list(compiled([images, sizes]).values()), info
