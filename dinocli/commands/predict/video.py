"""`dino predict` on a video, camera or stream: frame by frame, in constant memory."""

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

from dinocore.detections_io import image_result
from dinocore.draw.boxes import Box, LabelMemory, class_color, draw_boxes
from dinocore.errors import ConfigError, DataError, Interrupted
from dinocore.predict import Detections
from dinocore.stream.images import PreparedImage, detect_stream, prepare
from dinocore.stream.video import (
    CODECS,
    Damaged,
    Frame,
    ObjectTracker,
    Video,
    VideoWriter,
    open_video,
    require_trackers,
)
from dinocore.system.files import ESCAPED, check_file
from dinocore.words import counted, typed

from ...console import say, stderr, stdout, warn, warn_of_letters
from ...signals import ending_early
from .predict import Tally
from .request import PredictRequest, Work, check_request, open_work

SECONDS_PER_LINE = 30  # between lines of progress where there is no terminal to show a bar
MAX_DAMAGE_LINES = 10
LOW_SCORE = 0.1  # a track may continue through detections with scores as low as this


class VideoOptions(NamedTuple):
    """The options that apply only to video."""

    save_video: Path | None
    every: int
    start: float
    end: float | None
    track: bool


def predict_video(
    source: str, request: PredictRequest, options: VideoOptions, weights: str | None, device: str, amp: str
) -> None:
    """Detect objects in the frames of a video; write JSON lines and a video with the boxes drawn.

    Raises:
        DataError: it cannot be opened, or no frame can be decoded.
        Interrupted: by a signal; the results so far are written, and the output video is finished.
    """
    request = _checked(source, request, options)
    with ExitStack() as stack:
        video = stack.enter_context(open_video(source))
        rate = video.rate / options.every
        work = open_work(request, weights, device, amp)
        track = ObjectTracker(rate, min(work.least)) if options.track else None
        ended = stack.enter_context(ending_early())
        lines: TextIO | None = None
        writer = VideoWriter(options.save_video, rate, video.constant_rate) if options.save_video else None
        if writer:
            stack.callback(writer.close)
        count, tally, memory = 0, Tally(), LabelMemory()
        damaged: list[Damaged] = []
        bar = stack.enter_context(Progress(console=stderr, disable=not stderr.is_terminal, transient=True))
        frames = _read_frames(video, options, bar, ended)
        for frame, detections in _detect(work, frames, damaged, video.frames is None):
            row = _row(source, frame, detections, work, track)
            if request.out and not count:  # opened only now, so that without any frame an existing file is kept
                lines = stack.enter_context(request.out.open("w", encoding="utf-8", errors=ESCAPED))
            _write_line(row, lines, request.json or not (lines or writer))
            if writer:
                writer.add(_draw(frame, row, work, memory), frame.seconds, frame.aspect)
            count += 1
            best = max([-1.0, *detections.scores[:1].tolist()])
            tally.add(work, source, frame.pixels.shape[:2], len(row["detections"]), best)
            del tally.shrunk[1:]  # all frames have the same size
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
    for place in damaged[:MAX_DAMAGE_LINES]:
        warn(f"{source} is damaged after frame {place.after}: {place.reason}")
    if len(damaged) > MAX_DAMAGE_LINES:
        warn(f"{source} is damaged at {len(damaged)} places; the first {MAX_DAMAGE_LINES} are above")


def _checked(source: str, request: PredictRequest, options: VideoOptions) -> PredictRequest:
    """Reject options that don't work for video, before any work."""
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


def _check_options(source: str, options: VideoOptions) -> None:
    if options.end is not None and options.end <= options.start:
        raise ConfigError(f"--end {options.end:g} is not after --start {options.start:g}; give a later --end")
    if options.save_video is not None:
        check_file("--save-video", options.save_video, *CODECS)
        if options.save_video.exists() and Path(source).exists() and options.save_video.samefile(source):
            raise ConfigError(f"--save-video {options.save_video} is the input file; choose another name")
        options.save_video.parent.mkdir(parents=True, exist_ok=True)
    if options.track:
        require_trackers()


def _read_frames(
    video: Video, options: VideoOptions, bar: Progress, ended: Callable[[], int]
) -> Iterator[Frame | Damaged]:
    """Yield frames until a signal arrives, and report progress."""
    last = video.frames if options.end is None else round(options.end * video.rate)
    first = round(options.start * video.rate)
    task = bar.add_task("predicting", total=None if last is None else max(1, last - first))
    started = last_line = time.monotonic()
    for frame in video.read(options.every, options.start, options.end):
        if isinstance(frame, Frame):
            done = frame.number - first
            bar.update(task, completed=done)
            now = time.monotonic()
            if bar.disable and now - last_line > SECONDS_PER_LINE:
                last_line = now
                left = "" if not last or not done else f", {(now - started) * (last - first - done) / done:.0f} s left"
                say(f"frame {frame.number}" + (f" of {last}{left}" if last else ""))
        yield frame
        if ended():
            return


def _detect(
    work: Work, frames: Iterator[Frame | Damaged], damaged: list[Damaged], live: bool
) -> Iterator[tuple[Frame, Detections]]:
    """Yield each frame with its detections; live frames are processed at once instead of in batches."""
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
    """One line of --out: as for an image, plus the frame's number and time, and `track` in each detection."""
    size, categories = frame.pixels.shape[:2], work.detector.categories
    head = {"file": source, "frame": frame.number, "seconds": round(frame.seconds, 3)}
    if track is None:
        found = image_result(source, size, detections, categories, work.least)
        return head | found._asdict()
    low = [min(LOW_SCORE, score) for score in work.least]
    keep = detections.scores >= detections.scores.new_tensor(low)[detections.labels]
    tracked = work.detector.named(detections.labels[keep], detections.scores[keep], detections.boxes_xyxy[keep])
    found = image_result(source, size, tracked, categories, low)
    rows = [
        d | {"track": None if track_id < 0 else track_id}
        for d, track_id, label in zip(found.detections, track(tracked), tracked.labels.tolist(), strict=True)
        if d["score"] >= work.least[label] or track_id >= 0
    ]
    return head | found._asdict() | {"detections": rows}


def _write_line(row: dict[str, Any], lines: TextIO | None, to_stdout: bool) -> None:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    if lines:
        lines.write(text + "\n")
        lines.flush()
    if to_stdout:
        stdout.file.write(text + "\n")


def _draw(frame: Frame, row: dict[str, Any], work: Work, memory: LabelMemory) -> Image.Image:
    numbers = {category.name: k for k, category in enumerate(work.detector.categories)}
    boxes = []
    for d in reversed(row["detections"]):
        tracked = d.get("track") is not None
        text = f"{d['label']} {d['track']}" if tracked else f"{d['label']} {d['score']:.2f}"
        boxes.append(Box(d["box_xyxy"], class_color(d["track"] if tracked else numbers[d["label"]]), text))
    return draw_boxes(Image.fromarray(np.asarray(frame.pixels)), boxes, memory)
