"""Time and memory for reading a generated COCO file as large as instances_train2017.json.

    python benchmarks/large_annotations.py [--images 118287] [--objects 860001] [--json FILE]
    python benchmarks/large_annotations.py --images 1700000 --objects 25000000 --outline 0 --ranks 2   Objects365's size

The polygons have as many points as COCO's on average, so that the file has the same size (about 450 MB). Images are
links to a few black ones: their names are looked up as in training, but nothing is decoded. A fresh process reads the
file. With --ranks, this many processes then open the data set like the ranks of a training, and report the growth of
their own private memory and of that of a forked worker that reads every value.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from turns import write

LINKS = 30_000  # per file; file systems have limits


def main() -> None:
    """Print seconds, peak memory and the memory kept, and write them to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--outline", type=int, default=46, help="numbers of each; 0: none, as in Objects365")
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read or options.share:
        print(json.dumps(read(options.read) if options.read else share(options.share)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make(folder, options.images, options.objects, options.outline)
        command = [sys.executable, __file__, "--read", str(folder)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for rank, held in enumerate(run_ranks(folder, options.ranks)):
            row |= {f"rank_{rank}_{key}": value for key, value in held.items()}
    row = {"file_mb": round(size / 1e6)} | row
    for key, value in row.items():
        print(f"{key:32}{value:>12}")
    write(options.json, {"images": options.images, "objects": options.objects, "outline": options.outline}, [row])


def make(folder: Path, images: int, objects: int, outline: int) -> int:
    """Write the file in a stream, and the images; return the file's size in bytes."""
    rng = np.random.default_rng(0)
    image_folder, file = folder / "train2017", folder / "annotations" / "instances_train2017.json"
    image_folder.mkdir()
    file.parent.mkdir()
    for n in range(images):
        if n % LINKS == 0:
            first = image_folder / f"{n:012d}.jpg"
            Image.new("RGB", (640, 480)).save(first)
        else:
            os.link(first, image_folder / f"{n:012d}.jpg")
    outlines = [rng.uniform(0, 640, outline).round(2).tolist() for _ in range(200)]
    with file.open("w") as out:
        out.write('{"images": [')
        for n in range(images):
            row = {"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480}
            out.write((", " if n else "") + json.dumps(row))
        out.write('], "categories": ')
        json.dump([{"id": n, "name": f"class {n}"} for n in range(1, 81)], out)
        out.write(', "annotations": [')
        for n in range(objects):
            x, y, w, h = (rng.uniform(0, 1, 4) * [300, 200, 300, 200] + [0, 0, 1, 1]).round(2).tolist()
            shape = {"segmentation": [outlines[n % 200]]} if outline else {}
            row = {**shape, "area": round(w * h / 2, 4), "iscrowd": 0,
                   "image_id": int(rng.integers(images)), "bbox": [x, y, w, h],
                   "category_id": int(rng.integers(1, 81)), "id": n + 1}  # fmt: skip
            out.write((", " if n else "") + json.dumps(row))
        out.write("]}")
    return file.stat().st_size


def read(folder: Path) -> dict[str, float]:
    """In this process: read a split like `dino train`."""
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
        "cpu_seconds": round(worked, 2),  # independent of other load on the machine
        "peak_rss_mb": round(peak / 1024),
        "imports_rss_mb": round(before / 1024),
        "kept_arrays_mb": round(kept / 1e6, 1),
        "objects": len(annotations.boxes),
    }


def run_ranks(folder: Path, number: int) -> list[dict[str, float]]:
    """The memory of each of `number` ranks on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    processes = [
        subprocess.Popen([sys.executable, __file__, "--share", str(folder)], stdout=subprocess.PIPE, text=True,
                         env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(number)
    ]  # fmt: skip
    return [json.loads(process.communicate()[0]) for process in processes]


def share(folder: Path) -> dict[str, float]:
    """In this process, as a rank: open a data set like `dino train`, and return the memory held afterwards."""
    import torch

    from dinocore.config import DataConfig
    from dinocore.data.loaders import TrainingImages
    from dinocore.data.shared import open_shared_dataset
    from dinocore.system.processes import process_group

    with process_group(torch.device("cpu")) as group:
        before = private_mb()
        images = TrainingImages(open_shared_dataset(DataConfig(path=str(folder)), group).train, DataConfig(), 0)
        held = private_mb() - before
        mapped = sum(value.nbytes for value in images.annotations if isinstance(value, np.memmap))
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        worker = fork.Process(target=look_at_all, args=(images, theirs))
        worker.start()
        grown = ours.recv()
        worker.join()
        group.gather(None)
    return {
        "mapped_mb": round(mapped / 1e6), "private_mb": round(held), "worker_private_mb": round(grown),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def look_at_all(images: Any, pipe: Any) -> None:
    """In a worker: send the growth of its private memory after reading every value."""
    before, annotations = private_mb(), images.annotations
    for i in range(len(annotations.image_ids)):
        annotations.boxes[annotations.objects(i)].sum()
    for value in annotations:
        if isinstance(value, np.ndarray):
            value.max() if value.dtype.kind != "S" else value[::100].tolist()
    pipe.send(private_mb() - before)


def private_mb() -> float:
    """Private memory of this process in MB; Linux only."""
    lines = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(found[1]) for found in re.finditer(r"Private_\w+:\s+(\d+) kB", lines)) / 1024


if __name__ == "__main__":
    main()
