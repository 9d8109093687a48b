"""Time `dino check-data --decode` on synthetic images.

    python benchmarks/check_data.py [--images 5000] [--json FILE]

Images are 640 x 480 JPEGs. 100 are drawn; the others are shifted and darkened copies, so that there are no duplicates
and drawing doesn't take an hour.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from turns import write

from dinocore.data.synthetic.sample import write_sample_data

DRAWN = 100


def main() -> None:
    """Print seconds and images/s, and write them to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.images)
        start = time.perf_counter()
        command = [sys.executable, "-m", "dinocli", "check-data", str(folder), "--decode", "--json"]
        run = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    found = json.loads(run.stdout)
    kinds = {finding["code"]: finding["count"] for finding in found["findings"]}
    row = {"seconds": round(seconds, 1), "pictures_per_s": round(options.images / seconds, 1), "findings": kinds}
    print(row)
    write(options.json, {"images": options.images}, [row])


def make(folder: Path, count: int) -> None:
    """Create a COCO folder with this many training images, and no validation split."""
    write_sample_data(folder, num_images=DRAWN, seed=5)
    file = folder / "annotations" / "instances_train2017.json"
    document = json.loads(file.read_text())
    drawn = [(image, Image.open(folder / "train2017" / image["file_name"]).copy()) for image in document["images"]]
    shutil.rmtree(folder / "val2017")
    (folder / "annotations" / "instances_val2017.json").unlink()
    images = []
    for n in range(count):
        row, image = drawn[n % len(drawn)]
        rng = np.random.default_rng(n)
        pixels = np.roll(np.asarray(image), tuple(rng.integers(0, 400, 2)), (0, 1)).astype(np.float32)
        name = f"{n:06d}.jpg"
        Image.fromarray((pixels * rng.uniform(0.6, 1)).astype(np.uint8)).save(folder / "train2017" / name, quality=85)
        images.append(row | {"id": n, "file_name": name})
    rows = [{"id": n, "image_id": n, "category_id": 1, "bbox": [9, 9, 50, 50]} for n in range(count)]
    file.write_text(json.dumps(document | {"images": images, "annotations": rows}))


if __name__ == "__main__":
    main()
