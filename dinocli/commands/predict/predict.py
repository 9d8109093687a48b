"""`dino predict`: detect objects in images; a bad image does not affect the others."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dinocore.errors import ConfigError, DataError, EnvironmentFault, Interrupted
from dinocore.words import counted, whole

from ...completion import choices
from ...console import fail, print_json, say, stdout, warn, warn_of_letters
from ...inputs import Input, check_header, expand, is_video, no_image, warn_of_several
from ...options import Compile, Device, Gpus, Json, Out, Overlap, Precision, Threshold, Weights
from ...progress import WorkProgress
from ...signals import ending_early
from ...weights_option import find_weights
from .drawing import draw_detections
from .request import (
    PredictRequest,
    Work,
    check_format_has_use,
    check_overwriting,
    check_request,
    drawing_path,
    kept_so_far,
    none_left,
    open_work,
    parse_threshold,
    parts_folder,
    so_far,
)
from .resume import answer_settings, earlier_results, image_states, remember

if TYPE_CHECKING:
    from dinocore.detections_io import ImageResult
    from dinocore.stream.images import PreparedImage


def predict(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES", help="Images, folders, globs, - for standard input, or one video, camera or stream."
        ),
    ],
    out: Out = None,
    weights: Weights = None,
    threshold: Threshold = "auto",
    max_dets: Annotated[int, typer.Option(min=1, help="Maximum detections per image; with --slice, per slice.")] = 300,
    format: Annotated[
        str,
        typer.Option(
            help="Of --out: json, jsonl, coco, csv, yolo, labelme, fiftyone or labelstudio; auto: by the suffix of "
            "--out, or json.",
            autocompletion=choices(
                "auto", "json", "jsonl", "coco", "csv", "yolo", "labelme", "fiftyone", "labelstudio"
            ),
        ),
    ] = "auto",
    save_images: Annotated[Path | None, typer.Option(help="Folder for images with the boxes drawn on them.")] = None,
    batch_size: Annotated[str, typer.Option(help="Maximum batch of images of the same shape, or auto.")] = "auto",
    slice: Annotated[
        str | None,
        typer.Option("--slice", metavar="PIXELS", help="Cut large images into slices of this side length, or auto."),
    ] = None,
    overlap: Overlap = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the --out of an interrupted command.")] = False,
    gpus: Gpus = 1,
    save_video: Annotated[
        Path | None, typer.Option(metavar="OUT.mp4", help="Write the video with boxes drawn on it.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Process every Nth frame of a video.")] = 1,
    start: Annotated[float, typer.Option(min=0, help="Start at this second of the video.")] = 0,
    end: Annotated[float | None, typer.Option(min=0, help="Stop before this second of the video.")] = None,
    track: Annotated[
        bool, typer.Option("--track", help="Track objects in a video: each keeps its id from frame to frame.")
    ] = False,
    device: Device = "auto",
    amp: Precision = "auto",
    compile: Compile = False,
    json: Json = False,
) -> None:
    """Detect objects in images or video.

    Example: dino predict photos/ --save-images drawn
    """
    begun = time.time()
    video = is_video(files)
    if video and (gpus > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise ConfigError("a video is processed by one rank; drop --gpus, or split the video with --start and --end")
    if not video:
        check_header(files)
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        from ...launch import launch

        raise typer.Exit(launch(gpus, sys.argv[1:]))
    from dinocore.stream.slices import check_overlap  # imports PyTorch

    check_overlap(slice, overlap)
    least = parse_threshold(threshold)
    request = PredictRequest(
        out, format, save_images, least, max_dets, resume, json, batch_size, slice, overlap, begun, compile
    )
    if video:
        from .video import VideoOptions, predict_video

        predict_video(files[0], request, VideoOptions(save_video, every, start, end, track), weights, device, amp)
        return
    if save_video or track or every > 1 or start or end is not None:
        raise ConfigError(
            "--save-video, --track, --every, --start and --end are for video, but the inputs are images; drop them"
        )
    predict_files(files, request, weights, device, amp)


SOME_FAILED = 7
WRITE_EVERY = 30  # seconds


def predict_files(files: Sequence[str], request: PredictRequest, weights: str | None, device: str, amp: str) -> None:
    """Detect objects in every image; write, draw and show the detections.

    Raises:
        DataError: there is no image, or none can be read.
        Interrupted: by a signal; the results so far are written.
        typer.Exit: with code 7 if some images could not be read.
    """
    from dinocore.detections_io import output_stems
    from dinocore.system.device import pick_device, pick_precision
    from dinocore.system.processes import device_of_rank, rank_number, world_size

    chosen, request = request.format, check_request(request)
    check_format_has_use(chosen, request)
    device = device_of_rank(device)
    pick_precision(amp, pick_device(device))
    inputs, skipped = expand(files, request.save_images)
    if skipped:
        say(f"skipped {counted(skipped, 'non-image file')}")
    stems = output_stems([item.name for item in inputs], request.format)
    check_overwriting([item.path for item in inputs], stems, request)
    if not any(item.path.exists() for item in inputs):
        raise no_image(inputs[0].name)
    if rank_number() == 0:
        warn_of_several(inputs)
    if world_size() > 1 or (request.out is not None and parts_folder(request.out).is_dir()):
        from .parts import predict_in_parts

        return predict_in_parts(inputs, request, weights, device, amp)
    path = find_weights(weights)
    states = image_states(request, inputs)
    before = earlier_results(request, inputs, answer_settings(request, path, amp), states)
    work = open_work(request, str(path), device, amp, states)
    if request.out is not None and request.format == "jsonl" and not request.json:
        from .lines import predict_to_lines

        return predict_to_lines(work, inputs, before)
    found, failed = _detect_or_keep(work, inputs, before)
    if not found:
        raise none_left(len(inputs), failed[0])
    _write_and_show(found, work, stems, bool(failed))
    end_with_failures(len(failed), len(inputs))
    return None


def _write_and_show(found: Sequence[ImageResult], work: Work, stems: Mapping[str, str], missing: bool) -> None:
    """Write --out, and show the detections if requested or if --out cannot be written.

    Args:
        missing: whether images are missing from `found`.

    Raises:
        typer.Exit: with code 5 if --out cannot be written.
    """
    from dinocore.detections_io import write_detections

    request, unwritten = work.request, None
    if request.out is not None:
        try:
            remember(work, missing)
            _, *beside = write_detections(found, work.detector.categories, request.format, request.out, stems)
            count = counted(sum(len(item.detections) for item in found), "detection")
            say(f"wrote {request.out}: {count} in {counted(len(found), 'image')}")
            for path in beside:
                say(f"wrote {path}")
        except EnvironmentFault as error:
            unwritten = error
    if request.json:
        print_json([item._asdict() for item in found])
    elif request.out is None or unwritten:
        _show(found)
    if unwritten:
        fail(unwritten)
        raise typer.Exit(unwritten.exit_code)


class Tally:
    """Collects facts for the messages at the end, over the images of all ranks or the frames of a video."""

    def __init__(self) -> None:
        self.passed = 0  # detections that reach the threshold
        self.best = -1.0  # the highest score so far
        self.shrunk: list[tuple[float, str]] = []  # factor and name of the image

    def add(self, work: Work, name: str, size: tuple[int, int], passed: int, best: float) -> None:
        """Count an image (height, width)."""
        self.passed += passed
        self.best = max(self.best, best)
        self.shrunk += _shrinking(work, name, size)

    def say(self, least: Sequence[float]) -> None:
        """Print the messages on stderr."""
        from dinocore.stream.slices import shrinking_message

        if not self.passed and self.best >= 0:
            _say_none_passed(least, self.best)
        if self.shrunk:
            warn(shrinking_message(self.shrunk, "try --slice auto"))


def _say_none_passed(least: Sequence[float], best: float) -> None:
    """Suggest a threshold if no detection reaches the current one; `best` is the highest score."""
    typed = math.floor(best * 10**4) / 10**4
    shown = f"{least[0]:.2f}" if round(least[0], 2) == least[0] else f"{least[0]:.3g}"  # don't show 0.999 as 1.00
    named = f"the threshold {shown}" if min(least) == max(least) else "its class threshold"
    say(f"no detection reaches {named}; the best score is {best:.3f}: try --threshold {typed:g}")


def end_with_failures(failed: int, count: int) -> None:
    """Exit with code 7 if images could not be read."""
    if failed:
        fail(f"{failed} of {count} images could not be read; the others were processed")
        raise typer.Exit(SOME_FAILED)


def _detect_or_keep(
    work: Work, inputs: Sequence[Input], before: Sequence[ImageResult]
) -> tuple[list[ImageResult], list[DataError]]:
    """All detections, in the order of the inputs, and errors of images that could not be read.

    Results are also written regularly, and when a signal arrives.
    """
    from dinocore.detections_io import output_stems, write_detections

    found, failed, request = {item.file: item for item in before}, [], work.request
    stems = output_stems([item.name for item in inputs], request.format)
    todo = {item: stems[item.name] for item in inputs if item.name not in found}
    written = time.monotonic()

    def write() -> None:
        if request.out is not None:
            remember(work)
            write_detections(list(found.values()), work.detector.categories, request.format, request.out, stems)

    with ending_early() as ended:
        try:
            for result in detect_files(work, todo, ended):
                if isinstance(result, DataError):
                    failed.append(result)
                else:
                    found[result.file] = result
                if time.monotonic() - written > WRITE_EVERY:
                    write()
                    written = time.monotonic()
        except Exception:
            if found and request.out is not None:
                with suppress(EnvironmentFault):  # it may be on the same full disk
                    write()
                    say(kept_so_far(len(found), len(inputs), request))
            raise
        if ended():
            write()
            raise Interrupted(so_far(len(found), len(inputs), request), ended())
    return [found[item.name] for item in inputs if item.name in found], failed


def detect_files(
    work: Work, inputs: Mapping[Input, str], ended: Callable[[], int], tally: Tally | None = None
) -> Iterator[ImageResult | DataError]:
    """Yield the detections in each image, or the error if it cannot be read; draw the image if requested.

    Args:
        inputs: images, and the name of each one's drawing.
        ended: no further image is read once this returns a non-zero value.
        tally: if given, facts are added to it and the caller prints all messages, as with several ranks; otherwise this
            function prints them, including errors of images.
    """
    from dinocore.detections_io import image_result
    from dinocore.stream.images import detect_stream
    from dinocore.system.processes import rank_number

    detector, request, quiet = work.detector, work.request, tally is not None
    tally = tally or Tally()
    sizes: deque[tuple[int, int]] = deque()
    images = _read(inputs, work, ended, sizes)
    drawn = 0

    def failed(error: DataError) -> DataError:
        if len(inputs) > 1 and not quiet:
            fail(error)
        return error

    with WorkProgress(hidden=len(inputs) < 2 or rank_number() > 0) as progress:
        results = detect_stream(detector, images, request.batch_size)
        for item, result in zip(progress.track(inputs, description="predicting"), results, strict=False):
            if isinstance(result, DataError):
                yield failed(result)
                continue
            size = sizes.popleft()
            found = image_result(item.name, size, result, detector.categories, work.least)
            if request.save_images is not None:
                try:
                    draw_detections(item.path, found, detector, drawing_path(request.save_images, inputs[item]))
                except DataError as error:  # it was readable a moment ago
                    yield failed(error)
                    continue
                drawn += 1
            tally.add(work, item.name, size, len(found.detections), max([-1.0, *result.scores[:1].tolist()]))
            yield found
    if quiet:
        return
    tally.say(work.least)
    if drawn:
        say(f"wrote images with boxes to {request.save_images}")
        warn_of_letters(category.name for category in detector.categories)


def _read(
    inputs: Iterable[Input], work: Work, ended: Callable[[], int], sizes: deque[tuple[int, int]]
) -> Iterator[PreparedImage | DataError]:
    """Yield images until a signal arrives; append the size of each readable one to `sizes`."""
    from dinocore.stream.images import PreparedImage, read_ahead

    for image in read_ahead([item.path for item in inputs], work.detector.config.data, work.slicing):
        if isinstance(image, PreparedImage):
            sizes.append(image.size)
        yield image
        if ended():
            return


def _shrinking(work: Work, name: str, size: tuple[int, int]) -> list[tuple[float, str]]:
    """The shrink factor and the name of an image (height, width) if it is shrunk too much; otherwise empty."""
    from dinocore.stream.slices import SHRINKS_MUCH, shrink_factor

    if work.request.slice == "auto":
        return []
    windows = work.slicing.windows(size) if work.slicing else []
    seen = [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in windows[1:]] or [size]  # the first is the whole image
    factor = max(shrink_factor(part, work.detector.config.data) for part in seen)
    return [(factor, name)] if factor > SHRINKS_MUCH else []


def _show(found: Sequence[ImageResult]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("file", "label"):
        table.add_column(title, overflow="fold")
    for title in ("score", "x0 y0 x1 y1"):
        table.add_column(title, justify="right", overflow="fold")
    for item in found:
        for d in item.detections:
            box = whole(d["box_xyxy"])
            table.add_row(escape(item.file), escape(d["label"]), f"{d['score']:.2f}", box)
        if not item.detections:
            table.add_row(escape(item.file), "-", "", "nothing found")
    stdout.print(table)
