"""`report.html` in the run folder, written after each evaluation and at the end. A failure never stops the run."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.annotations import Annotations, choose_images
from ...data.images import read_image
from ...data.split import evenly
from ...errors import DataError
from ...evaluate.matches import match
from ...report.examples import image_marks
from ...report.page import shrink, write_page
from ...report.parts import MarkedImage
from ...report.training import RunFacts, training_page
from ...system.files import to_json, write_text
from ...words import counted
from ..context import RunContext
from .sinks import RowWriter

EXAMPLES = "best_examples.json"
MAX_IMAGES = 24
MAX_SIDE = 800  # pixels
MIN_SCORE = 0.05  # of a box that is saved
MAX_BOXES = 100  # per image


def save_examples(folder: Path, val: Annotations, epoch: int, results: list[dict[str, Any]]) -> None:
    """Save the detections of the best weights in a few validation images.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    ids = val.image_ids[evenly(len(val.image_ids), MAX_IMAGES)].tolist()
    kept: dict[int, list[dict[str, Any]]] = {image: [] for image in ids}
    for result in results:
        if result["image_id"] in kept and result["score"] >= MIN_SCORE:
            kept[result["image_id"]].append(result)
    found = [row for rows in kept.values() for row in sorted(rows, key=lambda row: -row["score"])[:MAX_BOXES]]
    write_text(folder / EXAMPLES, to_json({"epoch": epoch, "results": found}))


class ReportFile(RowWriter):
    """Rewrites the report after each evaluation, and at the end of the run if more was logged since."""

    def __init__(self, context: RunContext, facts: dict[str, str]):
        self.context, self.facts = context, facts
        self.outdated = False
        self.images: dict[int, MarkedImage] = {}  # shrunk, by index in the split, so that each is read once

    def add(self, row: dict[str, Any]) -> None:
        """Rewrite the report if this row is an evaluation."""
        self.outdated = True
        if "AP" in row:
            self._write()

    def close(self, completed: bool = True) -> None:
        """Rewrite the report if it is outdated."""
        if self.outdated:
            self._write()

    def _write(self) -> None:
        self.outdated = False
        try:
            epoch, examples = self._examples()
            settings = self.context.config.model_dump()
            run_facts = RunFacts(
                str(self.context.folder), self.facts, machine(self.context.device), settings, examples, epoch
            )
            write_page(
                self.context.folder / "report.html", training_page(self.context.folder / "metrics.jsonl", run_facts)
            )
        except Exception as error:  # of any kind: it must not end a long training
            self.message = f"report.html cannot be written ({type(error).__name__}: {error})"

    def _examples(self) -> tuple[int, list[MarkedImage]]:
        """The epoch of the best evaluation, and example images with annotations and detections."""
        path, val = self.context.folder / EXAMPLES, self.context.data.val
        if not path.is_file():
            return 0, []
        kept, chosen = json.loads(path.read_text(encoding="utf-8")), evenly(len(val.image_ids), MAX_IMAGES)
        ids = set(val.image_ids[chosen].tolist())
        matches = match(
            choose_images(val, np.array(chosen)), [row for row in kept["results"] if row["image_id"] in ids]
        )
        shown = []
        for index in chosen:
            example = self._image(index)
            if example is not None:
                scale = example.image.width / val.sizes[index][0]
                marks = image_marks(matches, int(val.image_ids[index]), MIN_SCORE)
                marks = [mark._replace(xyxy=[side * scale for side in mark.xyxy]) for mark in marks]
                shown.append(example._replace(marks=marks))
        return kept["epoch"], shown

    def _image(self, index: int) -> MarkedImage | None:
        if index not in self.images:
            val = self.context.data.val
            try:
                image = read_image(val.path(index), self.context.config.data)
            except DataError:
                return None  # the evaluation has warned about it
            self.images[index] = shrink(MarkedImage(os.fsdecode(val.file_names[index]), image), MAX_SIDE)
        return self.images[index]


def machine(device: torch.device) -> dict[str, str]:
    """The machine, device and package versions of a run."""
    threads = counted(torch.get_num_threads(), "thread")
    facts = {
        "system": platform.platform(),
        "processor": f"{platform.machine()}, {counted(os.cpu_count() or 1, 'core')}, {threads}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "Python": platform.python_version(),
    }
    names = ("torch", "torchvision", "timm", "dino-detector")
    return facts | {name: importlib.metadata.version(name) for name in names}
