"""COCO evaluation backends: pycocotools, the reference, or hotcoco, which computes the same numbers much faster."""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.annotations import Annotations, as_coco_dict
from ..errors import ConfigError, EnvironmentFault
from ..system.extras import install_line

Results = Sequence[dict[str, Any]]  # rows in COCO's results format: image_id, category_id, bbox, score


class BackendMetrics(NamedTuple):
    """Metrics for 10 IoU thresholds, R recalls, K classes by id, 4 areas, and at most 1, 10 or 100 detections."""

    summary: np.ndarray  # (12,), in COCO's order
    precision: np.ndarray  # (10, R, K, 4, 3); -1 if there are no objects to evaluate on
    backend: str


def choose_backend(requested: str) -> str:
    """The backend that `auto`, `pycocotools` or `hotcoco` selects on this machine.

    Raises:
        ConfigError: it is none of these.
        EnvironmentFault: hotcoco is requested but not installed.
    """
    if requested not in ("auto", *BACKENDS):
        raise ConfigError(f"unknown eval.backend `{requested}`; choose auto, {' or '.join(BACKENDS)}")
    if requested == "pycocotools":
        return requested
    try:
        import hotcoco  # noqa: F401
    except ImportError as error:
        if requested == "auto":
            return "pycocotools"
        raise EnvironmentFault(
            f"eval.backend = {requested!r} cannot be used ({error})",
            fix=f"{install_line('fast')}, or --set eval.backend=auto",
        ) from None
    return "hotcoco"


def run_backend(annotations: Annotations, results: Results, backend: str) -> BackendMetrics:
    """Evaluate results with a backend from `choose_backend`; all their images and classes must be annotated."""
    try:
        return BACKENDS[backend](annotations, results)
    except ValueError:  # hotcoco rejects negative ids and NaN scores, pycocotools accepts them
        if backend == "pycocotools":
            raise
        return _by_pycocotools(annotations, results)


def _by_pycocotools(annotations: Annotations, results: Results) -> BackendMetrics:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints 25 lines
        content = as_coco_dict(annotations)
        truth, detections = _indexed(content), _indexed(content | {"annotations": []})
        if results:
            rows = [dict(result) for result in results]  # copies, because pycocotools modifies them
            detections = truth.loadRes(rows)  # pyright: ignore[reportArgumentType]  the stub only accepts file names
        run = COCOeval(truth, detections, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return BackendMetrics(np.array(run.stats), run.eval["precision"], "pycocotools")


def _by_hotcoco(annotations: Annotations, results: Results) -> BackendMetrics:
    import hotcoco

    known = annotations.labels >= 0
    ids = np.array([category.id for category in annotations.categories], dtype=np.int64)
    truth = hotcoco.COCO.from_arrays(
        [{"id": i, "width": w, "height": h} for i, (w, h) in _images(annotations)],
        [category._asdict() for category in annotations.categories],
        np.repeat(annotations.image_ids, np.diff(annotations.starts))[known],
        ids[annotations.labels[known]],
        annotations.boxes[known],
        area=annotations.area[known],
        iscrowd=annotations.crowd[known],
    )
    # Rows instead of an (N, 7) array, because building the array takes as long and rounds ids above 2^53.
    run = hotcoco.COCOeval(truth, truth.load_res(list(results)), "bbox")
    run.evaluate()
    run.accumulate()  # without summarize, which prints from Rust, bypassing Python's stdout
    accumulated = run.eval or {}
    precision = accumulated["precision"]
    return BackendMetrics(summarize(precision, accumulated["recall"]), precision, "hotcoco")


BACKENDS: dict[str, Callable[[Annotations, Results], BackendMetrics]] = {
    "pycocotools": _by_pycocotools,
    "hotcoco": _by_hotcoco,
}


def mean_of_known(values: np.ndarray) -> float:
    """The mean of all values except -1, which means undefined; -1 if there are no others."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else -1.0


def summarize(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """COCO's 12 numbers, (12,): six AP with 100 detections, then six AR, the first three with 1, 10 and 100."""
    ap, ar = precision[..., -1], recall[..., -1]  # (10, R, K, 4), (10, K, 4)
    parts = [ap[..., 0], ap[0, ..., 0], ap[5, ..., 0], ap[..., 1], ap[..., 2], ap[..., 3]]
    parts += [recall[..., 0, 0], recall[..., 0, 1], ar[..., 0], ar[..., 1], ar[..., 2], ar[..., 3]]
    return np.array([mean_of_known(part) for part in parts])


def _images(annotations: Annotations) -> zip:
    return zip(annotations.image_ids.tolist(), annotations.sizes.tolist(), strict=True)


def _indexed(content: Any) -> COCO:
    """A pycocotools dataset with this content, without a file."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco
