"""Put a run's weights into the package as the bundled model, in half precision and without paths of this machine.

    python benchmarks/bundle_weights.py runs/bundled/best.safetensors --origin "what it was trained on"

Cell classes keep the category ids of `dino sample-data`; the other classes are numbered after them.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from precision import pooled, validation

from dinocore.config import DataConfig
from dinocore.data.annotations import Category
from dinocore.evaluate.coco import coco_metrics, detect_all
from dinocore.evaluate.thresholds import best_thresholds
from dinocore.predict import load_detector
from dinocore.presets import load_config
from dinocore.weights.file import load_weights, save_weights
from dinocore.weights.shipped import BUNDLED

CELLS = {"RBC": 1, "WBC": 2, "Platelets": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--origin", required=True, help="one sentence for people")
    parser.add_argument("--judge", type=Path, nargs="+", metavar="DATA", help="data whose validation gives thresholds")
    parser.add_argument("--eval-scale", type=int, help="short side that images are resized to; default: the run's")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    weights = load_weights(arguments.weights)
    data = weights.config.data.model_copy(update={"path": "", "workers": "auto"})
    if arguments.eval_scale:
        data = data.model_copy(update={"eval_scale": arguments.eval_scale, "max_size": 2 * arguments.eval_scale})
    train = weights.config.train.model_copy(update={"weights": "bundled"})
    limits = load_config("tiny").eval  # the preset's current limits
    model = weights.config.model.model_copy(update={"backbone_weights": "imagenet", "extra_queries": 0})
    config = weights.config.model_copy(update={"model": model, "data": data, "train": train, "eval": limits})
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in weights.tensors.items()}
    tensors.pop("extra.content", None)  # only used in training
    left_out = ("data", "metrics")  # a path of this machine, and metrics of the file in full precision
    facts = {k: v for k, v in weights.facts.items() if k not in left_out} | {"origin": arguments.origin}
    if arguments.judge:
        facts["thresholds"] = thresholds(arguments.weights, arguments.judge, data)
    save_weights(arguments.out, tensors, config, numbered(weights.categories), facts)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, {facts}")


def numbered(categories: list[Category]) -> list[Category]:
    """The same classes, with the ids of `CELLS` for these and consecutive ids for the rest."""
    others = itertools.count(len(CELLS) + 1)
    return [c._replace(id=CELLS[c.name] if c.name in CELLS else next(others)) for c in categories]


def thresholds(weights: Path, folders: list[Path], data: DataConfig) -> dict[str, Any] | None:
    """The best thresholds on the validation splits of data folders; prints AP on each."""
    detector = load_detector(weights, amp="off")
    detector.config = detector.config.model_copy(update={"data": data})
    parts = [validation(folder, detector) for folder in folders]
    all_images = pooled(parts)
    results = [row for rows, _ in detect_all(detector, all_images) for row in rows]
    first = 0
    for folder, part in zip(folders, parts, strict=True):
        number = len(part.image_ids)
        own = [row | {"image_id": int(part.image_ids[row["image_id"] - first])} for row in results
               if first <= row["image_id"] < first + number]  # fmt: skip
        metrics = coco_metrics(part, own)
        print(f"{folder}: AP {metrics.summary['AP']:.4f}, AP50 {metrics.summary['AP50']:.4f}, {metrics.evaluated}")
        for name, one in metrics.classes.items():
            if one["AP"] >= 0:
                print(f"    {name:16} AP {one['AP']:.3f}  AP50 {one['AP50']:.3f}")
        first += number
    return best_thresholds(all_images, results)


if __name__ == "__main__":
    main()
