"""Time and memory of reading a COCO file as large as instances_train2017.json, which is made for it.

    python benchmarks/large_annotations.py [--images 118287] [--objects 860001] [--json FILE]

The file has outlines of as many numbers as COCO's have on average, so that it is as long (about 450 MB). Pictures are
empty files: their names are looked up, as in a training, but nothing is decoded. Reading is done by a fresh process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from turns import write

OUTLINE = 46  # numbers of an outline; gives 450 MB


def main() -> None:
    """Print seconds, peak memory and what stays, and write them to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make(folder, options.images, options.objects)
        command = [sys.executable, __file__, "--read", str(folder)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = {"file_mb": round(size / 1e6)} | row
    for key, value in row.items():
        print(f"{key:20}{value:>12}")
    write(options.json, {"images": options.images, "objects": options.objects}, [row])


def make(folder: Path, images: int, objects: int) -> int:
    """Write the file and the empty pictures; how many bytes the file has."""
    rng = np.random.default_rng(0)
    pictures, file = folder / "train2017", folder / "annotations" / "instances_train2017.json"
    pictures.mkdir()
    file.parent.mkdir()
    names = [f"{n:012d}.jpg" for n in range(images)]
    for name in names:
        (pictures / name).touch()
    outlines = [rng.uniform(0, 640, OUTLINE).round(2).tolist() for _ in range(200)]
    with file.open("w") as out:
        out.write('{"images": ')
        json.dump([{"id": n, "file_name": name, "width": 640, "height": 480} for n, name in enumerate(names)], out)
        out.write(', "categories": ')
        json.dump([{"id": n, "name": f"class {n}"} for n in range(1, 81)], out)
        out.write(', "annotations": [')
        for n in range(objects):
            x, y, w, h = (rng.uniform(0, 1, 4) * [300, 200, 300, 200] + [0, 0, 1, 1]).round(2).tolist()
            row = {"segmentation": [outlines[n % 200]], "area": round(w * h / 2, 4), "iscrowd": 0,
                   "image_id": int(rng.integers(images)), "bbox": [x, y, w, h],
                   "category_id": int(rng.integers(1, 81)), "id": n + 1}  # fmt: skip
            out.write((", " if n else "") + json.dumps(row))
        out.write("]}")
    return file.stat().st_size


def read(folder: Path) -> dict[str, float]:
    """In this process: as `dino train` reads a split."""
    from dinocore.data.annotations import read_annotations
    from dinocore.data.formats.layout import find_layout

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, worked = time.perf_counter(), time.process_time()
    annotations = read_annotations(find_layout(folder).train)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    kept = sum(value.nbytes for value in annotations if isinstance(value, np.ndarray))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(worked, 2),  # what a machine with other work to do would need alone
        "peak_rss_mb": round(peak / 1024),
        "imports_rss_mb": round(before / 1024),
        "kept_arrays_mb": round(kept / 1e6, 1),
        "objects": len(annotations.boxes),
    }


if __name__ == "__main__":
    main()
