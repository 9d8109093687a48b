"""What `dino eval` does."""

import json as json_module
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.progress import Progress

from dinocore.config import Config
from dinocore.data.annotations import Annotations
from dinocore.data.dataset import open_split
from dinocore.errors import ConfigError
from dinocore.evaluate.analysis import analyse
from dinocore.evaluate.answer import to_json
from dinocore.evaluate.backends import choose_backend
from dinocore.evaluate.coco import coco_metrics, detect_all
from dinocore.evaluate.compare import compare, comparison_json
from dinocore.evaluate.results import read_results
from dinocore.export.detector import is_exported
from dinocore.predict import AnyDetector
from dinocore.presets import override
from dinocore.report.parts import Page
from dinocore.system.files import check_writable, write_text
from dinocore.words import counted

from ..console import fail, print_json, say, warn, words
from ..weights_option import open_any_detector
from ._evaluate_view import show_analysis, show_comparison

SOME_FAILED = 7


class Asked(NamedTuple):
    """The options that any evaluation has."""

    folder: Path | None
    split: str
    out: Path | None
    report: Path | None
    bootstrap: int
    device: str
    amp: str
    overrides: list[str]
    json: bool


class Source(NamedTuple):
    """Where detections come from: a detector with its weights, or a file of results."""

    path: Path
    detector: AnyDetector | None
    config: Config


def evaluate_one(asked: Asked, weights: str | None, results: Path | None) -> None:
    """Detect in every picture of a split, or read results of them, and judge that."""
    _check(asked)
    if results is not None and weights is not None:
        raise ConfigError("--weights and --results exclude each other; give one of them, or both to --compare")
    if results is not None and asked.out is not None:
        raise ConfigError("--out writes detections, and --results has them already; leave it out")
    source = _open(weights, asked) if results is None else _file(results, asked)
    backend = choose_backend(source.config.eval.backend)  # before the work, for what it may lack
    annotations = _truth(asked, source)
    found, failed = _detections(source, annotations)
    if asked.out is not None:
        write_text(asked.out, json_module.dumps(found, allow_nan=False) + "\n")
        say(f"{counted(len(found), 'detection')} in COCO's result format: {asked.out}")
    metrics = coco_metrics(annotations, found, backend)
    analysis = analyse(annotations, found, asked.bootstrap)
    if analysis.summary != metrics.summary:
        warn(f"{metrics.backend} gives {metrics.summary}, our own matches {analysis.summary}; please report this")
    kind = "weights" if source.detector else "results"
    facts = {kind: str(source.path), "data": str(annotations.file), "images": metrics.num_images}
    if asked.report is not None:
        from dinocore.report.evaluation import evaluation_page

        told = facts | {"judged by": metrics.backend}
        _write_report(asked.report, evaluation_page(analysis, annotations, told, source.config.data))
    if asked.json:
        print_json(facts | {"failed": failed, "backend": metrics.backend} | to_json(analysis))
    else:
        show_analysis(analysis, metrics.backend)
    _end(failed, metrics.num_images)


def compare_two(asked: Asked, pair: tuple[str, str], weights: str | None, results: Path | None) -> None:
    """The same for two, and the difference."""
    _check(asked)
    for name, given in (("--weights", weights), ("--results", results), ("--out", asked.out)):
        if given is not None:
            raise ConfigError(f"{name} cannot be used with --compare; leave it out")
    sources = [_file(Path(name), asked) if name.endswith(".json") else _open(name, asked) for name in pair]
    annotations = _truth(asked, *sources)
    analyses, failed = [], []
    for source in sources:
        found, problems = _detections(source, annotations)
        analyses.append(analyse(annotations, found, asked.bootstrap))
        failed += [problem for problem in problems if problem not in failed]
    comparison = compare(*analyses)
    facts: dict[str, Any] = {"a": str(sources[0].path), "b": str(sources[1].path), "data": str(annotations.file)}
    facts["images"] = len(annotations.image_ids)
    if asked.report is not None:
        from dinocore.report.comparison import comparison_page

        told = {key.upper() if key in "ab" else key: value for key, value in facts.items()}
        _write_report(asked.report, comparison_page(comparison, annotations, told, sources[0].config.data))
    if asked.json:
        print_json(facts | {"failed": failed} | comparison_json(comparison))
    else:
        show_comparison(comparison, pair)
    _end(failed, len(annotations.image_ids))


def _check(asked: Asked) -> None:
    """Refuse what cannot be done before any work."""
    if asked.split not in ("val", "train"):
        raise ConfigError(f"there is no split `{asked.split}`; choose val or train")
    for name, path, example in (("--out", asked.out, "results.json"), ("--report", asked.report, "report.html")):
        if path is not None and path.is_dir():
            raise ConfigError(f"{name} {path} is a folder; give a file, such as {path / example}")
        if path is not None:
            check_writable(path.parent)


def _open(weights: str | None, asked: Asked) -> Source:
    detector, path = open_any_detector(weights, asked.device, asked.amp)
    detector.config = override(detector.config, asked.overrides, ("data", "eval"))
    return Source(path, detector, detector.config)


def _file(path: Path, asked: Asked) -> Source:
    return Source(path, None, override(Config(), asked.overrides, ("data", "eval")))


def _truth(asked: Asked, *sources: Source) -> Annotations:
    """The annotations of --data, or else of the data of the first weights, with the classes that they know."""
    detectors = [source.detector for source in sources if source.detector]
    if asked.folder is None and not detectors and not sources[0].config.data.path:
        raise ConfigError("a file of results says nothing about its pictures; give their --data")
    exported = [source.path for source in sources if source.detector and is_exported(source.path)]
    if asked.folder is None and exported:
        raise ConfigError(f"{exported[0]} says nothing about its data; give --data")
    if len({tuple(sorted(detector.categories)) for detector in detectors}) > 1:
        raise ConfigError("the two weights know other classes; compare weights of the same data")
    settings = (detectors[0].config if detectors else sources[0].config).data
    if asked.folder is not None:
        settings = settings.model_copy(update={"path": str(asked.folder.expanduser().absolute())})
    annotations = open_split(settings, asked.split, detectors[0].categories if detectors else None)
    say(f"data: {annotations.file}, {counted(len(annotations.image_ids), 'picture')}")
    for note in annotations.notes:
        warn(note)
    return annotations


def _detections(source: Source, annotations: Annotations) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of COCO's format, and why pictures could not be read."""
    if source.detector is None:
        read = read_results(source.path, annotations, source.config.data.allow_orphans)
        for note in read.notes:
            warn(f"{source.path}: {note}")
        return read.rows, []
    results, failed = [], []
    with Progress(console=words, disable=not words.is_terminal, transient=True) as progress:
        batches = detect_all(source.detector, annotations)
        for found, problems in progress.track(batches, total=len(annotations.image_ids), description="evaluating"):
            results += found
            failed += problems
            for problem in problems:
                fail(problem, "DATA")
    return results, failed


def _write_report(path: Path, page: Page) -> None:
    from dinocore.report.page import write_page

    for written in write_page(path, page):
        say(f"wrote {written}")


def _end(failed: list[str], count: int) -> None:
    if failed:
        fail(f"{len(failed)} of {count} pictures could not be read; their objects count as missed")
        raise typer.Exit(SOME_FAILED)
