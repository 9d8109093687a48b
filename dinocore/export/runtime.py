"""Run a file of `dino export`. Copy this file; it needs numpy, Pillow and onnxruntime >= 1.20 or openvino >= 2025.0."""

import contextlib
import json
import os
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ExportedDetections = namedtuple("ExportedDetections", "labels scores boxes_xyxy")  # label: index in `info["names"]`


class ExportedDetector:
    """An .onnx file, or an .xml with its .bin: `labels, scores, boxes_xyxy = ExportedDetector("m.onnx")("a.jpg")`."""

    def __init__(self, path: str | os.PathLike, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)):
        if not os.path.isfile(path) or not os.access(path, os.R_OK) or str(path).endswith(".unverified"):
            raise ValueError(f"{path}: this file does not exist, cannot be read, or failed the check of `dino export`")
        try:
            self._run, text = self._open(str(path), threads, providers)
        except ImportError:  # not installed, or too old
            raise
        except Exception as error:  # runtimes have no common class of errors
            raise ValueError(f"{path} is damaged or in another format; export it again ({error!s:.200})") from error
        self.info = self._checked(text, str(path))

    def __call__(self, image: Any, threshold: float | None = None) -> ExportedDetections:
        """Detections with scores >= `threshold` in a file (path or open), a Pillow image or a uint8 array (H, W, 3)."""
        return self.detect([image], threshold)[0]

    def detect(self, images: Sequence[Any], threshold: float | None = None) -> list[ExportedDetections]:
        """The same for up to 64 images, in a single call of the runtime."""
        thresholds = (self.info["thresholds"] or self.info["threshold"]) if threshold is None else threshold
        single = isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 4) < 4
        if single or hasattr(images, "read") or not 0 <= np.min(thresholds) <= np.max(thresholds) <= 1:
            raise ValueError(f"give a list of images, a threshold in [0, 1]; got {type(images).__name__}, {threshold}")
        upright = [load(image) for image in images]
        inputs = [image.resize(self.input_size(image.size), Image.Resampling.BILINEAR) for image in upright]
        least, found = np.broadcast_to(thresholds, len(self.info["names"])), []  # per class
        ran = self.run(*self.place([*map(np.asarray, inputs)])) if inputs else ((), (), ())
        for labels, scores, boxes, image, resized in zip(*ran, upright, inputs, strict=True):
            boxes = boxes * (np.array(image.size * 2, np.float32) / np.array(resized.size * 2, np.float32))
            keep = [i for i in suppress(boxes, labels, self.info["nms_iou"]) if scores[i] >= least[labels[i]]]
            found.append(ExportedDetections(labels[keep], scores[keep], boxes[keep]))
        return found

    def run(self, images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Canvases (B, H, W, 3) and image sizes (B, 2) -> labels (B, D), scores (B, D), boxes (B, D, 4) in pixels."""
        images, sizes, pixels = np.asarray(images), np.asarray(sizes), self.info["pixels"]
        shape, count, dtypes = images.shape[1:3], len(images) if images.ndim == 4 else 0, (np.uint8, pixels)
        if not 0 < count <= 64 or images.shape[1:] != (*self.canvas(shape), 3) or images.dtype not in dtypes:
            takes = "(1 to 64, H, W, 3), HxW {least} to {canvas} in steps of {multiple}, {pixels}".format_map(self.info)
            raise ValueError(f"this model needs images {takes}; got {images.shape}, {images.dtype}")
        if sizes.dtype.kind not in "iu" or sizes.shape != (count, 2) or (sizes < 1).any() or (sizes > shape).any():
            raise ValueError(f"sizes must be a height and width for each image, 1 to {shape}; got {sizes.tolist()}")
        try:
            labels, scores, boxes = self._run(images.astype(pixels, copy=False), sizes.astype(np.int64))
        except Exception as error:
            raise ValueError(f"failed to run: out of memory (use fewer images) or damaged ({error!s:.200})") from error
        if len(scores) < count:  # as OpenVINO does when it runs out of memory
            raise MemoryError(f"out of memory: {len(scores)} results for {count} images; use smaller batches")
        if not np.isfinite(np.append(scores, boxes)).all() or not np.isin(labels, range(len(self.info["names"]))).all():
            raise ValueError("the model's output is not finite or has unknown classes; file or runtime is broken")
        return labels, scores, boxes

    def place(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Place arrays (h, w, 3) at the top left of canvases (B, H, W, 3); returns these and the sizes (B, 2)."""
        images, limit, dtypes = [*map(np.asarray, images)], self.info["canvas"], (np.uint8, self.info["pixels"])
        for shape, dtype in ((image.shape, image.dtype) for image in images):
            if dtype not in dtypes or shape != (*shape[:2], 3) or (np.array(shape[:2]) > limit).any():
                raise ValueError(f"it needs images (h, w, 3) of {dtypes[1]}, up to {limit}; got {shape} of {dtype}")
        sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
        height, width = self.canvas(sizes.max(0, initial=1))
        return np.stack([np.pad(x, [(0, height - len(x)), (0, width - x.shape[1]), (0, 0)]) for x in images]), sizes

    def _open(self, path: str, threads: int, providers: Sequence[str]) -> tuple[Any, str]:
        if path.lower().endswith(".xml"):
            openvino: Any = __import__("openvino")
            model = openvino.Core().read_model(path)
            info = model.get_rt_info(["dino"]).astype(str) if model.has_rt_info(["dino"]) else ""
            exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}  # some CPUs default to bf16
            compiled = openvino.compile_model(model, "CPU", exact)
            return lambda images, sizes: list(compiled([images, sizes]).values()), info
        onnxruntime: Any = __import__("onnxruntime")
        if [int(part) for part in onnxruntime.__version__.split(".")[:2]] < [1, 20]:
            raise ImportError(f"it needs onnxruntime 1.20 or newer, this is {onnxruntime.__version__}")
        options = onnxruntime.SessionOptions()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0  # that this process may use
        options.intra_op_num_threads, options.log_severity_level = threads or cores, 4
        session = onnxruntime.InferenceSession(path, options, providers=np.atleast_1d(providers).tolist())
        info, names = session.get_modelmeta().custom_metadata_map.get("dino", ""), ["labels", "scores", "boxes"]
        return lambda images, sizes: session.run(names, {"images": images, "sizes": sizes}), info

    def _checked(self, text: str, path: str) -> dict[str, Any]:  # parse the metadata
        with contextlib.suppress(ValueError, KeyError, TypeError):
            info = {"multiple": 1, "thresholds": None} | json.loads(text)
            names, canvas, least = info["names"], info["canvas"], info.setdefault("least", info["canvas"])
            ints = [*least, *canvas, *(info[key] for key in ("multiple", "eval_scale", "max_size", "max_dets"))]
            limits = [*(info["thresholds"] or [0] * len(names)), info["nms_iou"], info["threshold"]]
            ours = info["schema"] == 1 and info["pixels"] in ("uint8", "float32") and len(least) == len(canvas) == 2
            ours &= len(names) == len(info["ids"]) == len(limits) - 2 and {*map(type, names)} == {str} and min(ints) > 0
            if ours and {*map(type, [*info["ids"], *ints])} == {int} and all(0 <= x <= 1 for x in limits):
                return info
        raise ValueError(f"{path} was not written by this version of `dino export`; export the weights again")

    def canvas(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest canvas that holds this height and width, or else the largest."""
        step, limits = self.info["multiple"], zip(size, self.info["least"], self.info["canvas"], strict=True)
        return tuple(min(max(-(-int(side) // step) * step, low), high) for side, low, high in limits)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height to which an image (width, height) is resized: as in training, or to fit the canvas."""
        low, high, limit, short = min(size), max(size), self.info["max_size"], self.info["eval_scale"]
        short = max(1, round(limit * low / high)) if high / low * short > limit else short
        long = int(short * high / low) if short > 1 else min(int(high / low), limit)  # truncated, as in DETR
        width, height = (long, short) if size[0] > size[1] else (short, long)
        shrink = min(1.0, self.info["canvas"][1] / width, self.info["canvas"][0] / height)
        return max(1, int(width * shrink)), max(1, int(height * shrink))


def load(image: Any) -> Image.Image:
    """An RGB image, rotated according to its EXIF data; alpha over white, and high bit depths scaled to 8 bits."""
    image = Image.open(image) if isinstance(image, str | os.PathLike) or hasattr(image, "read") else image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] in ((), (3,), (4,)) and image.size:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image) or not all(image.size):
        got = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', getattr(image, 'size', ''))}"
        raise ValueError(f"an image must be a file, a Pillow image or a non-empty uint8 array (H, W, 3); got {got}")
    image = ImageOps.exif_transpose(image)
    if image.mode[:2] in ("I", "F", "I;"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
        low, high = values.min(initial=0), values.max(initial=0)
        high = max(high, 1.0 if image.mode == "F" else 65535.0) if low == 0 else high
        image = Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def suppress(boxes: np.ndarray, labels: np.ndarray, iou: float) -> list[int]:
    """Indices kept by NMS per class: a box (n, 4) is dropped if it overlaps an earlier kept one by more than `iou`."""
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared, area, kept = (high - low).clip(0).prod(2), (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1), list[int]()
    rivals = (shared / np.maximum(area[:, None] + area - shared, 1e-9) > iou) & (labels[:, None] == labels) & (iou < 1)
    for i, row in enumerate(rivals):
        kept += [] if row[kept].any() else [i]
    return kept
