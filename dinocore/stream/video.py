"""Read and write video with PyAV, one frame at a time, in constant memory."""

import importlib.util
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError, EnvironmentFault
from ..predict import Detections
from ..system.extras import install_line
from ..words import typed

if TYPE_CHECKING:
    import av


VARIABLE_RATE = 0.02  # relative difference of average and base frame rate from which the rate counts as variable
UNSEEKABLE = ("mpeg", "mpegts")  # containers in which FFmpeg seeks too far, or reports wrong times after a seek
TIMEOUTS = (20.0, 10.0)  # seconds without data from a camera or stream: while opening it, and afterwards
MAX_ASPECT = 4  # of a pixel; beyond that the file must be wrong
EPSILON = 1e-6  # seconds; times that differ by less are equal
# Output formats: containers for H.264, and one for VP9
CODECS = {suffix: "libx264" for suffix in (".mp4", ".mov", ".avi", ".mkv", ".m4v")} | {".webm": "libvpx-vp9"}
QUALITY = {"libvpx-vp9": {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "8"}}


class Frame(NamedTuple):
    """One frame of a video."""

    number: int  # from 0, in the whole video
    seconds: float  # since the start of the video
    pixels: np.ndarray  # (H, W, 3) uint8 RGB, upright
    aspect: Fraction = Fraction(1)  # pixel aspect ratio, width / height


class Damaged(NamedTuple):
    """A part of a video that cannot be decoded."""

    after: int  # number of the last frame before it; -1 at the start
    reason: str


class Broken(NamedTuple):
    """A packet that yields no frame or a damaged one."""

    seconds: float  # presentation time of its frame
    reason: str
    lost: bool  # whether its frame is lost


class Numbered(NamedTuple):
    """A frame not yet converted to pixels, or the end of the video, with any damage just before it or in it."""

    number: int
    seconds: float
    frame: Any  # av.VideoFrame; None at the end
    damage: Damaged | None
    since: float  # when the damage starts


class Video(NamedTuple):
    """An open video file, camera or stream."""

    container: Any  # av.container.InputContainer
    stream: Any  # av.VideoStream
    rate: float  # frames per second
    frames: int | None  # approximate number; None if unknown, as for a camera
    constant_rate: bool  # whether it is a file with a constant frame rate
    length: float | None  # seconds, according to the file; None if unknown
    start: int  # presentation time of the first frame, in the stream's time base

    def read(self, every: int = 1, start: float = 0, end: float | None = None) -> "Iterator[Frame | Damaged]":
        """Yield every Nth frame from second `start` up to `end`, and `Damaged` where decoding fails; then continue.

        Frame numbers refer to the whole video, whatever `start` is. At a constant rate they follow from the time;
        otherwise frames are counted, so the video is decoded from its start. A frame decoded with errors is yielded
        too, after a `Damaged`.
        """
        import av

        stop = math.inf if end is None else end - EPSILON
        self._seek(start)
        for number, seconds, frame, damage, since in self._numbered(start > 0):
            if seconds < start - EPSILON:
                continue
            if damage and since < stop:
                yield damage
            if seconds >= stop:
                return
            if frame is None or number % every:
                continue
            try:
                yield Frame(number, seconds, *_upright(frame, self.stream.sample_aspect_ratio or Fraction(1)))
            except av.FFmpegError as error:
                yield Damaged(number - 1, _reason(error))

    def _seek(self, start: float) -> None:
        """Seek to the key frame before `start`, if the container can seek and frame numbers follow from the time."""
        import av

        if start > 0 and self.constant_rate and self.container.format.name not in UNSEEKABLE:
            with suppress(av.FFmpegError):  # some are not seekable
                self.container.seek(int(start * av.time_base) + (self.container.start_time or 0))

    def _numbered(self, after_seek: bool) -> Iterator[Numbered]:
        """All frames from the current position, then the end."""
        number, before, stop = -1, None, 0.0
        broken: list[Broken] = []
        for item in self._decoded():
            if isinstance(item, Broken):
                broken.append(item)
                continue
            now = self._seconds(item, number + 1)
            due = [packet for packet in broken if packet.seconds <= now]
            broken = [packet for packet in broken if packet.seconds > now]
            reasons = [packet.reason for packet in due]
            if self.constant_rate and before is not None and now - before > 1.5 / self.rate:
                reasons.append(f"no frames between {before:.2f} s and {now:.2f} s")
            since = stop if reasons else now
            if item.is_corrupt:
                reasons.append("the next frame has errors")
            last, number = number, self._number(number, now, sum(packet.lost for packet in due))
            after = number - 1 if after_seek and before is None else last
            yield Numbered(number, now, item, _damage(after, reasons), since)
            before, stop = now, now + max(1 / self.rate, float((item.duration or 0) * self.stream.time_base))
        reasons = [packet.reason for packet in broken]
        if number >= 0 and self.length is not None and stop < self.length - self._tolerance():
            reasons.append(f"it ends at {stop:.2f} s, but its header says {self.length:.2f} s")
        yield Numbered(number + 1, stop, None, _damage(number, reasons), stop)

    def _decoded(self) -> "Iterator[av.VideoFrame | Broken]":
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:  # the file is cut off here, or the connection is lost
                yield Broken(math.inf, _reason(error), lost=False)
                return
            if packet is None:
                return
            seconds = -math.inf if packet.pts is None else self._time(packet.pts)
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                yield Broken(seconds, _reason(error), lost=True)
                continue
            if packet.is_corrupt:
                yield Broken(seconds, "a part of the file is damaged or missing", lost=False)
            yield from frames

    def _number(self, last: int, seconds: float, lost: int) -> int:
        """The number of the frame at `seconds`; `last` is the number of the previous frame."""
        if not self.constant_rate:
            return last + 1 + lost
        number = round(seconds * self.rate)
        return number + 1 if number == last else number  # times may be rounded to milliseconds

    def _seconds(self, frame: "av.VideoFrame", rank: int) -> float:
        return rank / self.rate if frame.pts is None else self._time(frame.pts)

    def _time(self, ticks: int) -> float:
        return float((ticks - self.start) * self.stream.time_base)

    def _tolerance(self) -> float:
        """Seconds by which the video may be shorter than the file says, because an audio track may be longer."""
        return 0.5 if self.stream.duration or len(self.container.streams) == 1 else 2.0


def _damage(after: int, reasons: list[str]) -> Damaged | None:
    return Damaged(after, ", ".join(dict.fromkeys(reasons))) if reasons else None


def _reason(error: Exception, opening: bool = False) -> str:
    if type(error).__name__ == "ExitError":  # PyAV's after a timeout
        return f"no data for {TIMEOUTS[0 if opening else 1]:g} s"
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def open_video(source: str) -> Iterator[Video]:
    """Open a video file, a camera such as /dev/video0, or the URL of a stream.

    Raises:
        DataError: it cannot be opened, has no video track, or is a stream that sends no data.
        EnvironmentFault: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        fix = f"{install_line('video')}, or extract frames first: ffmpeg -i {typed(source)} frame-%05d.jpg"
        raise EnvironmentFault("video needs the package `av`, which is not installed", where=source, fix=fix) from None
    try:
        camera = source.startswith("/dev/video")
        live = camera or "://" in source  # needs a timeout, since signals are not handled while FFmpeg waits for data
        container = av.open(source, format="v4l2" if camera else None, timeout=TIMEOUTS if live else None)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = _reason(error, opening=True)
        name = typed(source)
        fix = f"see whether `ffprobe {name}` can read it, or extract frames: ffmpeg -i {name} frame-%05d.jpg"
        raise DataError(f"{source} cannot be opened as a video: {reason}", where=source, fix=fix) from None
    with container:
        if not container.streams.video:
            raise DataError(f"{source} has sound but no video", where=source, fix="give another file")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield Video(container, stream, *_timing(container, stream), _first_time(source, container, stream))


def _timing(container: Any, stream: Any) -> tuple[float, int | None, bool, float | None]:
    """Rate, number of frames, whether the rate is constant, and length, as in `Video`."""
    import av

    average, base = float(stream.average_rate or 0), float(stream.base_rate or 0)
    timed = stream.time_base is not None and bool(stream.duration or container.duration)  # not for cameras and streams
    constant_rate = timed and base > 0 and abs(average / base - 1) < VARIABLE_RATE
    rate = base if constant_rate else average or float(stream.guessed_rate or 25)
    length = None
    if timed:
        length = float(stream.duration * stream.time_base if stream.duration else container.duration / av.time_base)
    return rate, stream.frames or (round(length * rate) if length else None), constant_rate, length


def _first_time(source: str, container: Any, stream: Any) -> int:
    """Presentation time of the first frame, in the stream's time base.

    AVI stores no timestamps. FFmpeg generates them, and with B-frames (H.264, MPEG-4) all are one frame late.
    """
    import av

    start = stream.start_time or 0
    if container.format.name != "avi" or not Path(source).is_file():
        return start
    with suppress(av.FFmpegError), av.open(source) as again:  # not every source can be opened twice
        first = next(again.demux(video=0), None)
        if first is not None and first.pts is not None and first.dts is not None:
            return start + first.pts - first.dts
    return start


def _upright(frame: "av.VideoFrame", aspect: Fraction) -> tuple[np.ndarray, Fraction]:
    """RGB pixels, rotated and flipped as the video's metadata says, and the resulting pixel aspect ratio."""
    pixels = frame.to_ndarray(format="rgb24")
    sides: Any = frame.side_data
    data = next((d for d in sides if d.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return pixels, aspect
    a, b, _, c, d = struct.unpack("=9i", bytes(data))[:5]  # (x, y) is shown at (a x + c y, b x + d y)
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d, aspect = pixels.transpose(1, 0, 2), c, b, 1 / aspect
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]), aspect


def _squared(image: Image.Image, aspect: Fraction) -> Image.Image:
    """Resample to square pixels, by enlarging the shorter side of the pixels so that no detail is lost."""
    if aspect == 1 or not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        return image
    width, height = image.size
    return image.resize((round(width * aspect), height) if aspect > 1 else (width, round(height / aspect)))


class VideoWriter:
    """Writes a video frame by frame, each with its own timestamp: VP9 for .webm, otherwise H.264."""

    def __init__(self, path: Path, rate: float, constant_rate: bool = True):
        """
        Args:
            path: its suffix is one of `CODECS`.
            rate: frames per second.
            constant_rate: whether all times are multiples of 1 / rate.
        """
        import av

        self.path = path
        self.temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")  # the suffix determines the container
        self.container = av.open(str(self.temporary), "w")
        self.rate = Fraction(rate).limit_denominator(10_000)
        self.untimed = path.suffix.lower() == ".avi"  # it stores no timestamps: frames follow each other at the rate
        self.tick = 1 / self.rate if constant_rate or self.untimed else Fraction(1, 1000)  # seconds
        self.stream: Any = None
        self.start, self.last = 0.0, -1
        self.pixels: np.ndarray | None = None  # of the last frame

    def add(self, image: Image.Image, seconds: float, aspect: Fraction = Fraction(1)) -> None:
        """Append a frame to be shown at `seconds`; all are fitted to the size of the first, rounded down to even.

        Args:
            aspect: pixel aspect ratio, width / height, from 1/4 to 4; the written video has square pixels.
        """
        image = _squared(image, aspect)
        if self.stream is None:
            codec = CODECS[self.path.suffix.lower()]
            self.stream = self.container.add_stream(codec, rate=self.rate, options=QUALITY.get(codec, {}))
            self.stream.width, self.stream.height = image.width // 2 * 2, image.height // 2 * 2
            self.stream.pix_fmt, self.stream.codec_context.time_base = "yuv420p", self.tick
            if self.untimed:  # frames must then be stored in order
                self.stream.codec_context.max_b_frames = 0
            self.start = seconds
        size = (self.stream.width, self.stream.height)
        if max(image.width - size[0], image.height - size[1]) > 1 or min(image.size) < min(size):
            image = ImageOps.pad(image, size)  # the source changed its size
        pixels = np.asarray(image.crop((0, 0, *size)) if image.size != size else image)
        now = max(self.last + 1, round((seconds - self.start) / float(self.tick)))
        if self.untimed and self.pixels is not None:  # fill gaps by repeating the last frame
            for gap in range(self.last + 1, now):
                self._encode(self.pixels, gap)
        self._encode(pixels, now)
        self.pixels, self.last = pixels, now

    def _encode(self, pixels: np.ndarray, ticks: int) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = ticks, self.tick
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Finish the video and move it to its final path."""
        if self.stream is None:  # no frame was added
            self.container.close()
            self.temporary.unlink(missing_ok=True)
            return
        self.container.mux(self.stream.encode())
        self.container.close()
        self.temporary.replace(self.path)


def require_trackers() -> None:
    """Check before any work that objects can be tracked.

    Raises:
        EnvironmentFault: the package `trackers` is not installed.
    """
    if importlib.util.find_spec("trackers") is None:
        fix = f"{install_line('video')}, or drop --track"
        raise EnvironmentFault("--track needs the package `trackers`, which is not installed", fix=fix)


class ObjectTracker:
    """Tracks objects over frames with ByteTrack (Zhang et al. 2022), from the package `trackers`."""

    def __init__(self, rate: float, threshold: float):
        """
        Args:
            rate: processed frames per second.
            threshold: minimum score of a detection that may start a track.

        Raises:
            EnvironmentFault: the package is not installed.
        """
        require_trackers()
        from trackers import ByteTrackTracker

        self.tracker = ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=threshold, high_conf_det_threshold=threshold
        )

    def __call__(self, detections: Detections) -> list[int]:
        """The track id of each detection, from 0; -1 if it has none yet, since a track needs two frames."""
        found = detections.to_supervision()
        found.data["index"] = np.arange(len(found))
        tracked = self.tracker.update(found)
        track_ids = [-1] * len(found)
        if len(tracked) and tracked.tracker_id is not None:
            for index, track_id in zip(tracked.data["index"], tracked.tracker_id, strict=True):
                track_ids[int(index)] = int(track_id)
        return track_ids
