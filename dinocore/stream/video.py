"""Films through PyAV: frames are decoded one by one, so that memory does not grow with the film's length."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import DataError, EnvironmentFault
from ..predict import Detections
from ..system.extras import install_line

if TYPE_CHECKING:
    import av


class Frame(NamedTuple):
    """One frame of a film."""

    number: int  # from 0, counted in the film
    seconds: float  # since the film's beginning
    pixels: np.ndarray  # (H, W, 3) uint8 RGB, upright


class Damaged(NamedTuple):
    """A place in a film that cannot be decoded."""

    after: int  # number of the last frame before it; -1 at the beginning
    reason: str


class Film(NamedTuple):
    """An open film, camera or stream."""

    container: Any  # av.container.InputContainer
    stream: Any  # av.VideoStream
    rate: float  # frames per second
    frames: int | None  # about how many; None where nobody knows, as with a camera

    def read(self, every: int = 1, start: float = 0, end: float | None = None) -> "Iterator[Frame | Damaged]":
        """Every Nth frame from second `start` on, before second `end`; damage is told, and reading goes on behind it.

        Frames are counted from the film's first one, whatever `start` is; they are numbered by time where a film was
        entered in the middle, and behind damage.
        """
        import av

        by_time, number = self._enter(start), -1
        for frame in self._decoded():
            if isinstance(frame, Damaged):
                by_time = True
                yield frame._replace(after=number)
                continue
            seconds = self._seconds(frame, number + 1)
            number = round(seconds * self.rate) if by_time else number + 1
            if seconds + 0.5 / self.rate < start:
                continue
            if end is not None and seconds >= end:
                return
            if number % every:
                continue
            try:
                yield Frame(number, seconds, _upright(frame))
            except av.FFmpegError as error:
                yield Damaged(number - 1, str(error))

    def _enter(self, start: float) -> bool:
        """Jump to the key frame before `start`, where the film can jump; whether it did."""
        import av

        if start <= 0:
            return False
        try:
            self.container.seek(int(start * av.time_base))
        except av.FFmpegError:  # a stream has no other places
            return False
        return True

    def _decoded(self) -> "Iterator[av.VideoFrame | Damaged]":
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:  # the file ends here, or the line is cut
                yield Damaged(-1, str(error))
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                yield Damaged(-1, str(error))

    def _seconds(self, frame: "av.VideoFrame", rank: int) -> float:
        if frame.pts is None or self.stream.time_base is None:
            return rank / self.rate
        return float((frame.pts - (self.stream.start_time or 0)) * self.stream.time_base)


@contextmanager
def open_film(source: str) -> Iterator[Film]:
    """Open a film's file, a camera such as /dev/video0, or the address of a stream.

    Raises:
        DataError: it cannot be opened, or shows nothing.
        EnvironmentFault: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        fix = f"{install_line('video')}, or make images of it first: ffmpeg -i {source} frame-%05d.jpg"
        raise EnvironmentFault("films need the package `av`, which is not installed", where=source, fix=fix) from None
    try:
        container = av.open(source, format="v4l2" if source.startswith("/dev/video") else None)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fix = f"see whether `ffprobe {source}` can read it, or make images of it: ffmpeg -i {source} frame-%05d.jpg"
        raise DataError(f"{source} cannot be opened as a film: {reason}", where=source, fix=fix) from None
    with container:
        if not container.streams.video:
            raise DataError(f"{source} has sound but no film", where=source, fix="give another file")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        length = float(container.duration / av.time_base) if container.duration else 0.0
        frames = stream.frames or (round(length * rate) if length > 0 else None)
        yield Film(container, stream, rate, frames)


def _upright(frame: "av.VideoFrame") -> np.ndarray:
    """RGB, turned as the film says."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


class FilmWriter:
    """Writes frames into an H.264 film, one by one."""

    def __init__(self, path: Path, rate: float):
        import av

        self.path = path
        self.temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")  # the suffix says the container
        self.container = av.open(str(self.temporary), "w")
        self.rate = rate
        self.stream: Any = None

    def add(self, image: Image.Image) -> None:
        """Append a frame; all are brought to the even size of the first, as H.264 needs."""
        import av

        if self.stream is None:
            self.stream = self.container.add_stream("libx264", rate=max(1, round(self.rate)))
            self.stream.width, self.stream.height = image.width // 2 * 2, image.height // 2 * 2
            self.stream.pix_fmt = "yuv420p"
        size = (self.stream.width, self.stream.height)
        pixels = np.asarray(image.crop((0, 0, *size)) if image.size != size else image)
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

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
        fix = f"{install_line('video')}, or leave --track out"
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
