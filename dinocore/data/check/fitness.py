"""Check whether the model suits a dataset: queries, denoising, cells and anchors."""

import numpy as np

from ...config import Config
from ...words import counted
from ..annotations import Annotations
from ..findings import KEPT, Findings, Location
from ..split import evenly

MIN_TINY = 0.01  # minimum fraction of objects smaller than a cell that is reported
MIN_FAR, ANCHOR_FACTOR = 0.05, 4.0  # the same for objects that differ from all anchors by more than this factor
ROUND = 50  # suggested numbers are rounded up to multiples of this
FIRST_ANCHOR = 0.05  # side of the finest level's anchors, as a fraction of the image


def check_fitness(annotations: Annotations, config: Config, findings: Findings, trained_on: bool = True) -> None:
    """Report objects of a split that the model in the config does not suit.

    Args:
        trained_on: whether this split is trained on, so that its objects are used for denoising.
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
    tiny = (sides * scale[:, None]).max(1) < cell
    _report_if_many(annotations, np.flatnonzero(usable)[tiny], len(owners), MIN_TINY, "MODEL-CELL",
                    f"are smaller than a cell ({cell} pixels) of the finest level", findings)  # fmt: skip
    if config.model.queries != "static":
        far = anchor_distance(sides / sizes, config.model.num_levels) > ANCHOR_FACTOR
        _report_if_many(annotations, np.flatnonzero(usable)[far], len(owners), MIN_FAR, "MODEL-ANCHORS",
                        _far_from_anchors(config.model.num_levels), findings)  # fmt: skip


def _far_from_anchors(num_levels: int) -> str:
    """The message about anchors, for readers who do not know the model."""
    squares = ", ".join(f"{100 * side:g}" for side in anchor_sides(num_levels))
    return (
        f"are more than {ANCHOR_FACTOR:g} times wider, narrower, higher or lower than every anchor; anchors are the "
        f"model's initial boxes, squares whose sides are {squares} % of the image's"
    )


def anchor_sides(num_levels: int) -> np.ndarray:
    """Anchor sides by level, as fractions of the image, (L,), without anchors as large as the image."""
    sides = FIRST_ANCHOR * 2.0 ** np.arange(num_levels)
    return sides[sides < 0.99]


def anchor_distance(sides: np.ndarray, num_levels: int) -> np.ndarray:
    """The factor by which the sides of each object differ from the nearest anchor's, (M, 2) -> (M,); 1 if equal.

    Args:
        sides: width and height of the objects, as fractions of the image.
    """
    ratio = sides[:, None, :] / anchor_sides(num_levels)[None, :, None]  # (M, L, 2)
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
        sufficient = -(-int(counts.max(initial=0)) // ROUND) * ROUND
        fix = f"--set {setting}={sufficient}" if setting else ""
        findings.add(code, f"{counted(len(over), 'image')} with more objects {what}", places, len(over), fix=fix)


def _report_if_many(
    annotations: Annotations, which: np.ndarray, total: int, least: float, code: str, what: str, findings: Findings
) -> None:
    """Report the objects `which` if they are at least a fraction `least` of all."""
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
    subject = f"{len(which)} of {total} objects ({len(which) / total:.0%}), in {counted(len(images), 'image')},"
    findings.add(code, f"{subject} {what}", places, len(images))
