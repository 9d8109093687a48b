"""Make a smaller copy of a data set, for measurements that don't need all of it."""

from pathlib import Path

import numpy as np

from dinocore.config import DataConfig
from dinocore.data.annotations import choose_images, read_annotations
from dinocore.data.formats.export import write_dataset
from dinocore.data.formats.layout import find_layout


def subset(name: str, where: str, folder: Path) -> Path:
    """The folder DIR itself or, if numbers are given, a COCO copy in `folder` with this many images of each split.

    Args:
        where: DIR, DIR:VAL or DIR:TRAIN+VAL; images are spread evenly over a split, and 0 omits a split.
    """
    path, _, numbers = where.rpartition(":")
    if not numbers.replace("+", "").isdigit():
        return Path(where)
    *train, val = map(int, numbers.split("+"))
    out = folder / f"{name}-{numbers}"
    if not out.exists():
        splits = {}
        for split, at in find_layout(Path(path)).splits().items():
            annotations = read_annotations(at, None, DataConfig())
            number = min({"train": sum(train), "val": val}[split], len(annotations.image_ids))
            if number:
                chosen = np.arange(number) * len(annotations.image_ids) // number
                splits[split] = choose_images(annotations, chosen), at.format
        list(write_dataset(splits, "coco", out, link=False))
    return out
