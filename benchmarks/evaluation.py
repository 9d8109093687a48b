"""Time COCO evaluation with hotcoco and pycocotools, interleaved in one run, and check that their results are equal.

    python benchmarks/evaluation.py [--images 1000] [--detections 100] [--classes 80] [--threads 2] [--json FILE]

The time covers everything from annotations and detections in memory to the 12 metrics. Backends take turns, so that
other load on the machine affects them alike: compare ratios, not times of different runs.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from turns import write

from dinocore.data.annotations import Annotations, Category
from dinocore.evaluate.coco import coco_metrics

BACKENDS = ("pycocotools", "hotcoco")
OBJECTS = 7.3  # per image, as in COCO val2017
SIDE = 640


def main() -> None:
    """Print a table of medians and write it to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of hotcoco; pycocotools has one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # read when hotcoco first computes
    annotations, results = random_data(options.images, options.detections, options.classes)
    print(f"{len(annotations.boxes)} objects and {len(results)} detections of {options.classes} classes in "
          f"{options.images} images, {options.threads} threads")  # fmt: skip
    row = measure(annotations, results, options.repeats)
    print(f"{'backend':15}{'median ms':>12}{'least':>10}{'most':>10}")
    for backend in BACKENDS:
        numbers = (statistics.median(row[backend]), min(row[backend]), max(row[backend]))
        print(f"{backend:15}{1000 * numbers[0]:12.1f}{1000 * numbers[1]:10.1f}{1000 * numbers[2]:10.1f}")
    print(f"ratio of medians {row['ratio']:.1f}; all numbers equal, AP {row['AP']:.4f}")
    write(options.json, vars(options), [row])


def measure(annotations: Annotations, results: list[dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Seconds of each repeat for each backend, and the ratio of the medians."""
    seconds: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    found = {}
    coco_metrics(annotations, results[:100], "hotcoco")  # the first call warms up: import, threads
    for _ in range(repeats):
        for backend in BACKENDS:
            start = time.perf_counter()
            found[backend] = coco_metrics(annotations, results, backend)
            seconds[backend].append(time.perf_counter() - start)
    slow, fast = (found[backend] for backend in BACKENDS)
    assert (slow.backend, fast.backend) == BACKENDS
    assert slow.summary == fast.summary and slow.classes == fast.classes, "the backends disagree"
    slow_median, fast_median = (statistics.median(seconds[backend]) for backend in BACKENDS)
    return seconds | {"ratio": slow_median / fast_median} | fast.summary


def random_data(num_images: int, per_image: int, num_classes: int) -> tuple[Annotations, list[dict[str, Any]]]:
    """Objects with COCO's sizes, 2 % of them crowds; 40 % of the detections are near an object."""
    random = np.random.default_rng(0)
    counts = random.poisson(OBJECTS, num_images)
    boxes, labels = random_boxes(random, counts.sum()), random.integers(0, num_classes, counts.sum())
    annotations = Annotations(
        file=Path("random"),
        image_root=Path("."),
        categories=[Category(k + 1, f"class {k + 1}") for k in range(num_classes)],
        image_ids=np.arange(num_images) * 7 + 3,
        file_names=np.array([b""] * num_images),
        sizes=np.full((num_images, 2), SIDE),
        starts=np.concatenate([[0], counts.cumsum()]),
        boxes=boxes,
        labels=labels,
        area=boxes[:, 2:].prod(1) * random.uniform(0.4, 1, len(boxes)),
        crowd=random.random(len(boxes)) < 0.02,
        notes=[],
    )
    results = []
    for index, image_id in enumerate(annotations.image_ids.tolist()):
        found, kinds = random_boxes(random, per_image), random.integers(0, num_classes, per_image)
        if counts[index]:
            near = np.flatnonzero(random.random(per_image) < 0.4)
            chosen = random.integers(annotations.starts[index], annotations.starts[index + 1], len(near))
            found[near] = boxes[chosen] * random.normal(1, 0.05, (len(near), 4))
            kinds[near] = labels[chosen]
        scores = random.random(per_image, dtype=np.float32)
        rows = zip((kinds + 1).tolist(), found.tolist(), scores.tolist(), strict=True)
        results += [{"image_id": image_id, "category_id": k, "bbox": box, "score": score} for k, box, score in rows]
    return annotations, results


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4): x, y, width, height in pixels; widths from a few pixels to the whole image."""
    sizes = random.lognormal(4, 0.9, (count, 2)).clip(2, SIDE)
    return np.concatenate([random.uniform(0, 1, (count, 2)) * (SIDE - sizes), sizes], axis=1)


if __name__ == "__main__":
    main()
