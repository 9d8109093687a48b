"""Time everything that `dino eval` computes besides inference: the 12 metrics, matches, curves, TIDE, LRP, intervals.

    python benchmarks/analysis.py [--images 1000] [--detections 100] [--classes 80] [--repeats 3] [--backend auto]

Detections and annotations are already in memory; the page of --report has no images.
"""

import argparse
import itertools
import statistics
import time

from evaluation import random_data

from dinocore.evaluate.analysis import NUM_SAMPLES, analyse
from dinocore.evaluate.answer import to_json
from dinocore.evaluate.coco import coco_metrics


def main() -> None:
    """Print the median and maximum seconds of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="auto", help="auto, pycocotools or hotcoco")
    options = parser.parse_args()
    annotations, results = random_data(options.images, options.detections, options.classes)
    parts: dict[str, list[float]] = {"the judge's 12 numbers": [], "analysis": [], "as JSON": [], "together": []}
    parts["processor time"] = []
    for _ in range(options.repeats):
        times, busy = [time.perf_counter()], time.process_time()
        metrics = coco_metrics(annotations, results, options.backend)
        times.append(time.perf_counter())
        analysis = analyse(annotations, results)
        times.append(time.perf_counter())
        to_json(analysis)
        times.append(time.perf_counter())
        parts["processor time"].append(time.process_time() - busy)
        spent = [after - before for before, after in itertools.pairwise(times)]
        for name, seconds in zip(parts, [*spent, sum(spent)], strict=False):
            parts[name].append(seconds)
    print(f"{options.images} images x {options.detections} detections, {options.classes} classes, "
          f"{NUM_SAMPLES} samples, evaluated by {metrics.backend}")  # fmt: skip
    for name, seconds in parts.items():
        print(f"{name:25}{statistics.median(seconds):8.2f} s{max(seconds):8.2f} s at most")


if __name__ == "__main__":
    main()
