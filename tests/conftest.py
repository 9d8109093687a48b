"""Shared fixtures: small datasets of solid rectangles, `dino` run in this process, Chromium, and ranks as threads."""

import importlib.util
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from dinocli import app
from dinocore.data.formats.layout import Split
from dinocore.errors import PeerFailed

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core: use one thread in each, and in subprocesses
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

if importlib.util.find_spec("numba") is None:  # then this warning is expected and must not fail a test

    def pytest_configure(config: pytest.Config) -> None:
        config.addinivalue_line("filterwarnings", "default:slow deformable attention:UserWarning")


FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

TWO_IMAGES = {7: [(1, 10, 5, 20, 12), (2, 40, 20, 16, 24)], 9: [(2, 8, 8, 30, 30)]}


def coco_document(objects: dict[int, list[tuple]], size: tuple[int, int], categories: dict[int, str]) -> dict[str, Any]:
    """A COCO document with images of `size` (width, height), from (category id, x, y, w, h) boxes by image id."""
    rows = [(image, *row) for image, rows in objects.items() for row in rows]
    return {
        "images": [{"id": i, "file_name": f"{i:04d}.png", "width": size[0], "height": size[1]} for i in objects],
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in categories.items()],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, category, *box) in enumerate(rows, start=1)
        ],
    }


def draw(boxes: list[tuple], size: tuple[int, int]) -> Image.Image:
    """A black image with a solid rectangle at each (x, y, w, h), in red, green, yellow, blue, magenta, cyan, white."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for n, (x, y, w, h) in enumerate(boxes, start=1):
        pixels[y : y + h, x : x + w] = [255 * bool(n & 1), 255 * bool(n & 2), 255 * bool(n & 4)]
    return Image.fromarray(pixels)


@pytest.fixture
def make_coco(tmp_path) -> Callable[..., Split]:
    """Writes one split of a COCO 2017 folder in tmp_path; `edit` may change the document or return a new one."""

    def make(objects=TWO_IMAGES, size=(64, 48), categories={1: "disc", 2: "ring"}, edit=None, name="train"):  # noqa: B006
        document = coco_document(objects, size, categories)
        images = tmp_path / f"{name}2017"
        images.mkdir(exist_ok=True)
        for image_id, rows in objects.items():
            draw([row[1:] for row in rows], size).save(images / f"{image_id:04d}.png")
        document = (edit(document) if edit else None) or document
        return write_split(tmp_path, name, json.dumps(document).encode())

    return make


@pytest.fixture
def write_json(tmp_path) -> Callable[[bytes], Split]:
    """Writes raw bytes as the training annotations in tmp_path."""
    return lambda content: write_split(tmp_path, "train", content)


def write_split(folder: Path, name: str, content: bytes) -> Split:
    file = folder / "annotations" / f"instances_{name}2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return Split(file, [folder / f"{name}2017"])


class Result(NamedTuple):
    """A command's exit code, stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def browser():
    """Chromium, for tests of rendered HTML pages."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("pages are tested in Chromium, which is not installed: apt-get install chromium", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def dino(monkeypatch, capsys, tmp_path) -> Callable[..., Result]:
    """`dino("predict", "a.jpg")` runs in tmp_path, with the exit codes and error messages of the real command."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["dino", *map(str, arguments)])
        try:
            app.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def thread_group() -> type:
    """A process group class whose ranks are threads, synchronised by a barrier."""
    from dinocore.system.processes import SingleProcess  # imports PyTorch: after setting os.environ

    class ThreadGroup(SingleProcess):
        def __init__(self, rank: int, values: list, barrier: threading.Barrier):
            self.rank, self.size, self.main = rank, len(values), rank == 0
            self.values, self.barrier = values, barrier

        def gather(self, value):
            self.values[self.rank] = value
            self.barrier.wait(120)
            gathered = list(self.values)
            self.barrier.wait(120)
            return gathered

        def main_first(self, work):
            if self.main:
                result = work()
            self.barrier.wait(120)
            return result if self.main else work()

        def on_all_ranks(self, error):
            return error if self.main else PeerFailed(error.exit_code)

    return ThreadGroup


@pytest.fixture
def on_ranks(thread_group) -> Callable[[int, Callable[[Any], Any]], list]:
    """Runs `work(group)` on `size` ranks, which are threads; returns each rank's result or exception."""

    def run_all(size, work):
        values, barrier, results = [None] * size, threading.Barrier(size), [None] * size

        def run(rank):
            try:
                results[rank] = work(thread_group(rank, values, barrier))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run_all
