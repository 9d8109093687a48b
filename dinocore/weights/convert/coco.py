"""COCO's 80 classes: official DINO numbers them by their ids up to 90, the other codebases from 0 to 79."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...data.annotations import Category

NUM_IDS = 91  # number of official DINO's logits, one for each id below 91, eleven of which are not classes
UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip
IDS = [number for number in range(NUM_IDS) if number not in UNUSED]
CATEGORIES = [Category(number, name) for number, name in zip(IDS, NAMES, strict=True)]


def all_ids() -> list[Category]:
    """A category for every id below 91, one for each of official DINO's logits."""
    names = {category.id: category.name for category in CATEGORIES}
    return [Category(number, names.get(number, f"unused {number}")) for number in range(NUM_IDS)]


def without_unused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the rows of ids that are not classes; the others are unchanged, bit for bit.

    The first stage then no longer selects tokens by the score of an unused class, which trained weights keep close
    to 0.
    """
    rows = torch.tensor(IDS)
    reduced = dict(tensors)
    for key, value in tensors.items():
        if ".class_head" in key:
            reduced[key] = value[rows]
        elif key == "denoiser.label_embed.weight":
            spare = torch.arange(NUM_IDS, len(value))
            reduced[key] = value[torch.cat([rows, spare])]
    return reduced
