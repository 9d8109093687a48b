"""What `dino eval` does."""

import json as json_module
from pathlib import Path

import typer
from rich.progress import Progress
from rich.table import Table

from dinocore.data.coco import Annotations
from dinocore.data.dataset import open_split
from dinocore.errors import ConfigError
from dinocore.evaluate.backends import choose_backend
from dinocore.evaluate.coco import Metrics, coco_metrics, detect_all
from dinocore.files import check_writable, write_text
from dinocore.predict import Detector
from dinocore.presets import override

from .console import data, fail, print_json, say, warn, words
from .detector import open_detector

SOME_FAILED = 7
ROWS = {
    "AP": "IoU 0.50:0.95", "AP50": "IoU 0.50", "AP75": "IoU 0.75", "APs": "small", "APm": "medium", "APl": "large",
    "AR1": "1 detection", "AR10": "10 detections", "AR100": "100 detections", "ARs": "small", "ARm": "medium",
    "ARl": "large",
}  # fmt: skip


def evaluate_weights(
    weights: str | None,
    folder: Path | None,
    split: str,
    out: Path | None,
    device: str,
    amp: str,
    overrides: list[str],
    json: bool,
) -> None:
    """Detect in every picture of a split and judge that."""
    _check(split, out)
    detector, path = open_detector(weights, device, amp)
    detector.config = override(detector.config, overrides, ("data", "eval"))
    backend = choose_backend(detector.config.eval.backend)  # before the work, for what it may lack
    settings = detector.config.data
    if folder is not None:
        settings = settings.model_copy(update={"path": str(folder.expanduser().absolute())})
    annotations = open_split(settings, split, detector.categories)
    say(f"data: {annotations.file}, {len(annotations.image_ids)} pictures")
    for note in annotations.notes:
        warn(note)
    results, failed = _detect(detector, annotations)
    if out is not None:
        write_text(out, json_module.dumps(results, allow_nan=False) + "\n")
        say(f"{len(results)} detections in COCO's result format: {out}")
    metrics = coco_metrics(annotations, results, backend)
    if json:
        facts = {"weights": str(path), "data": str(annotations.file), "images": metrics.num_images, "failed": failed}
        print_json(facts | metrics.summary | {"backend": metrics.backend, "classes": metrics.classes})
    else:
        _show(metrics)
    if failed:
        fail(f"{len(failed)} of {metrics.num_images} pictures could not be read; their objects count as missed")
        raise typer.Exit(SOME_FAILED)


def _check(split: str, out: Path | None) -> None:
    if split not in ("val", "train"):
        raise ConfigError(f"there is no split `{split}`; choose val or train")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file, such as {out / 'results.json'}")
    if out is not None:
        check_writable(out.parent)


def _detect(detector: Detector, annotations: Annotations) -> tuple[list[dict], list[str]]:
    results, failed = [], []
    with Progress(console=words, disable=not words.is_terminal, transient=True) as progress:
        batches = detect_all(detector, annotations)
        for found, problems in progress.track(batches, total=len(annotations.image_ids), description="evaluating"):
            results += found
            failed += problems
            for problem in problems:
                fail(problem, "DATA")
    return results, failed


def _show(metrics: Metrics) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for title in ("precision", "", "", "recall", "", ""):
        table.add_column(title, justify="right" if not title else "left")
    names = list(ROWS)
    for left, right in zip(names[:6], names[6:], strict=True):
        cells = [[f"[bold]{name}[/]", ROWS[name], _number(metrics.summary[name])] for name in (left, right)]
        table.add_row(*cells[0], *cells[1])
    data.print(table)
    data.print(f"{metrics.num_images} pictures, judged by {metrics.backend}")
    classes = Table(box=None, padding=(0, 3, 0, 0))
    classes.add_column("class")
    for title in ("AP", "AP50"):
        classes.add_column(title, justify="right")
    for name, numbers in metrics.classes.items():
        classes.add_row(name, _number(numbers["AP"]), _number(numbers["AP50"]))
    data.print()
    data.print(classes)


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.4f}"
