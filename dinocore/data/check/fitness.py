"""Check a dataset against a model: queries, denoising, cells and anchors."""

import numpy as np

from ...config import Config
from ...words import counted
from ..annotations import Annotations
from ..findings import KEPT, Findings, Location
from ..split import evenly

CELL_SHARE = 0.01  # of the objects, from which on it is worth a word
ROUND = 50  # numbers of queries and the like that are proposed are multiples of it
ANCHOR_SHARE, ANCHOR_FACTOR = 0.05, 4.0
FIRST_ANCHOR = 0.05  # side of the finest level's anchors, as a share of the image


def check_fitness(annotations: Annotations, config: Config, findings: Findings, trained_on: bool = True) -> None:
    """Findings about a split and the model of a config.

    Args:
        trained_on: denoising takes objects of this split.
    """
    usable = annotations.trainable(config.data.min_box_size)
    owners = annotations.owners()[usable]
    counts = np.bincount(owners, minlength=len(annotations.image_ids))  # (I,)
    _check_counts(annotations, counts, config, findings, trained_on)
    if not usable.any():
        return
    sizes = annotations.sizes[owners].astype(np.float64)
    sides = annotations.boxes[usable, 2:]
    scale = np.minimum(config.data.eval_scale / sizes.min(1), config.data.max_size / sizes.max(1))
    cell = config.model.feature_strides[0]
    _check_share(annotations, np.flatnonzero(usable)[(sides * scale[:, None]).max(1) < cell], len(owners), CELL_SHARE,
                 "MODEL-CELL", f"are smaller than a cell ({cell} pixels) of the finest level", findings)  # fmt: skip
    if config.model.queries != "static":
        far = anchor_distance(sides / sizes, config.model.num_levels) > ANCHOR_FACTOR
        _check_share(annotations, np.flatnonzero(usable)[far], len(owners), ANCHOR_SHARE, "MODEL-ANCHORS",
                     _far_from_anchors(config.model.num_levels),
                     findings)  # fmt: skip


def _far_from_anchors(num_levels: int) -> str:
    """The finding in words that need no knowledge of the model."""
    squares = ", ".join(f"{100 * side:g}" for side in anchor_sides(num_levels))
    return (
        f"are more than {ANCHOR_FACTOR:g} times wider, narrower, higher or lower than every anchor; anchors are the "
        f"model's initial boxes, squares whose sides are {squares} % of the image's"
    )


def anchor_sides(num_levels: int) -> np.ndarray:
    """Sides of the anchors of each level, as fractions of the image, (L,); the model drops those as large as it."""
    sides = FIRST_ANCHOR * 2.0 ** np.arange(num_levels)
    return sides[sides < 0.99]


def anchor_distance(shares: np.ndarray, num_levels: int) -> np.ndarray:
    """By what factor the sides of objects (M, 2) differ from those of the nearest anchor, (M,): 1 is equal."""
    ratio = shares[:, None, :] / anchor_sides(num_levels)[None, :, None]  # (M, L, 2)
    return np.maximum(ratio, 1 / ratio).max(2).min(1)


def _check_counts(
    annotations: Annotations, counts: np.ndarray, config: Config, findings: Findings, trained_on: bool
) -> None:
    model, denoising, kept = config.model, config.model.denoising, config.eval.max_dets
    limits = [
        ("MODEL-QUERIES", model.num_queries, f"than the {model.num_queries} queries", "model.num_queries"),
        ("MODEL-DETECTIONS", kept, f"than the {kept} detections kept per image", "eval.max_dets"),
    ]
    if trained_on and (most := denoising.max_targets):
        setting = "model.denoising.num_pairs" if denoising.num_groups == "auto" else ""
        limits.append(("MODEL-DENOISING", most, f"than the {most} that denoising can use at once", setting))
    for code, limit, what, setting in limits:
        over = np.flatnonzero(counts > limit)
        over = over[np.argsort(-counts[over], kind="stable")]
        places = [
            Location(f"{annotations.path(i).name}: {counts[i]}", annotations.path(i)) for i in over[:KEPT].tolist()
        ]
        enough = -(-int(counts.max(initial=0)) // ROUND) * ROUND
        fix = f"--set {setting}={enough}" if setting else ""
        findings.add(code, f"{counted(len(over), 'image')} with more objects {what}", places, len(over), fix=fix)


def _check_share(
    annotations: Annotations, which: np.ndarray, total: int, least: float, code: str, what: str, findings: Findings
) -> None:
    if len(which) < least * total:
        return
    owners = annotations.owners()[which]
    images, counts = np.unique(owners, return_counts=True)
    shown = evenly(len(images), KEPT)
    places = [
        Location(
            f"{annotations.path(i).name}: {count}", annotations.path(i), annotations.boxes[which[owners == i]].tolist()
        )
        for i, count in zip(images[shown].tolist(), counts[shown].tolist(), strict=True)
    ]
    share = f"{len(which)} of {total} objects ({len(which) / total:.0%}), in {counted(len(images), 'image')},"
    findings.add(code, f"{share} {what}", places, len(images))
