"""Images per second of `dino predict`: one by one, in batches with read-ahead by workers, and on several ranks.

    python benchmarks/throughput.py [--preset tiny] [--size 320x427] [--images 200 1000] [--repeats 3] [--json FILE]
    python benchmarks/throughput.py --preset r50-4scale --size 800x1333 --images 4 20

Each way is timed with few and with many images; images/s is the slope between the two, so that the seconds for starting
a process do not count. The ways take turns. Images are synthetic blood smears; weights are those for cells, or random
for another preset. Ranks have one thread each; the other ways have OMP_NUM_THREADS threads.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from turns import write

from dinocore import build_model
from dinocore.data.annotations import Category
from dinocore.data.synthetic.smear import draw_smear
from dinocore.presets import load_config, override
from dinocore.weights.fetch.locate import locate
from dinocore.weights.file import load_weights, save_weights


class Way(NamedTuple):
    """A way to run the command."""

    batch_size: str
    workers: int  # for reading ahead
    ranks: int = 1
    one_thread: bool = False


WAYS = {
    "one at a time": Way("1", 0),
    "batches": Way("auto", 1),
    "1 rank, 1 thread": Way("auto", 0, one_thread=True),
    "2 ranks, 1 thread each": Way("auto", 0, ranks=2, one_thread=True),
}


def main() -> None:
    """Print the median images/s of each way, and write all measurements to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", default="320x427", metavar="HxW")
    parser.add_argument("--images", type=int, nargs=2, default=(200, 1000), metavar=("FEW", "MANY"))
    parser.add_argument("--ways", choices=[*WAYS], nargs="+", default=[*WAYS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    few, many = options.images
    height, width = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = {workers: weights_with(options.preset, workers, folder) for workers in (0, 1)}
        for count in (few, many):
            draw(folder / str(count), count, (width, height))
        rates: dict[str, list[float]] = {way: [] for way in options.ways}
        for _ in range(options.repeats):
            for way, found in rates.items():
                seconds = [timed(folder, weights[WAYS[way].workers], count, WAYS[way]) for count in (few, many)]
                found.append((many - few) / (seconds[1] - seconds[0]))
                print(f"  {way:24}{found[-1]:8.2f} images/s", file=sys.stderr, flush=True)
    for way, found in rates.items():
        print(f"{way:24}{statistics.median(found):8.2f} images/s")
    rows = [{"way": way, "images_per_second": found} for way, found in rates.items()]
    write(options.json, {"preset": options.preset, "size": options.size, "images": [few, many]}, rows)


def weights_with(preset: str, workers: int, folder: Path) -> Path:
    """Weights for cells with `tiny`, random ones for other presets, with this `data.workers` in their config."""
    path = folder / f"{workers}-workers.safetensors"
    if preset == "tiny":
        weights = load_weights(locate("cells"))
        config = override(weights.config, [f"data.workers={workers}"], ("data",))
        save_weights(path, weights.tensors, config, weights.categories, weights.facts)
    else:
        config = load_config(preset, [f"data.workers={workers}", 'model.backbone_weights="none"'])
        categories = [Category(k, str(k)) for k in range(config.model.num_classes)]
        save_weights(path, build_model(config.model).state_dict(), config, categories, {})
    return path


def draw(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write `count` images, at most 20 of them different."""
    folder.mkdir()
    images = [Image.fromarray(draw_smear(0, k, size)[0]) for k in range(min(count, 20))]
    for k in range(count):
        images[k % 20].save(folder / f"{k:06d}.jpg", quality=90)


def timed(folder: Path, weights: Path, count: int, way: Way) -> float:
    """Seconds for one command."""
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dinocli", "predict", str(folder / str(count)), "--weights", str(weights)]
    command += ["--out", str(out), "--device", "cpu", "--gpus", str(way.ranks), "--batch-size", way.batch_size]
    command += ["--threshold", "0.9"]
    begun = time.perf_counter()
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if way.one_thread else {})
    subprocess.run(command, check=True, capture_output=True, env=env)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
