"""Where deformable attention looks: the sampling points and weights that a layer used, for one query or one token."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...boxes import to_pixels
from ...data.batch import Batch
from ...errors import ConfigError
from ...model.deform_attn import MSDeformAttn
from ...model.ops import Sampled, reference, sample, watch_sampling
from ...predict import Detector


class Attention(NamedTuple):
    """What one query of one layer looked at; places in pixels of the upright image, heads from 0."""

    part: str  # "decoder" or "encoder"
    layer: int  # from 0
    index: int  # of the query, or of the token among those of all levels
    level: int | None  # of the token
    label: str  # the query's best class in the last layer, or ""
    score: float  # of that class
    box: list[float] | None  # the query's answer in the last layer, x0 y0 x1 y1
    center: list[float]  # of that box, or of the token
    points: Tensor  # (M, L, P, 2) x and y
    weights: Tensor  # (M, L, P), of a head they sum to 1
    size: tuple[int, int]  # height and width of the image
    error: float  # how far the sum over these points is from the layer's own, as a share of its largest number

    def rows(self) -> Iterator[tuple[int, int, float, float, float]]:
        """Head, level, x, y and weight of every point."""
        for head, level, point in itertools.product(*map(range, self.weights.shape)):
            yield head, level, *self.points[head, level, point].tolist(), float(self.weights[head, level, point])

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        names = ("part", "layer", "index", "level", "label", "score", "box", "center", "error")
        heads: list[list[dict[str, float]]] = [[] for _ in self.weights]
        for head, level, x, y, weight in self.rows():
            heads[head].append({"level": level, "x": x, "y": y, "weight": weight})
        return {name: getattr(self, name) for name in names} | {"heads": heads}


@contextmanager
def record_sampling(attention: MSDeformAttn) -> Iterator[list[Sampled]]:
    """Collect what this layer samples within the block. Meanwhile it runs the form that has places and weights."""
    records: list[Sampled] = []
    before = attention.sample

    def recording(*arguments: Any) -> Tensor:
        with watch_sampling(records.append):
            return sample(*arguments)

    attention.sample = recording
    try:
        yield records
    finally:
        attention.sample = before


def attention_of_query(detector: Detector, batch: Batch, layer: int = -1, query: int | None = None) -> Attention:
    """Where a decoder layer looks for a query of the batch's only image; default: the most confident one.

    Raises:
        ConfigError: there is no such layer or query.
    """
    layers = detector.model.decoder.layers
    layer = _counted(layer, len(layers), "decoder layer", from_last=True)
    with record_sampling(layers[layer].cross_attn) as records:  # pyright: ignore[reportArgumentType]
        output = detector.forward(batch)
    scores, labels = output.final.logits[0].float().cpu().sigmoid().max(-1)  # (N,)
    query = int(scores.argmax()) if query is None else _counted(query, len(scores), "query")
    box = to_pixels(output.final.boxes[0, query], batch.sizes[0]).tolist()
    looked = _looked(records[0], query, batch.sizes[0])
    name = detector.categories[int(labels[query])].name
    center = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    return Attention("decoder", layer, query, None, name, float(scores[query]), box, center, *looked)


def attention_at(
    detector: Detector, batch: Batch, pixel: tuple[float, float], layer: int = -1, level: int = 0
) -> Attention:
    """Where an encoder layer looks for the token of a level that covers a pixel (x, y) of the upright image.

    Raises:
        ConfigError: there is no such layer or level, or the pixel is not in the image.
    """
    layers = detector.model.encoder.layers
    layer = _counted(layer, len(layers), "encoder layer", from_last=True)
    height, width = batch.sizes[0]
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ConfigError(f"--at {pixel[0]:g},{pixel[1]:g} is outside of the image of {width} x {height} pixels")
    with record_sampling(layers[layer].attn) as records:  # pyright: ignore[reportArgumentType]
        detector.forward(batch)
    shapes = records[0].shapes
    level = _counted(level, len(shapes), "level")
    rows, columns = shapes[level]
    row, column = int(pixel[1] / height * rows), int(pixel[0] / width * columns)
    index = sum(h * w for h, w in shapes[:level]) + row * columns + column
    center = [(column + 0.5) / columns * width, (row + 0.5) / rows * height]
    looked = _looked(records[0], index, batch.sizes[0])
    return Attention("encoder", layer, index, level, "", 0.0, None, center, *looked)


def _looked(used: Sampled, index: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[int, int], float]:
    """Places and weights of a query, and what they leave unexplained of the layer's own answer."""
    locations, weights = (x[:1, index : index + 1].float() for x in (used.locations, used.weights))
    own = used.output[0, index].float()
    again = reference.sample(used.value[:1].float(), used.shapes, locations, weights)[0, 0]
    error = float((again - own).abs().max() / own.abs().max().clamp(min=1e-9))
    points = locations[0, 0].cpu() * torch.tensor([size[1], size[0]])  # one image has no padding
    return points, weights[0, 0].cpu(), size, error


def _counted(index: int, count: int, what: str, from_last: bool = False) -> int:
    """An index from 0; with `from_last`, negative ones count from the last."""
    if not (-count if from_last else 0) <= index < count:
        raise ConfigError(f"there is no {what} {index}; the model has {count}, from 0 to {count - 1}")
    return index % count
