"""`dino predict` on a video, camera or stream: frame by frame, with constant memory."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image
from rich.progress import Progress

from dinocore.detections_io import as_found
from dinocore.draw.boxes import Box, LabelMemory, class_color, draw_boxes
from dinocore.errors import ConfigError, DataError, Interrupted
from dinocore.predict import Detections
from dinocore.stream.images import PreparedImage, detect_stream, prepare
from dinocore.stream.video import CODECS, Damaged, Film, FilmWriter, Frame, ObjectTracker, open_film, require_trackers
from dinocore.system.files import ESCAPED, check_file
from dinocore.words import counted, typed

from ...console import say, stderr, stdout, warn, warn_of_letters
from ...signals import ending_early
from .predict import Tally
from .request import PredictRequest, Work, check_request, open_work

SAY_EVERY = 30  # seconds, where nobody watches a bar
MOST_DAMAGE = 10  # places that are named
LOW_SCORE = 0.1  # tracks hold on to objects that are seen this badly for a while


class FilmOptions(NamedTuple):
    """The options that only films have."""

    save_video: Path | None
    every: int
    start: float
    end: float | None
    track: bool


def predict_film(
    source: str, request: PredictRequest, options: FilmOptions, weights: str | None, device: str, amp: str
) -> None:
    """Detect in the frames of a film; write lines of JSON and a film with the boxes drawn in.

    Raises:
        DataError: it cannot be opened, or has no frame that can be decoded.
        Interrupted: a signal came; what was found so far is written, and the film is finished.
    """
    request = _checked(source, request, options)
    with ExitStack() as stack:
        film = stack.enter_context(open_film(source))
        rate = film.rate / options.every
        work = open_work(request, weights, device, amp)
        track = ObjectTracker(rate, min(work.least)) if options.track else None
        ended = stack.enter_context(ending_early())
        lines: TextIO | None = None
        writer = FilmWriter(options.save_video, rate, film.steady) if options.save_video else None
        if writer:
            stack.callback(writer.close)
        count, tally, memory = 0, Tally(), LabelMemory()
        damaged: list[Damaged] = []
        bar = stack.enter_context(Progress(console=stderr, disable=not stderr.is_terminal, transient=True))
        frames = _watched(film, options, bar, ended)
        for frame, detections in _detected(work, frames, damaged, film.frames is None):
            row = _row(source, frame, detections, work, track)
            if request.out and not count:  # where there is no frame, an older file stays
                lines = stack.enter_context(request.out.open("w", encoding="utf-8", errors=ESCAPED))
            _put(row, lines, request.json or not (lines or writer))
            if writer:
                writer.add(_drawn(frame, row, work, memory), frame.seconds, frame.aspect)
            count += 1
            best = max([-1.0, *detections.scores[:1].tolist()])
            tally.add(work, source, frame.pixels.shape[:2], len(row["detections"]), best)
            del tally.shrunk[1:]  # all frames are of one size
        stopped = ended()
    _warn_of_damage(source, damaged)
    if not count and not stopped:
        raise DataError(f"{source} has no frames that can be decoded in this range", where=source,
                        fix="change --start and --end")  # fmt: skip
    done = f"{counted(tally.passed, 'detection')} in {counted(count, 'frame')}"
    written = " and ".join(str(path) for path in (request.out, options.save_video) if path and count)
    say(f"wrote {written}: {done}" if written else done)
    tally.say(work.least)
    if writer and count:
        warn_of_letters(category.name for category in work.detector.categories)
    if stopped:
        raise Interrupted(f"interrupted after {counted(count, 'frame')}; the results so far are written", stopped)


def _warn_of_damage(source: str, damaged: list[Damaged]) -> None:
    for place in damaged[:MOST_DAMAGE]:
        warn(f"{source} is damaged after frame {place.after}: {place.reason}")
    if len(damaged) > MOST_DAMAGE:
        warn(f"{source} is damaged at {len(damaged)} places; the first {MOST_DAMAGE} are above")


def _checked(source: str, request: PredictRequest, options: FilmOptions) -> PredictRequest:
    """Refuse what a film cannot have, before any work."""
    if request.save_images is not None:
        raise ConfigError("--save-images is for images; for a video, use --save-video out.mp4")
    if request.resume:
        raise ConfigError("--resume does not work for video; continue with --start SECONDS and another --out")
    if request.out is not None and request.out.suffix.lower() != ".jsonl":
        better = typed(request.out.with_suffix(".jsonl"))
        raise ConfigError(f"a video gives one JSON line per frame; try --out {better}")
    if request.format not in ("auto", "jsonl"):
        raise ConfigError(f"a video gives one JSON line per frame, so --format {request.format} does not work; drop it")
    _check_options(source, options)
    request = check_request(request._replace(format="jsonl"))
    if request.out is not None:
        request.out.parent.mkdir(parents=True, exist_ok=True)
    return request


def _check_options(source: str, options: FilmOptions) -> None:
    if options.end is not None and options.end <= options.start:
        raise ConfigError(f"--end {options.end:g} is not after --start {options.start:g}; give a later --end")
    if options.save_video is not None:
        check_file("--save-video", options.save_video, *CODECS)
        if options.save_video.exists() and Path(source).exists() and options.save_video.samefile(source):
            raise ConfigError(f"--save-video {options.save_video} is the input file; choose another name")
        options.save_video.parent.mkdir(parents=True, exist_ok=True)
    if options.track:
        require_trackers()


def _watched(film: Film, options: FilmOptions, bar: Progress, ended: Callable[[], int]) -> Iterator[Frame | Damaged]:
    """The frames, until a signal comes; how far it is and how long it will take is shown."""
    last = film.frames if options.end is None else round(options.end * film.rate)
    first = round(options.start * film.rate)
    task = bar.add_task("predicting", total=None if last is None else max(1, last - first))
    begun = last_line = time.monotonic()
    for frame in film.read(options.every, options.start, options.end):
        if isinstance(frame, Frame):
            done = frame.number - first
            bar.update(task, completed=done)
            now = time.monotonic()
            if bar.disable and now - last_line > SAY_EVERY:
                last_line = now
                left = "" if not last or not done else f", {(now - begun) * (last - first - done) / done:.0f} s left"
                say(f"frame {frame.number}" + (f" of {last}{left}" if last else ""))
        yield frame
        if ended():
            return


def _detected(
    work: Work, frames: Iterator[Frame | Damaged], damaged: list[Damaged], live: bool
) -> Iterator[tuple[Frame, Detections]]:
    """Each frame with what was found in it; a live image does not wait for others to fill a batch."""
    waiting: deque[Frame] = deque()

    def prepared() -> Iterator[PreparedImage]:
        import torch

        for frame in frames:
            if isinstance(frame, Damaged):
                damaged.append(frame)
                continue
            waiting.append(frame)
            pixels = torch.from_numpy(frame.pixels).permute(2, 0, 1)
            yield prepare(pixels, work.detector.config.data, work.slicing)

    size = 1 if live and work.request.batch_size == "auto" else work.request.batch_size
    for detections in detect_stream(work.detector, prepared(), size):
        yield waiting.popleft(), detections


def _row(source: str, frame: Frame, detections: Detections, work: Work, track: ObjectTracker | None) -> dict[str, Any]:
    """One line of --out: as for an image, with number and time of the frame, and with `track` in each detection."""
    size, categories = frame.pixels.shape[:2], work.detector.categories
    head = {"file": source, "frame": frame.number, "seconds": round(frame.seconds, 3)}
    if track is None:
        found = as_found(source, size, detections, categories, work.least)
        return head | found._asdict()
    low = [min(LOW_SCORE, score) for score in work.least]
    sure = detections.scores >= detections.scores.new_tensor(low)[detections.labels]
    some = work.detector.named(detections.labels[sure], detections.scores[sure], detections.boxes_xyxy[sure])
    found = as_found(source, size, some, categories, low)
    rows = [
        d | {"track": None if identity < 0 else identity}
        for d, identity, label in zip(found.detections, track(some), some.labels.tolist(), strict=True)
        if d["score"] >= work.least[label] or identity >= 0
    ]
    return head | found._asdict() | {"detections": rows}


def _put(row: dict[str, Any], lines: TextIO | None, to_stdout: bool) -> None:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    if lines:
        lines.write(text + "\n")
        lines.flush()
    if to_stdout:
        stdout.file.write(text + "\n")


def _drawn(frame: Frame, row: dict[str, Any], work: Work, memory: LabelMemory) -> Image.Image:
    numbers = {category.name: k for k, category in enumerate(work.detector.categories)}
    boxes = []
    for d in reversed(row["detections"]):
        known = d.get("track") is not None
        text = f"{d['label']} {d['track']}" if known else f"{d['label']} {d['score']:.2f}"
        boxes.append(Box(d["box_xyxy"], class_color(d["track"] if known else numbers[d["label"]]), text))
    return draw_boxes(Image.fromarray(np.asarray(frame.pixels)), boxes, memory)
