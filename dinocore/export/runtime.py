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

KEYS = {"pixels", "eval_scale", "max_size", "nms_iou", "max_dets", "threshold"}  # of what a file says about itself
Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class ExportedDetections(NamedTuple):
    """The objects found in one image, best first."""

    labels: np.ndarray  # (n,) int64, index into `info["names"]` and `info["ids"]`
    scores: np.ndarray  # (n,) in [0, 1]
    boxes_xyxy: np.ndarray  # (n, 4) in pixels of the upright image


class ExportedDetector:
    """An .onnx file, or an .xml with its .bin; ValueErrors say what is damaged, not ours or of a wrong shape."""

    def __init__(self, path: str | Path, threads: int = 0):
        if not Path(path).is_file():
            raise ValueError(f"{path}: this file does not exist")
        try:
            self._run, info = (_open_openvino if Path(path).suffix == ".xml" else _open_onnx)(str(path), threads)
        except ImportError:
            raise
        except Exception as error:  # runtimes have no common class of errors
            raise ValueError(f"{path} is damaged or incomplete, export it again ({error!s:.200})") from error
        self.info = _checked(info)
        if not self.info:
            raise ValueError(f"{path} was not written by this version of `dino export`; export the weights again")

    def __call__(self, image: Any, threshold: float | None = None) -> ExportedDetections:
        """Detect in a file, a Pillow image or an RGB array (H, W, 3) of uint8; only scores from `threshold` on."""
        return self.detect([image], threshold)[0]

    def detect(self, images: Sequence[Any], threshold: float | None = None) -> list[ExportedDetections]:
        """The same for several images in one call of the runtime."""
        upright = [load(image) for image in images]
        inputs = [image.resize(self.input_size(image.size), Image.Resampling.BILINEAR) for image in upright]
        floor, count = self.info["threshold"] if threshold is None else threshold, len(self.info["names"])
        least = (threshold is None and self.info.get("thresholds")) or [floor] * count  # of each class
        found, rows = [], zip(*self.run(*self.place([*map(np.asarray, inputs)])), upright, inputs, strict=True)
        for labels, scores, boxes, image, resized in rows:
            boxes = boxes * (np.array(image.size * 2, np.float32) / np.array(resized.size * 2, np.float32))
            kept = [i for i in suppress(boxes, labels, self.info["nms_iou"]) if scores[i] >= least[labels[i]]]
            found.append(ExportedDetections(labels[kept], scores[kept], boxes[kept]))
        return found

    def run(self, images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (B, D), scores (B, D) and boxes (B, D, 4) in pixels of canvases (B, H, W, 3) with sizes (B, 2)."""
        shape = images.shape[1:3]
        if images.ndim != 4 or images.shape != (max(1, len(images)), *self.canvas(shape), 3):
            takes = "H, W {} to {} in steps of {}".format(*(self.info[key] for key in ("least", "canvas", "multiple")))
            raise ValueError(f"this model takes images (B, H, W, 3), {takes}; got {images.shape}")
        if sizes.shape != (len(images), 2) or (sizes < 1).any() or (sizes > shape).any():
            raise ValueError(f"sizes must be a height and width for each image, 1 to {shape}; got {sizes.tolist()}")
        try:
            labels, scores, boxes = self._run(images.astype(self.info["pixels"], copy=False), sizes.astype(np.int64))
        except Exception as error:
            raise ValueError(f"the file does not run, it may be damaged ({error!s:.200})") from error
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise ValueError("the model's output is not finite; the file is damaged, or its runtime is at fault")
        return labels, scores, boxes

    def place(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Put arrays (h, w, 3) at the top left of canvases: (B, H, W, 3), and their sizes (B, 2)."""
        sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
        pixels = np.zeros((len(images), *self.canvas(sizes.max(0, initial=1)), 3), self.info["pixels"])
        for canvas, image in zip(pixels, images, strict=True):
            canvas[: image.shape[0], : image.shape[1]] = image
        return pixels, sizes

    def canvas(self, size: Sequence[int]) -> tuple[int, ...]:
        """The least canvas that holds a height and width, or the largest that there is."""
        step, limits = self.info["multiple"], zip(size, self.info["least"], self.info["canvas"], strict=True)
        return tuple(min(max(-(-int(side) // step) * step, low), high) for side, low, high in limits)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height to which an image (width, height) is resized: as in training, or to fit the canvas."""
        low, high, most = min(size), max(size), self.info["max_size"]
        short = min(self.info["eval_scale"], max(1, round(most * low / high)))
        long = min(int(short * high / low), most)
        width, height = (long, short) if size[0] > size[1] else (short, long)
        shrink = min(1.0, self.info["canvas"][1] / width, self.info["canvas"][0] / height)
        return max(1, int(width * shrink)), max(1, int(height * shrink))


def load(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """An upright RGB image, turned as its EXIF data say."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)
    return ImageOps.exif_transpose(image).convert("RGB")


def suppress(boxes: np.ndarray, labels: np.ndarray, iou: float) -> list[int]:
    """Rows that stay when, of two boxes (n, 4) of a class that overlap by more than `iou`, the later one goes."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for i, box in enumerate(boxes):
        others = boxes[kept]
        shared = (np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])).clip(0).prod(1)
        overlap = shared / np.maximum(area[kept] + area[i] - shared, 1e-9)
        if iou >= 1 or not ((overlap > iou) & (labels[kept] == labels[i])).any():
            kept.append(i)
    return kept


def _checked(text: str) -> dict[str, Any]:
    """What a file says about itself; nothing if that is not what `dino export` writes."""
    try:
        info = {"multiple": 1} | json.loads(text)
        sides = [*info.setdefault("least", info["canvas"]), *info["canvas"], info["multiple"]]
        ours = info["schema"] == 1 and len(info["names"]) == len(info["ids"]) and info.keys() >= KEYS
        return info if ours and len(sides) == 5 and all(isinstance(x, int) and x > 0 for x in sides) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _open_onnx(path: str, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0  # not more than may be used
    options.intra_op_num_threads, options.log_severity_level = threads or cores, 4
    session: Any = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    info = session.get_modelmeta().custom_metadata_map.get("dino", "")
    return lambda images, sizes: session.run(["labels", "scores", "boxes"], {"images": images, "sizes": sizes}), info


def _open_openvino(path: str, threads: int) -> tuple[Run, str]:
    import openvino

    model = openvino.Core().read_model(path)
    info = model.get_rt_info(["dino"]).astype(str) if model.has_rt_info(["dino"]) else ""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}  # else bfloat16 where the CPU has it
    compiled = openvino.Core().compile_model(model, "CPU", exact)
    return lambda images, sizes: list(compiled([images, sizes]).values()), info
