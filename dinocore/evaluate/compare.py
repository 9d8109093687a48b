"""Compare two sets of results on the same images, with confidence intervals for the differences."""

from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from .analysis import Analysis, ImageErrors, image_errors
from .answer import to_json
from .bootstrap import Interval, interval

MAX_IMAGES = 10


class MetricDifference(NamedTuple):
    """A metric of a and b; -1 or None if undefined."""

    a: float | None
    b: float | None
    change: float | None  # b - a
    interval: Interval | None  # of the change, from the same bootstrap samples for both


class ImageDifference(NamedTuple):
    """Both models' errors in an image, each at its own best threshold."""

    a: ImageErrors
    b: ImageErrors

    @property
    def change(self) -> int:
        """The number of errors of b minus that of a."""
        return self.b.wrong + self.b.missed - self.a.wrong - self.a.missed


class Comparison(NamedTuple):
    """The differences between analyses a and b."""

    a: Analysis
    b: Analysis
    summary: dict[str, MetricDifference]  # the 12 COCO numbers, optimal LRP and the calibration errors
    classes: dict[str, MetricDifference]  # AP
    tide: dict[str, MetricDifference]
    images: list[ImageDifference]  # those that differ most


def compare(a: Analysis, b: Analysis) -> Comparison:
    """Compare analyses of the same annotations.

    Raises:
        DataError: they are for different images, objects or classes, so that their metrics are not comparable.
    """
    same = a.matches.categories == b.matches.categories and all(
        np.array_equal(left, right)
        for left, right in zip((a.matches.image_ids, *a.matches.objects), (b.matches.image_ids, *b.matches.objects),
                               strict=True)
    )  # fmt: skip
    if not same:
        raise DataError("the two were evaluated on different annotations; evaluate both on the same split")
    summary = {}
    for name, value in a.summary.items():
        summary[name] = _difference(value, b.summary[name], _summary_samples(a, b, name))
    summary["LRP"] = _difference(a.lrp["error"], b.lrp["error"])
    summary["ECE"] = _difference(a.calibration.ece, b.calibration.ece)
    classes = {
        one.name: _difference(one.averages["AP"], other.averages["AP"], _class_samples(a, b, k))
        for k, (one, other) in enumerate(zip(a.classes, b.classes, strict=True))
    }
    tide = {name: _difference(gain, b.tide.gain[name]) for name, gain in a.tide.gain.items()}
    return Comparison(a, b, summary, classes, tide, _images(a, b))


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain numbers, with everything from `to_json` for each side."""

    def plain(differences: dict[str, MetricDifference]) -> dict[str, Any]:
        return {
            name: one._asdict() | {"interval": list(one.interval) if one.interval else None}
            for name, one in differences.items()
        }

    return {
        "summary": plain(comparison.summary),
        "classes": plain(comparison.classes),
        "tide": plain(comparison.tide),
        "pictures": [{"a": one.a._asdict(), "b": one.b._asdict(), "change": one.change} for one in comparison.images],
        "sides": {"a": to_json(comparison.a), "b": to_json(comparison.b)},
    }


def _images(a: Analysis, b: Analysis) -> list[ImageDifference]:
    sides = (image_errors(one.matches, one.threshold) for one in (a, b))
    pairs = [ImageDifference(*pair) for pair in zip(*sides, strict=True)]
    pairs.sort(key=lambda pair: -abs(pair.change))
    return [pair for pair in pairs[:MAX_IMAGES] if pair.change]


def _difference(a: float | None, b: float | None, samples: np.ndarray | None = None) -> MetricDifference:
    if a is None or b is None or a < 0 or b < 0:
        return MetricDifference(a, b, None, None)
    bounds = None if samples is None else interval(samples, b - a, (-1.0, 1.0))
    return MetricDifference(a, b, b - a, bounds)


def _summary_samples(a: Analysis, b: Analysis, name: str) -> np.ndarray | None:
    if a.samples is None or b.samples is None or name not in a.samples.values:
        return None
    return b.samples.means(name) - a.samples.means(name)


def _class_samples(a: Analysis, b: Analysis, k: int) -> np.ndarray | None:
    if a.samples is None or b.samples is None:
        return None
    return b.samples.values["AP"][:, k] - a.samples.values["AP"][:, k]
