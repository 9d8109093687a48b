"""Video through PyAV: frames are decoded one at a time, with constant memory."""

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


UNSTEADY = 0.02  # part by which the average rate differs from the usual one where frames come at varying times
WITHOUT_INDEX = ("mpeg", "mpegts")  # containers in which FFmpeg jumps to a place behind, or gives wrong times there
SILENCE = (20.0, 10.0)  # seconds that a camera or stream may send nothing: while it is opened, and then
ODD_ASPECT = 4  # of a pixel; no camera has that, so a file that says so is damaged
INSTANT = 1e-6  # seconds; times that differ by less are the same
# What films are written as: containers that hold H.264, and one that holds VP9
CODECS = {suffix: "libx264" for suffix in (".mp4", ".mov", ".avi", ".mkv", ".m4v")} | {".webm": "libvpx-vp9"}
QUALITY = {"libvpx-vp9": {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "8"}}


class Frame(NamedTuple):
    """One frame of a film."""

    number: int  # from 0, counted in the film
    seconds: float  # since the film's beginning
    pixels: np.ndarray  # (H, W, 3) uint8 RGB, upright
    aspect: Fraction = Fraction(1)  # width of a pixel to its height, when the film is shown


class Damaged(NamedTuple):
    """A place in a film that cannot be decoded."""

    after: int  # number of the last frame before it; -1 at the beginning
    reason: str


class Broken(NamedTuple):
    """A piece of the file from which no frame comes, or a faulty one."""

    seconds: float  # when its frame was to be seen
    reason: str
    lost: bool  # whether its frame will not come


class Numbered(NamedTuple):
    """A frame before it becomes pixels, or the film's end; and the damage just before it or in it."""

    number: int
    seconds: float
    frame: Any  # av.VideoFrame; None at the end
    damage: Damaged | None
    since: float  # when the damage begins


class Film(NamedTuple):
    """An open film, camera or stream."""

    container: Any  # av.container.InputContainer
    stream: Any  # av.VideoStream
    rate: float  # frames per second
    frames: int | None  # about how many; None where nobody knows, as with a camera
    steady: bool  # whether it is a file whose frames come at one rate
    length: float | None  # seconds, as the file says; None where it does not
    beginning: int  # when its first frame is to be seen, in the stream's ticks

    def read(self, every: int = 1, start: float = 0, end: float | None = None) -> "Iterator[Frame | Damaged]":
        """Every Nth frame from second `start` until before `end`; damage is reported, and reading continues after it.

        Frames have the numbers that they have in the whole film, whatever `start` is: those of a steady film by their
        time; those of another are counted, for which it is decoded from its beginning. A frame that was decoded with
        errors is told as damage, and given.
        """
        import av

        stop = math.inf if end is None else end - INSTANT
        self._enter(start)
        for number, seconds, frame, damage, since in self._numbered(start > 0):
            if seconds < start - INSTANT:
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
                yield Damaged(number - 1, _words(error))

    def _enter(self, start: float) -> None:
        """Jump to the key frame before `start`, where the film can jump and its frames are known by their time."""
        import av

        if start > 0 and self.steady and self.container.format.name not in WITHOUT_INDEX:
            with suppress(av.FFmpegError):  # some have no other places
                self.container.seek(int(start * av.time_base) + (self.container.start_time or 0))

    def _numbered(self, entered: bool) -> Iterator[Numbered]:
        """All frames from here on, then the end."""
        number, before, stop = -1, None, 0.0
        broken: list[Broken] = []
        for item in self._decoded():
            if isinstance(item, Broken):
                broken.append(item)
                continue
            now = self._seconds(item, number + 1)
            due = [piece for piece in broken if piece.seconds <= now]
            broken = [piece for piece in broken if piece.seconds > now]
            reasons = [piece.reason for piece in due]
            if self.steady and before is not None and now - before > 1.5 / self.rate:
                reasons.append(f"no frames between {before:.2f} s and {now:.2f} s")
            since = stop if reasons else now
            if item.is_corrupt:
                reasons.append("the next frame has errors")
            last, number = number, self._number(number, now, sum(piece.lost for piece in due))
            after = number - 1 if entered and before is None else last
            yield Numbered(number, now, item, _damage(after, reasons), since)
            before, stop = now, now + max(1 / self.rate, float((item.duration or 0) * self.stream.time_base))
        reasons = [piece.reason for piece in broken]
        if number >= 0 and self.length is not None and stop < self.length - self._tolerance():
            reasons.append(f"it ends at {stop:.2f} s, but its header says {self.length:.2f} s")
        yield Numbered(number + 1, stop, None, _damage(number, reasons), stop)

    def _decoded(self) -> "Iterator[av.VideoFrame | Broken]":
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:  # the file ends here, or the line is cut
                yield Broken(math.inf, _words(error), lost=False)
                return
            if packet is None:
                return
            seconds = -math.inf if packet.pts is None else self._time(packet.pts)
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                yield Broken(seconds, _words(error), lost=True)
                continue
            if packet.is_corrupt:
                yield Broken(seconds, "a part of the file is damaged or missing", lost=False)
            yield from frames

    def _number(self, last: int, seconds: float, lost: int) -> int:
        """That of the frame at `seconds`, `last` being that of the frame before it."""
        if not self.steady:
            return last + 1 + lost
        number = round(seconds * self.rate)
        return number + 1 if number == last else number  # times that are rounded to milliseconds

    def _seconds(self, frame: "av.VideoFrame", rank: int) -> float:
        return rank / self.rate if frame.pts is None else self._time(frame.pts)

    def _time(self, ticks: int) -> float:
        return float((ticks - self.beginning) * self.stream.time_base)

    def _tolerance(self) -> float:
        """Seconds by which a film may be shorter than its file says, which may mean a longer track of sound."""
        return 0.5 if self.stream.duration or len(self.container.streams) == 1 else 2.0


def _damage(after: int, reasons: list[str]) -> Damaged | None:
    return Damaged(after, ", ".join(dict.fromkeys(reasons))) if reasons else None


def _words(error: Exception, opening: bool = False) -> str:
    if type(error).__name__ == "ExitError":  # PyAV's after a timeout
        return f"no data for {SILENCE[0 if opening else 1]:g} s"
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def open_film(source: str) -> Iterator[Film]:
    """Open a video file, a camera such as /dev/video0, or the URL of a stream.

    Raises:
        DataError: it cannot be opened, shows nothing, or is a stream that sends nothing.
        EnvironmentFault: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        fix = f"{install_line('video')}, or extract frames first: ffmpeg -i {typed(source)} frame-%05d.jpg"
        raise EnvironmentFault("video needs the package `av`, which is not installed", where=source, fix=fix) from None
    try:
        camera = source.startswith("/dev/video")
        live = camera or "://" in source  # while FFmpeg waits for it, no signal is heard
        container = av.open(source, format="v4l2" if camera else None, timeout=SILENCE if live else None)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = _words(error, opening=True)
        film = typed(source)
        fix = f"see whether `ffprobe {film}` can read it, or extract frames: ffmpeg -i {film} frame-%05d.jpg"
        raise DataError(f"{source} cannot be opened as a video: {reason}", where=source, fix=fix) from None
    with container:
        if not container.streams.video:
            raise DataError(f"{source} has sound but no video", where=source, fix="give another file")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield Film(container, stream, *_timing(container, stream), _beginning(source, container, stream))


def _timing(container: Any, stream: Any) -> tuple[float, int | None, bool, float | None]:
    """Rate, number of frames, whether it is steady, and length, as in `Film`."""
    import av

    average, base = float(stream.average_rate or 0), float(stream.base_rate or 0)
    timed = stream.time_base is not None and bool(stream.duration or container.duration)  # cameras and streams are not
    steady = timed and base > 0 and abs(average / base - 1) < UNSTEADY
    rate = base if steady else average or float(stream.guessed_rate or 25)
    length = None
    if timed:
        length = float(stream.duration * stream.time_base if stream.duration else container.duration / av.time_base)
    return rate, stream.frames or (round(length * rate) if length else None), steady, length


def _beginning(source: str, container: Any, stream: Any) -> int:
    """When the first frame is to be seen, in the stream's ticks.

    AVI stores no times. FFmpeg makes them up, and those of H.264 and of MPEG-4 with B-frames are all one frame late.
    """
    import av

    start = stream.start_time or 0
    if container.format.name != "avi" or not Path(source).is_file():
        return start
    with suppress(av.FFmpegError), av.open(source) as again:  # not all that can be opened can go back to its beginning
        first = next(again.demux(video=0), None)
        if first is not None and first.pts is not None and first.dts is not None:
            return start + first.pts - first.dts
    return start


def _upright(frame: "av.VideoFrame", aspect: Fraction) -> tuple[np.ndarray, Fraction]:
    """RGB, turned and mirrored as the film says, and the aspect of its pixels then."""
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
    """The image with square pixels; it is stretched along the pixels' shorter side, so no detail is lost."""
    if aspect == 1 or not 1 / ODD_ASPECT <= aspect <= ODD_ASPECT:
        return image
    width, height = image.size
    return image.resize((round(width * aspect), height) if aspect > 1 else (width, round(height / aspect)))


class FilmWriter:
    """Writes frames into a film, each at its time, one by one: VP9 for .webm, else H.264."""

    def __init__(self, path: Path, rate: float, steady: bool = True):
        """
        Args:
            path: its suffix is one of `CODECS`.
            rate: frames per second.
            steady: whether they come at this rate, so that times are multiples of 1 / rate.
        """
        import av

        self.path = path
        self.temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")  # the suffix says the container
        self.container = av.open(str(self.temporary), "w")
        self.rate = Fraction(rate).limit_denominator(10_000)
        self.untimed = path.suffix.lower() == ".avi"  # it stores no times: frames follow each other at the rate
        self.tick = 1 / self.rate if steady or self.untimed else Fraction(1, 1000)  # seconds
        self.stream: Any = None
        self.begun, self.last = 0.0, -1
        self.pixels: np.ndarray | None = None  # of the last frame

    def add(self, image: Image.Image, seconds: float, aspect: Fraction = Fraction(1)) -> None:
        """Append a frame that is to be seen at `seconds`; all are brought to the even size of the first.

        Args:
            aspect: width of a pixel to its height, from 1/4 to 4; those of the film are square.
        """
        image = _squared(image, aspect)
        if self.stream is None:
            codec = CODECS[self.path.suffix.lower()]
            self.stream = self.container.add_stream(codec, rate=self.rate, options=QUALITY.get(codec, {}))
            self.stream.width, self.stream.height = image.width // 2 * 2, image.height // 2 * 2
            self.stream.pix_fmt, self.stream.codec_context.time_base = "yuv420p", self.tick
            if self.untimed:  # so that they must be stored in order
                self.stream.codec_context.max_b_frames = 0
            self.begun = seconds
        size = (self.stream.width, self.stream.height)
        if max(image.width - size[0], image.height - size[1]) > 1 or min(image.size) < min(size):
            image = ImageOps.pad(image, size)  # the video's size has changed
        pixels = np.asarray(image.crop((0, 0, *size)) if image.size != size else image)
        now = max(self.last + 1, round((seconds - self.begun) / float(self.tick)))
        if self.untimed and self.pixels is not None:  # where no frame comes, the last one stays
            for pause in range(self.last + 1, now):
                self._encode(self.pixels, pause)
        self._encode(pixels, now)
        self.pixels, self.last = pixels, now

    def _encode(self, pixels: np.ndarray, ticks: int) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = ticks, self.tick
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Finish the film and give it its name."""
        if self.stream is None:  # not one frame
            self.container.close()
            self.temporary.unlink(missing_ok=True)
            return
        self.container.mux(self.stream.encode())
        self.container.close()
        self.temporary.replace(self.path)


def require_trackers() -> None:
    """Find out before the work whether objects can be tracked.

    Raises:
        EnvironmentFault: the package `trackers` is not installed.
    """
    if importlib.util.find_spec("trackers") is None:
        fix = f"{install_line('video')}, or drop --track"
        raise EnvironmentFault("--track needs the package `trackers`, which is not installed", fix=fix)


class ObjectTracker:
    """Identities of objects over frames, by ByteTrack (Zhang et al. 2022) of the package `trackers`."""

    def __init__(self, rate: float, threshold: float):
        """
        Args:
            rate: frames per second that are looked at.
            threshold: score from which a detection may begin a track.

        Raises:
            EnvironmentFault: the package is not installed.
        """
        require_trackers()
        from trackers import ByteTrackTracker

        self.tracker = ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=threshold, high_conf_det_threshold=threshold
        )

    def __call__(self, detections: Detections) -> list[int]:
        """The identity of each detection, from 0; -1 where there is none, or not yet: a track needs two frames."""
        found = detections.to_supervision()
        found.data["index"] = np.arange(len(found))
        tracked = self.tracker.update(found)
        identities = [-1] * len(found)
        if len(tracked) and tracked.tracker_id is not None:
            for index, identity in zip(tracked.data["index"], tracked.tracker_id, strict=True):
                identities[int(index)] = int(identity)
        return identities
