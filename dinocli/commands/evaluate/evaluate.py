"""`dino eval`: average precision and error analysis."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dinocore.config import Config, DataConfig
from dinocore.data.annotations import Annotations
from dinocore.data.dataset import open_split
from dinocore.data.split import Category, check_split
from dinocore.errors import ConfigError, EnvironmentFault
from dinocore.evaluate.backends import choose_backend
from dinocore.evaluate.results import read_results
from dinocore.presets import override
from dinocore.report.parts import Page
from dinocore.system.files import check_file, write_text
from dinocore.words import counted

from ...annotated import settings_of, warn_of_whole_images
from ...console import fail, print_json, say, stdout, warn
from ...options import Compile, Data, Device, Gpus, Json, Out, Overlap, Overrides, Precision, Split, Weights
from ...progress import WorkProgress
from ...weights_option import is_exported, open_any_detector, open_slicing
from .view import show_analysis, show_comparison

if TYPE_CHECKING:
    from dinocore.predict import AnyDetector
    from dinocore.stream.slices import Slicing
    from dinocore.system.processes import SingleProcess


def evaluate(
    weights: Weights = None,
    data: Data = None,
    split: Split = "val",
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Evaluate COCO-format results of any detector; needs --data."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Compare two weights or two results files.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a report with everything on one page.")
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", min=0, help="Bootstrap samples for the 95 % intervals; 0: none.")
    ] = 1000,
    out: Out = None,
    slice: Annotated[
        str | None,
        typer.Option("--slice", metavar="PIXELS", help="Cut large images into slices of this side length, or auto."),
    ] = None,
    overlap: Overlap = None,
    gpus: Gpus = 1,
    device: Device = "auto",
    amp: Precision = "auto",
    compile: Compile = False,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Measure average precision, and show where it is lost; default: the newest run on the data it was trained with.

    Example: dino eval --weights runs/mine --report report.html
    """
    from dinocore.system.processes import join_ranks

    request = EvalRequest(data, split, out, report, bootstrap, device, amp, overrides, json, slice, overlap, compile)
    _check(request)
    ranks = max(gpus, int(os.environ.get("WORLD_SIZE", 1)))
    _check_sources(request, compare, weights, results, ranks)
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        from ...launch import launch

        raise typer.Exit(launch(gpus, sys.argv[1:]))
    with join_ranks(device) as (own_device, group):
        request = request._replace(device=str(own_device))
        if compare is None:
            evaluate_one(request, weights, results, group)
        else:
            compare_two(request, compare, group)


SOME_FAILED = 7


class EvalRequest(NamedTuple):
    """The options common to all evaluations."""

    folder: Path | None
    split: str
    out: Path | None
    report: Path | None
    bootstrap: int
    device: str
    amp: str
    overrides: list[str]
    json: bool
    slice: str | None = None
    overlap: float | None = None
    compiled: bool = False


class DetectionSource(NamedTuple):
    """The source of detections: a detector with its weights, or a results file."""

    path: Path
    detector: AnyDetector | None
    config: Config
    slicing: Slicing | None = None


def evaluate_one(request: EvalRequest, weights: str | None, results: Path | None, group: SingleProcess) -> None:
    """Detect objects in every image of a split, or read results, and evaluate them (on rank 0)."""
    from dinocore.evaluate.analysis import analyse
    from dinocore.evaluate.answer import to_json
    from dinocore.evaluate.coco import coco_metrics

    source = group.main_first(lambda: _open(weights, request) if results is None else _file(results, request))
    backend = choose_backend(source.config.eval.backend)  # before any work, because its package may be missing
    annotations = group.main_first(lambda: _truth(request, source))
    found, failed = _detections(source, annotations, group)
    if not group.main:
        return
    unwritten: list[EnvironmentFault] = []
    if request.out is not None:
        rows = found if source.detector is None else _in_ids_of_data(found, annotations, request)
        with _defer_write_errors(unwritten):
            write_text(request.out, json_module.dumps(rows, allow_nan=False) + "\n")
            say(f"wrote {request.out}: {counted(len(rows), 'detection')}, in COCO's result format")
    metrics = coco_metrics(annotations, found, backend, len(failed))
    analysis = analyse(annotations, found, request.bootstrap)
    if analysis.summary != metrics.summary:
        warn(f"{metrics.backend} gives {metrics.summary}, but our own matching {analysis.summary}; please report this")
    kind = "weights" if source.detector else "results"
    facts = {kind: str(source.path), "data": str(annotations.file), "images": metrics.num_images}
    facts["unreadable"] = metrics.unreadable
    if request.report is not None:
        from dinocore.report.evaluation import evaluation_page

        about = facts | {"evaluated by": metrics.backend}
        with _defer_write_errors(unwritten):
            _write_report(request.report, evaluation_page(analysis, annotations, about, source.config.data))
    if request.json:
        measured = {"measured": _measured(source, request)} if source.detector else {}
        facts |= {"failed": failed, "backend": metrics.backend} | measured
        print_json(facts | to_json(analysis) | _in_json(unwritten))
    else:
        show_analysis(analysis, metrics.evaluated, metrics.backend)
    _end(failed, metrics.num_images, unwritten)


def _measured(source: DetectionSource, request: EvalRequest) -> dict[str, Any]:
    """How the detector was run; the precision is None for an exported file, which has its own."""
    from dinocore.predict import Detector
    from dinocore.system.device import INT8

    precision = None
    if isinstance(source.detector, Detector):
        precision = request.amp if request.amp == INT8 else str(source.detector.dtype or "torch.float32")[6:]
    slicing = source.slicing
    return {
        "slice": slicing.side if slicing else None,
        "overlap": slicing.overlap if slicing else None,
        "precision": precision,
        # the backend does not affect the detections
        "set": [one for one in request.overrides if not one.startswith("eval.backend")],
    }


def compare_two(request: EvalRequest, pair: tuple[str, str], group: SingleProcess) -> None:
    """Evaluate two sources of detections and compare them."""
    from dinocore.evaluate.analysis import analyse
    from dinocore.evaluate.coco import evaluated_images
    from dinocore.evaluate.compare import compare, comparison_json

    sources = group.main_first(
        lambda: [_file(Path(name), request) if name.endswith(".json") else _open(name, request) for name in pair]
    )
    annotations = group.main_first(lambda: _truth(request, *sources))
    results = [_detections(source, annotations, group) for source in sources]  # both, before rank 0 continues alone
    if not group.main:
        return
    analyses = [analyse(annotations, found, request.bootstrap) for found, _ in results]
    failed = list(dict.fromkeys(problem for _, problems in results for problem in problems))
    comparison = compare(*analyses)
    facts: dict[str, Any] = {"a": str(sources[0].path), "b": str(sources[1].path), "data": str(annotations.file)}
    facts |= {"images": len(annotations.image_ids), "unreadable": len(failed)}
    unwritten: list[EnvironmentFault] = []
    if request.report is not None:
        from dinocore.report.comparison import comparison_page

        about = {key.upper() if key in "ab" else key: value for key, value in facts.items()}
        with _defer_write_errors(unwritten):
            _write_report(request.report, comparison_page(comparison, annotations, about, sources[0].config.data))
    if request.json:
        print_json(facts | {"failed": failed} | comparison_json(comparison) | _in_json(unwritten))
    else:
        show_comparison(comparison, pair)
        stdout.print(evaluated_images(len(annotations.image_ids), len(failed)))
    _end(failed, len(annotations.image_ids), unwritten)


def _check(request: EvalRequest) -> None:
    """Check the options before any work."""
    from dinocore.stream.slices import check_overlap, parse_slicing

    check_overlap(request.slice, request.overlap)
    if request.slice is not None:
        parse_slicing(request.slice, request.overlap, DataConfig(), {})
    check_split(request.split)
    for name, path, suffix in (("--out", request.out, ".json"), ("--report", request.report, ".html")):
        if path is not None:
            check_file(name, path, suffix)


def _check_sources(
    request: EvalRequest, compare: tuple[str, str] | None, weights: str | None, results: Path | None, ranks: int
) -> None:
    """Reject combinations of options for the source of detections that exclude each other."""
    if compare is not None:
        for name, given in (("--weights", weights), ("--results", results), ("--out", request.out)):
            if given is not None:
                raise ConfigError(f"{name} cannot be used with --compare; drop it")
    if results is not None and weights is not None:
        raise ConfigError(
            "--weights and --results cannot be used together; give one of them, or compare them with --compare"
        )
    if results is not None and request.out is not None:
        raise ConfigError("--out cannot be used with --results, which already has the detections; drop it")
    if results is None and not (compare is not None and all(name.endswith(".json") for name in compare)):
        return
    if ranks > 1:
        raise ConfigError("--gpus cannot be used with a results file, which needs no detector; "
                          "drop --gpus")  # fmt: skip
    for name, given in (
        ("--device", request.device != "auto"),
        ("--amp", request.amp != "auto"),
        ("--compile", request.compiled),
    ):
        if given:
            raise ConfigError(f"{name} cannot be used with a results file, which needs no detector; drop it")


def _open(weights: str | None, request: EvalRequest) -> DetectionSource:
    detector, path = open_any_detector(weights, request.device, request.amp, request.compiled)
    detector.config = override(detector.config, request.overrides, ("data", "eval"))
    slicing = None
    if request.slice is not None:
        slicing = open_slicing(request.slice, request.overlap, path, detector.config.data)
        say(f"slices of {slicing.side} pixels, overlap {slicing.overlap:g}")
    return DetectionSource(path, detector, detector.config, slicing)


def _file(path: Path, request: EvalRequest) -> DetectionSource:
    if request.slice is not None:
        raise ConfigError("--slice cannot be used with a results file; drop it")
    return DetectionSource(path, None, override(Config(), request.overrides, ("data", "eval")))


def _truth(request: EvalRequest, *sources: DetectionSource) -> Annotations:
    """The annotations of --data, or else of the first weights' training data, with their classes."""
    detectors = [source.detector for source in sources if source.detector]
    if request.folder is None and not detectors and not sources[0].config.data.path:
        raise ConfigError("a results file does not name its data; give --data")
    exported = [source.path for source in sources if source.detector and is_exported(source.path)]
    if request.folder is None and exported:
        raise ConfigError(f"{exported[0]} does not name its data; give --data")
    if not all(_same_classes(detectors[0].categories, detector.categories) for detector in detectors[1:]):
        raise ConfigError("the two weights have different classes; compare weights trained on the same classes")
    settings = (detectors[0].config if detectors else sources[0].config).data
    if request.folder is not None:
        settings = settings_of(settings, request.folder)
    annotations = open_split(settings, request.split, detectors[0].categories if detectors else None)
    say(f"data: {annotations.file}, {counted(len(annotations.image_ids), 'image')}")
    for note in annotations.notes:
        warn(note)
    if not annotations.trainable(0).any():
        warn(f"{annotations.file} has no objects to evaluate on; AP and recall are undefined")
    return annotations


def _same_classes(one: Sequence[Category], other: Sequence[Category]) -> bool:
    """Whether two models have the same classes; ids may differ if the names are unique."""
    names = sorted(category.name for category in one)
    by_name = len(set(names)) == len(names) and names == sorted(category.name for category in other)
    return by_name or sorted(one) == sorted(other)


def _detections(
    source: DetectionSource, annotations: Annotations, group: SingleProcess
) -> tuple[list[dict[str, Any]], list[str]]:
    """Detections as rows in COCO's format, and errors of images that could not be read; empty on ranks other than 0."""
    from dinocore.evaluate.coco import detect_on_ranks

    if source.detector is None:
        read = read_results(source.path, annotations, source.config.data.allow_orphans)
        for note in read.notes:
            warn(f"{source.path}: {note}")
        return read.rows, []
    if group.main and source.slicing is None:
        sizes = [(height, width) for width, height in annotations.sizes.tolist()]
        warn_of_whole_images(sizes, lambda i: annotations.path(i).name, source.detector.config.data, "try --slice auto")
    results, failed = [], []
    with WorkProgress(hidden=not group.main) as progress:
        images = detect_on_ranks(source.detector, annotations, group, source.slicing)
        for found, problems in progress.track(images, total=len(annotations.image_ids), description="evaluating"):
            if not group.main:
                continue
            results += found
            failed += problems
            for problem in problems:
                fail(problem, "DATA")
    # with --compare, the annotations have the classes of the first weights
    if sorted(source.detector.categories) != sorted(annotations.categories):
        names = {category.name: category.id for category in annotations.categories}
        ids = {category.id: names[category.name] for category in source.detector.categories}
        results = [row | {"category_id": ids[row["category_id"]]} for row in results]
    return results, failed


def _in_ids_of_data(rows: list[dict[str, Any]], annotations: Annotations, request: EvalRequest) -> list[dict[str, Any]]:
    """Detections with the data's own category ids, so that other tools can use them with its annotations."""
    if sorted(annotations.own_categories) == sorted(annotations.categories):
        return rows
    ids = {category.name: category.id for category in annotations.own_categories}
    known = {c.id: ids[c.name] for c in annotations.categories if c.name in ids}
    kept = [row | {"category_id": known[row["category_id"]]} for row in rows if row["category_id"] in known]
    if len(kept) < len(rows):
        warn(f"skipped in {request.out}: {counted(len(rows) - len(kept), 'detection')} of classes not in the data")
    return kept


def _write_report(path: Path, page: Page) -> None:
    from dinocore.report.page import write_page

    for written in write_page(path, page):
        say(f"wrote {written}")


@contextmanager
def _defer_write_errors(unwritten: list[EnvironmentFault]) -> Iterator[None]:
    """Defer errors of writing a file until the results are shown, since computing them again takes long."""
    try:
        yield
    except EnvironmentFault as error:
        unwritten.append(error)


def _in_json(unwritten: Sequence[EnvironmentFault]) -> dict[str, Any]:
    return {"error": unwritten[0].as_dict()} if unwritten else {}


def _end(failed: list[str], count: int, unwritten: Sequence[EnvironmentFault]) -> None:
    for error in unwritten:
        fail(error)
    if failed:
        fail(f"{len(failed)} of {count} images could not be read; their objects count as missed")
    if unwritten or failed:
        raise typer.Exit(unwritten[0].exit_code if unwritten else SOME_FAILED)
