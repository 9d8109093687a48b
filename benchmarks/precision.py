"""The effect of the precision on AP: one model in float32 and in another precision, on several data sets together.

    python benchmarks/precision.py bccd/ drawn/ [--amp auto] [--weights FILE] [--json FILE]

The validation splits of all data sets are evaluated together, as if they were one.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from turns import write

from dinocore import load_detector
from dinocore.data.annotations import Annotations
from dinocore.data.dataset import open_split
from dinocore.evaluate.coco import coco_metrics, detect_all
from dinocore.predict import Detector


def main() -> None:
    """Print the 12 metrics in both precisions, and their differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="folders as `dino train --data` takes them")
    parser.add_argument("--weights", type=Path, help="default: the bundled ones")
    parser.add_argument("--amp", default="auto", help="the other precision: auto, bf16 or int8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for amp in ("off", options.amp):
        detector = load_detector(options.weights, amp=amp)
        annotations = pooled([validation(folder, detector) for folder in options.data])
        results = [row for rows, _ in detect_all(detector, annotations) for row in rows]
        name = "int8" if amp == "int8" else str(detector.dtype or "float32").removeprefix("torch.")
        found[name] = coco_metrics(annotations, results).summary
    print(f"{len(annotations.image_ids)} images, {len(annotations.boxes)} objects, x 100")
    print(f"{'':8}" + "".join(f"{name:>12}" for name in found) + f"{'difference':>12}")
    for key in next(iter(found.values())):
        values = [100 * summary[key] for summary in found.values()]
        print(f"{key:8}" + "".join(f"{value:12.2f}" for value in values) + f"{values[-1] - values[0]:12.2f}")
    write(options.json, vars(options), [{"precision": name, **summary} for name, summary in found.items()])


def validation(folder: Path, detector: Detector) -> Annotations:
    """The validation split of a data set, with the model's class indices."""
    return open_split(
        detector.config.data.model_copy(update={"path": str(folder.absolute())}), "val", detector.categories
    )


def pooled(parts: Sequence[Annotations]) -> Annotations:
    """Several splits as one, with new image ids."""
    files = [os.fsencode(part.path(i).absolute()) for part in parts for i in range(len(part.image_ids))]
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("sizes", "boxes", "labels", "area", "crowd")
    }
    return parts[0]._replace(
        image_root=Path("/"),
        image_ids=np.arange(len(files)),
        file_names=np.array(files),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        **joined,
    )


if __name__ == "__main__":
    main()
