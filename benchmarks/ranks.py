"""How many images a second `dino predict` does with one rank and with several, each on one thread without workers.

    python benchmarks/ranks.py [--ranks 2] [--images 200 1000] [--weights cells] [--repeats 3] [--json FILE]

Each run is timed with few images and with many; images/s is the slope between the two, so that starting the processes,
which takes seconds, does not count. Runs take turns. Images are drawn blood smears of 320 x 240.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from turns import write

from dinocore.data.synthetic.smear import draw_smear
from dinocore.presets import override
from dinocore.weights.fetch.locate import locate
from dinocore.weights.file import load_weights, save_weights


def main() -> None:
    """Print images/s of both and their ratio, and write them to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--images", type=int, nargs=2, default=(200, 1000), metavar=("FEW", "MANY"))
    parser.add_argument("--weights", default="cells")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    few, many = options.images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = without_workers(options.weights, folder)
        for count in (few, many):
            draw(folder / str(count), count)
        rates: dict[int, list[float]] = {1: [], options.ranks: []}
        for _ in range(options.repeats):
            for ranks, found in rates.items():
                seconds = [timed(folder, weights, count, ranks) for count in (few, many)]
                found.append((many - few) / (seconds[1] - seconds[0]))
                print(f"  {ranks} ranks: {found[-1]:8.1f} images/s", file=sys.stderr, flush=True)
    one, several = (statistics.median(found) for found in rates.values())
    print(f"1 rank {one:.1f} images/s, {options.ranks} ranks {several:.1f}, ratio {several / one:.2f}")
    rows = [{"ranks": ranks, "images_per_second": found} for ranks, found in rates.items()]
    write(options.json, {"images": [few, many], "weights": options.weights, "ratio": several / one}, rows)


def without_workers(name: str, folder: Path) -> Path:
    """A copy of weights whose images are read by the rank itself."""
    weights, path = load_weights(locate(name)), folder / "weights.safetensors"
    config = override(weights.config, ["data.workers=0"], ("data",))
    save_weights(path, weights.tensors, config, weights.categories, weights.facts)
    return path


def draw(folder: Path, count: int) -> None:
    """Write so many images, of which 20 differ."""
    folder.mkdir()
    images = [Image.fromarray(draw_smear(0, k, (320, 240))[0]) for k in range(20)]
    for k in range(count):
        images[k % 20].save(folder / f"{k:06d}.jpg", quality=90)


def timed(folder: Path, weights: Path, count: int, ranks: int) -> float:
    """Seconds of one command."""
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dinocli", "predict", str(folder / str(count)), "--weights", str(weights)]
    command += ["--out", str(out), "--device", "cpu", "--gpus", str(ranks)]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
