"""Reading truncated, damaged, rotated and variable-rate videos, and writing videos."""

import socket
import struct
import threading
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dinocore.errors import DataError
from dinocore.stream import video
from dinocore.stream.video import CODECS, Damaged, Frame, VideoWriter, open_video

av = pytest.importorskip("av")


@pytest.fixture
def write_video(tmp_path):
    """A function that writes a video of noise with a dark top left quarter, and returns its path."""

    def write(name="video.mp4", times=range(0, 2000, 40), codec="libx264", rate=25, aspect=None, **options):
        generator = np.random.default_rng(0)
        with av.open(str(tmp_path / name), "w", options=options) as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", 10
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            for milliseconds in times:
                pixels = generator.integers(100, 256, (64, 96, 3), dtype=np.uint8)
                pixels[:32, :48] = 0
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return tmp_path / name

    return write


def read(path, **options):
    """The frames and the damaged places of a video."""
    with open_video(str(path)) as reader:
        items = list(reader.read(**options))
    return [i for i in items if isinstance(i, Frame)], [i for i in items if isinstance(i, Damaged)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_truncated_video_reports_where_it_ends(write_video, name):
    path = write_video(name, **({"movflags": "faststart"} if name == "a.mp4" else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])
    frames, damaged = read(path)
    assert 20 < len(frames) < 35
    assert damaged[-1].after == frames[-1].number and "its header says 2.00 s" in damaged[-1].reason
    assert read(path, end=0.4)[1] == [], "damage after the requested end is not reported"


def test_frames_lost_without_an_error_are_reported_as_a_gap(write_video):
    path = write_video("a.mkv")
    content = bytearray(path.read_bytes())
    middle, length = len(content) // 2, len(content) // 10
    content[middle : middle + length] = np.random.default_rng(1).bytes(length)
    path.write_bytes(content)
    frames, damaged = read(path)
    assert any("no frames between" in gap.reason for gap in damaged)
    assert len(frames) < 50 and frames[-1].number == 49
    assert all(frame.number == round(frame.seconds * 25) for frame in frames)


def test_frames_decoded_with_errors_are_reported_and_returned(write_video):
    path = write_video()
    content = bytearray(path.read_bytes())
    for position in np.random.default_rng(2).integers(len(content) // 4, len(content) * 3 // 4, 20):
        content[position] ^= 0x55
    path.write_bytes(content)
    frames, damaged = read(path)
    numbers = {item.after + 1 for item in damaged if "has errors" in item.reason}
    assert numbers and numbers <= {frame.number for frame in frames}


@pytest.mark.parametrize("name, codec", [
    ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4"), ("a.avi", "libx264"),
    ("a.webm", "libvpx"), ("a.mpg", "mpeg2video"), ("a.wmv", "wmv2"), ("a.flv", "libx264"), ("a.3gp", "libx264"),
])  # fmt: skip
def test_an_intact_video_has_no_damage_and_can_be_read_from_any_start(write_video, name, codec):
    path = write_video(name, codec=codec)
    expected, damaged = read(path)
    assert damaged == [] and [frame.number for frame in expected] == list(range(50))
    first, second = read(path, end=0.48), read(path, start=0.48)
    assert [frame.number for frame in first[0] + second[0]] == list(range(50))
    assert first[1] + second[1] == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_numbers_of_a_video_of_varying_rate_do_not_depend_on_the_start(write_video, name):
    path = write_video(name, times=[40 * k + 3 * k * k for k in range(30)])
    expected = [(frame.number, frame.seconds) for frame in read(path, every=3)[0]]
    later = [(frame.number, frame.seconds) for frame in read(path, every=3, start=1)[0]]
    assert later and later == [row for row in expected if row[1] >= 1]


@pytest.mark.parametrize("matrix, dark", [
    ((1, 0, 0, 1), (0, 0)), ((-1, 0, 0, 1), (0, 1)), ((1, 0, 0, -1), (1, 0)), ((-1, 0, 0, -1), (1, 1)),
    ((0, 1, -1, 0), (0, 1)), ((0, -1, 1, 0), (1, 0)), ((0, 1, 1, 0), (0, 0)),
])  # fmt: skip
def test_a_video_is_rotated_and_flipped_according_to_its_metadata(write_video, matrix, dark):
    path = write_video(times=range(0, 120, 40))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # (x, y) is shown at (a x + c y, b x + d y)
    a, b, c, d = (int(value) << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    pixels = read(path)[0][0].pixels
    assert pixels.shape == ((96, 64, 3) if matrix[1] else (64, 96, 3))
    quarters = [[half.mean() for half in np.array_split(row, 2, axis=1)] for row in np.array_split(pixels, 2)]
    assert np.unravel_index(np.argmin(quarters), (2, 2)) == dark


@pytest.mark.parametrize("sends_data", [False, True])
def test_a_stream_without_data_ends_after_a_timeout(write_video, monkeypatch, sends_data):
    """Python handles no signals while FFmpeg waits, so without a timeout the command could only be killed."""
    monkeypatch.setattr(video, "TIMEOUTS", (3.0, 0.5))
    content, connections = write_video("a.ts", codec="mpeg2video").read_bytes(), []

    def serve():
        connections.append(server.accept()[0])
        if sends_data:
            connections[0].sendall(content)

    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as server:
        stack.callback(lambda: [connection.close() for connection in connections])
        threading.Thread(target=serve, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if sends_data:
            frames, damaged = read(address)
            assert 40 < len(frames) <= 50 and "no data for 0.5 s" in damaged[-1].reason
        else:
            with pytest.raises(DataError, match="no data for 3 s"):
                read(address)


def write_and_probe(path, seconds, rate, constant_rate=True):
    """Write a video whose frames have the grey values that `index_of` reads; return its frame times and mean rate."""
    writer = VideoWriter(path, rate, constant_rate)
    for k, second in enumerate(seconds):
        writer.add(Image.new("RGB", (96, 64), (20 * (k % 10),) * 3), second)
    writer.close()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [float((frame.pts - stream.start_time) * stream.time_base) for frame in container.decode(stream)]
        return times, float(stream.average_rate)


def index_of(frame):
    """The index of a frame from `write_and_probe`, modulo 10, by its grey value."""
    return round(frame.pixels.mean() / 20)


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_every_video_format_is_written_at_its_frame_rate(tmp_path, suffix):
    times, rate = write_and_probe(tmp_path / f"a{suffix}", [3 + k * 0.4 for k in range(6)], 2.5)
    assert rate == pytest.approx(2.5, rel=0.01)
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.4] * 5, abs=2e-3)


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_a_written_video_is_read_back_with_each_frame_in_place(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_and_probe(path, [k / 25 for k in range(40)], 25)
    for start in (0, 1.2):
        frames, damaged = read(path, start=start)
        assert damaged == [] and [frame.number for frame in frames] == list(range(round(start * 25), 40))
        assert [index_of(frame) for frame in frames] == [frame.number % 10 for frame in frames]


def test_a_container_without_timestamps_repeats_the_last_frame_in_gaps(tmp_path):
    write_and_probe(tmp_path / "a.avi", [0, 0.04, 0.24], 25, constant_rate=False)
    frames, damaged = read(tmp_path / "a.avi")
    assert damaged == [] and [frame.number for frame in frames] == list(range(7))
    assert [index_of(frame) for frame in frames] == [0, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("rate, constant_rate", [(25, True), (9, False)])
def test_frames_are_written_at_their_times(tmp_path, rate, constant_rate):
    seconds = [0, 0.04, 0.08, 0.6, 0.64, 1.0]
    times, _ = write_and_probe(tmp_path / "a.mp4", seconds, rate, constant_rate)
    assert times == pytest.approx(seconds, abs=2e-3)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm"])
@pytest.mark.parametrize("aspect", [Fraction(16, 11), Fraction(9, 16)])
def test_a_video_with_non_square_pixels_is_written_with_square_ones(write_video, tmp_path, suffix, aspect, rotated):
    path = write_video(times=range(0, 120, 40), aspect=aspect)
    if rotated:
        content = bytearray(path.read_bytes())
        at = content.index(b"tkhd") + 4 + 40
        content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
    writer = VideoWriter(tmp_path / f"b{suffix}", 25)
    for frame in read(path)[0]:
        writer.add(Image.fromarray(frame.pixels), frame.seconds, frame.aspect)
    writer.close()
    with av.open(str(tmp_path / f"b{suffix}")) as container:
        stream = container.streams.video[0]
        ratio = float(stream.sample_aspect_ratio or 1) * stream.width / stream.height
    assert ratio == pytest.approx(64 / (96 * aspect) if rotated else 96 * aspect / 64, rel=0.02)


@pytest.mark.parametrize("size", [(96, 65), (31, 200), (640, 64), (192, 128)])
def test_frames_of_a_video_that_changes_its_size_are_written_completely(tmp_path, size):
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, 25)
    ramp = Image.linear_gradient("L").rotate(90)
    for number, pixels in enumerate([(97, 64), size]):
        writer.add(ramp.resize(pixels).convert("RGB"), number / 25)
    writer.close()
    first, second = (frame.pixels.mean(2) for frame in read(path)[0])
    assert first.shape == second.shape == (64, 96)
    middle = second[32]
    inside = middle[middle > 0] if size[0] < size[1] else middle
    assert inside.min() < 30 and inside.max() > 225, "the whole width is visible"


def test_an_invalid_pixel_aspect_ratio_is_ignored(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", 25)
    writer.add(Image.new("RGB", (96, 64)), 0, Fraction(5000, 1))
    writer.close()
    assert read(tmp_path / "a.mp4")[0][0].pixels.shape == (64, 96, 3)
