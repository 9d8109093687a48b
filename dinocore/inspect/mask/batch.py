"""The objects of a real batch, for its mask: of the pictures that are named, or of a training's first forward pass."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import torch

from ...boxes import to_cxcywh
from ...config import Config
from ...data.annotations import Annotations
from ...data.loaders import training_steps
from ...errors import DataError
from ...structures import Target
from .mask import Objects


def first_batch(annotations: Annotations, config: Config) -> Objects:
    """What `dino train` gives to the model first: the loader's own pictures, with the objects that cropping left."""
    alone = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})
    chunk = config.train.images_per_forward
    chunk = config.train.batch_size if isinstance(chunk, str) else chunk
    batch = next(iter(training_steps(annotations, alone, chunk, 0, 1)))[0]
    return _objects(annotations, batch.indices, batch.targets)


def named_batch(splits: Sequence[Annotations], images: Sequence[str], config: Config) -> Objects:
    """All objects that can be learned from of these pictures, as a batch without augmentation.

    Raises:
        DataError: a picture has no annotations.
    """
    parts = [_one(splits, image, config) for image in images]
    joined = zip(*((part.targets[0], part.files[0], part.names[0]) for part in parts), strict=True)
    return Objects(*map(list, joined))


def _one(splits: Sequence[Annotations], image: str, config: Config) -> Objects:
    known = []
    for annotations in splits:
        paths = [annotations.path(index) for index in range(len(annotations.image_ids))]
        for index, path in enumerate(paths):
            if path.name == Path(image).name and (path.name == image or path.resolve() == Path(image).resolve()):
                return _objects(annotations, [index], [_target(annotations, index, config)])
        known += [path.name for path in paths]
    near = get_close_matches(Path(image).name, known, n=1) or known[:1]
    files = " and ".join(str(annotations.file) for annotations in splits)
    raise DataError(f"--images {image}: {files} do not have it" + (f"; they have {near[0]}" if near else ""))


def _target(annotations: Annotations, index: int, config: Config) -> Target:
    rows = annotations.objects(index)
    kept = annotations.trainable(config.data.min_box_size)[rows]
    boxes = torch.from_numpy(annotations.boxes[rows][kept]).float()  # (T, 4) x y width height
    size = torch.from_numpy(annotations.sizes[index]).float().tile(2)
    corners = (torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1) / size).clamp(0, 1)
    return Target(torch.from_numpy(annotations.labels[rows][kept]), to_cxcywh(corners), seed=0)


def _objects(annotations: Annotations, indices: Sequence[int], targets: list[Target]) -> Objects:
    files = [annotations.path(index).name for index in indices]
    names = [[annotations.categories[label].name for label in target.labels.tolist()] for target in targets]
    return Objects(targets, files, names)
