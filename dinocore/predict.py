"""Run a detector on images."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import to_xyxy
from .config import Config
from .data.annotations import Category
from .data.batch import Batch, View, as_batch, check_pixels, normalise, resize_pixels
from .data.images import pillow_rgb, read_image, to_rgb
from .data.transforms import to_tensor
from .errors import ConfigError, DataError, DivergedError, EnvironmentFault
from .model.dino import DINO, DinoOutput
from .model.inference import CompiledModel, for_inference
from .stream.images import detect_stream, prepare
from .stream.slices import Slicing
from .structures import Predictions, Target
from .system.device import (
    INT8,
    check_compiler,
    float32_throughout,
    pick_device,
    pick_precision,
    use_one_thread_after_fork,
)
from .system.memory import keep_memory
from .weights.fetch.locate import locate
from .weights.file import Weights, least_scores, load_weights, restore_model

if TYPE_CHECKING:
    import supervision

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class _Detections(NamedTuple):
    labels: Tensor  # (n,) int64, index into the detector's categories
    scores: Tensor  # (n,) in [0, 1]
    boxes_xyxy: Tensor  # (n, 4) in pixels of the upright image


class Detections(_Detections):
    """The detections in one image, best first: a tuple of labels, scores and boxes, with class names in `names`."""

    names: tuple[str, ...] = ()  # (n,) class names

    def __new__(cls, labels: Tensor, scores: Tensor, boxes_xyxy: Tensor, names: tuple[str, ...] = ()) -> "Detections":
        detections = super().__new__(cls, labels, scores, boxes_xyxy)
        detections.names = names
        return detections

    def _replace(self, **changes: Any) -> "Detections":
        """A copy with other labels, scores, boxes or names; by default, names follow the labels.

        Raises:
            ValueError: the field is unknown, or a new label has no known name and `names` is not given.
        """
        names, labels = changes.pop("names", None), changes.get("labels", self.labels)
        if names is None and self.names:
            known = dict(zip(self.labels.tolist(), self.names, strict=True))
            if unknown := sorted(set(labels.tolist()) - known.keys()):
                raise ValueError(f"label {unknown[0]} has no name; give names=(...), one for each label")
            names = tuple(known[k] for k in labels.tolist())
        return Detections(*super()._replace(**changes), tuple(names or ()))

    def to_supervision(self) -> "supervision.Detections":
        """Convert to `supervision.Detections`, with the names as `data["class_name"]`.

        Raises:
            EnvironmentFault: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise EnvironmentFault(
                "the package `supervision` is not installed", fix="pip install supervision"
            ) from None
        xyxy, scores, labels = (t.numpy() for t in (self.boxes_xyxy, self.scores, self.labels))
        names: Any = {"class_name": np.array(self.names, dtype=str)} if len(self.names) == len(labels) else {}
        return supervision.Detections(xyxy=xyxy, confidence=scores, class_id=labels, data=names)


class AnyDetector(Protocol):
    """What prediction and evaluation need from a detector: a model or an exported file."""

    config: Config
    categories: list[Category]
    device: torch.device
    threshold: float | None
    class_thresholds: dict[str, float]

    def detect_batch(self, batch: Batch) -> list[Detections]: ...

    def named(self, labels: Tensor, scores: Tensor, boxes_xyxy: Tensor) -> Detections: ...


class Detector:
    """A model with everything needed to run it on images."""

    def __init__(
        self,
        model: DINO,
        config: Config,
        categories: Sequence[Category],
        device: str | torch.device,
        amp: str,
        compiled: bool = False,
    ):
        """
        Args:
            amp: `auto`, `off`, `bf16`, `fp16` or `int8` (int8 matrix products, on CPUs with VNNI).
            compiled: use torch.compile for frequent image sizes; see `CompiledModel`.

        Raises:
            EnvironmentFault: torch.compile cannot run here.
        """
        use_one_thread_after_fork()
        device = torch.device(device)
        self.dtype = pick_precision(amp, device)
        self.model = for_inference(model, self.dtype, device, int8=amp == INT8)
        self.compiled: CompiledModel | None = None
        if compiled:
            check_compiler(device)
            to_compile = for_inference(model, self.dtype, device, int8=amp == INT8, to_compile=True)
            self.compiled = CompiledModel(self.model, to_compile)
        self.config = config
        self.categories = list(categories)
        self.device = device
        self.threshold: float | None = None  # score threshold with the best F1, if these weights were evaluated
        self.class_thresholds: dict[str, float] = {}  # the same per class

    def __getstate__(self) -> bytes:
        """The whole state as bytes: tensors that share memory can't be passed to a spawned process."""
        content = io.BytesIO()
        torch.save(self.__dict__, content)
        return content.getvalue()

    def __setstate__(self, state: bytes) -> None:
        keep_memory()
        use_one_thread_after_fork()
        self.__dict__.update(torch.load(io.BytesIO(state), weights_only=False))  # as safe as the enclosing pickle

    def least_scores(self) -> list[float]:
        """The lowest score at which `dino predict` shows a detection, for each class."""
        return least_scores(self.categories, self.threshold, self.class_thresholds)

    @overload
    def __call__(self, images: ImageLike) -> Detections: ...

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Detections]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Detections | list[Detections]:
        """Detect objects in one image, or in several, batched by shape; results are in order.

        An image is a path, a PIL image, a (H, W, 3) uint8 array in RGB, or a (3, H, W) uint8 tensor in RGB; an array or
        tensor with one more axis is a batch of images.

        Raises:
            DataError: an item is none of these, or a file is not an image.
            DivergedError: the model's output is not finite.
        """
        if _is_one(images):
            return self.detect(self.batch(images))
        return list(self.stream(images))

    def stream(
        self, images: ImageLike | Iterable[ImageLike], batch_size: str | int = "auto", slicing: Slicing | None = None
    ) -> Iterator[Detections]:
        """Detect objects in any number of images, in order; only a few are in memory at a time.

        Args:
            images: as for a call; a single image is a stream of one.
            batch_size: the largest batch, or `auto`.
            slicing: cut images into slices; see `dinocore.stream.slices`.

        Raises:
            ConfigError: `batch_size` or `slicing` is invalid.
            DataError: an item is not an image, or a file is not an image.
        """
        if slicing is not None and not isinstance(slicing, Slicing):
            raise ConfigError(f"slicing={slicing!r} is not a dinocore.stream.slices.Slicing; try slicing=Slicing(640)")
        if _is_one(images):
            images = [images]
        elif isinstance(images, bytes | bytearray) or hasattr(images, "read") or not isinstance(images, Iterable):
            raise _not_an_image(images)
        prepared = (prepare(self._pixels(image), self.config.data, slicing) for image in images)
        yield from detect_stream(self, prepared, batch_size)

    def batch(self, image: ImageLike) -> Batch:
        """A batch of one image, read and resized as for evaluation."""
        pixels = self._pixels(image)
        height, width = pixels.shape[-2:]
        return as_batch([View(resize_pixels(pixels, self.config.data), (height, width))])

    def detect(self, batch: Batch) -> Detections:
        """Detections of a batch with a single image."""
        return self.detect_batch(batch)[0]

    def detect_batch(self, batch: Batch) -> list[Detections]:
        """Detections of each image of a batch."""
        return self.select(self.forward(batch).final, batch.sizes)

    @torch.inference_mode()
    def forward(self, batch: Batch, targets: list[Target] | None = None) -> DinoOutput:
        """The model's full output, for inspectors; with targets, it includes denoising, as in training."""
        prepared = normalise(batch, self.config.model.pixel_mean, self.config.model.pixel_std, self.device)
        images = prepared.images.to(next(self.model.backbone.parameters()).dtype)
        may_use_tf32 = self.dtype is None and self.device.type == "cuda"
        with float32_throughout(True) if may_use_tf32 else nullcontext():
            if self.compiled is not None and targets is None:
                return self.compiled(images, prepared.padding)
            return self.model(images, prepared.padding, targets)

    def select(self, final: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """The best (query, class) pairs of each image, with boxes scaled to its height and width.

        If a model was not trained long enough to avoid duplicates, `eval.nms_iou` drops them; the paper's models need
        no NMS (official DINO also has it as an option).

        Raises:
            DivergedError: a prediction is not finite.
        """
        logits, boxes = final.logits.float().cpu(), final.boxes.float().cpu()
        if not (logits.isfinite().all() and boxes.isfinite().all()):
            raise DivergedError("the model's output is not finite; check its weights and the image's pixels")
        detections = []
        for i, (height, width) in enumerate(sizes):
            scores = logits[i].sigmoid().flatten()  # (N * K,)
            best, index = scores.topk(min(self.config.eval.max_dets, len(scores)))
            query, label = index // logits.shape[-1], index % logits.shape[-1]
            corners = to_xyxy(boxes[i, query]).clamp(0, 1) * torch.tensor([width, height, width, height])
            if self.config.eval.nms_iou < 1:
                kept = batched_nms(corners, best, label, self.config.eval.nms_iou)
                label, best, corners = label[kept], best[kept], corners[kept]
            detections.append(self.named(label, best, corners))
        return detections

    def named(self, labels: Tensor, scores: Tensor, boxes_xyxy: Tensor) -> Detections:
        """Detections with class names."""
        return Detections(labels, scores, boxes_xyxy, tuple(self.categories[k].name for k in labels.tolist()))

    def _pixels(self, image: ImageLike) -> Tensor:
        """The pixels of an image of any supported type, (3, H, W) uint8."""
        if isinstance(image, Tensor):
            check_pixels(image)
            return image
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
                raise _invalid_array(image)
            return to_tensor(to_rgb(Image.fromarray(image)))
        if isinstance(image, Image.Image):
            return to_tensor(pillow_rgb(image, self.config.data))
        if not isinstance(image, str | Path):
            raise _not_an_image(image)
        if image == "":
            raise DataError("the path of an image is empty", fix="give the path of an image file")
        if "://" in str(image):
            raise DataError(f"{image} is an address, and dino does not download images", code="DATA-URL")
        return to_tensor(read_image(Path(image), self.config.data))


def _is_one(images: object) -> TypeGuard[ImageLike]:
    """Whether this is a single image."""
    return isinstance(images, ImageLike) and getattr(images, "ndim", 3) != 4


def _invalid_array(given: np.ndarray) -> DataError:
    fix = ""
    if np.issubdtype(given.dtype, np.floating):
        fix = "if its values go from 0 to 1: (image * 255).round().astype(np.uint8)"
    elif given.ndim == 3 and len(given) == 3:
        fix = "channels last: image.transpose(1, 2, 0)"
    elif given.ndim == 3 and 1 in (len(given), given.shape[-1]):
        fix = "grey: image[..., 0]" if given.shape[-1] == 1 else "grey: image[0]"
    kind = f"{given.dtype} {given.shape}"
    return DataError(f"an image as an array must be (H, W, 3) of uint8, but this is {kind}", fix=fix)


def _not_an_image(given: object) -> DataError:
    kind = type(given).__name__
    fix = "open it: PIL.Image.open(file), or PIL.Image.open(io.BytesIO(content)) for bytes"
    message = f"an image is a path, a PIL image, an array or a tensor, but this is {kind}"
    return DataError(message, fix=fix if isinstance(given, bytes | bytearray) or hasattr(given, "read") else "")


def load_detector(
    path: str | Path | None = None, device: str | torch.device = "auto", amp: str = "auto", compiled: bool = False
) -> Detector:
    """Load a detector from weights, by default the bundled model.

    Args:
        path: as for `--weights`: a file, a run folder, a published name, `hf:org/name` or an address.
        amp: as for `Detector`.
        compiled: as for `Detector`.

    Raises:
        CheckpointError: the file is not usable.
        EnvironmentFault: no such device, the download failed, or torch.compile cannot run here.
    """
    where = locate("bundled" if path is None else path)
    chosen = pick_device(device)
    return detector_from(load_weights(where), where, chosen, amp, compiled)


def detector_from(weights: Weights, where: Path, device: torch.device, amp: str, compiled: bool = False) -> Detector:
    """A detector from loaded weights."""
    keep_memory()
    model = restore_model(weights, where)
    detector = Detector(model, weights.config, weights.categories, device, amp, compiled)
    detector.threshold, detector.class_thresholds = weights.threshold, weights.class_thresholds
    return detector
