"""Long runs of `dino predict`: memory does not grow, and finished parts survive a kill. All tests are slow."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore import build_model, load_config
from dinocore.data.annotations import Category
from dinocore.presets import override
from dinocore.weights.file import save_weights

pytestmark = pytest.mark.slow
TINY = [
    "model.backbone=timm/test_resnet", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=2",
    "model.ffn_dim=16", "model.num_queries=6", "model.num_encoder_layers=1", "model.num_decoder_layers=1",
    "data.train_scales=[32]", "data.crop_chance=0.0", "data.max_size=48", "data.eval_scale=32", "data.workers=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a tiny untrained model; its detections are arbitrary but reproducible."""
    torch.manual_seed(0)
    config = override(load_config("r50-4scale", overrides=TINY), ["model.num_classes=2"], ("model",))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, build_model(config.model).state_dict(), config, [Category(1, "a"), Category(2, "b")], {})
    return path


def start(folder, *arguments, rank=0, size=1):
    """`dino predict` in a subprocess; if `size` > 1, as one rank, with the environment variables that torchrun sets."""
    env = {"OMP_NUM_THREADS": "1"}
    if size > 1:
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    command = [sys.executable, "-m", "dinocli", "predict", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=os.environ | env, stderr=subprocess.PIPE, text=True)


def resident_mb(pid):
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


def memory_by_lines(process, lines):
    """(lines written, resident MB) about ten times a second until the process exits; its exit code and stderr."""
    samples = []
    while process.poll() is None:
        count = lines.read_bytes().count(b"\n") if lines.exists() else 0
        samples.append((count, resident_mb(process.pid)))
        time.sleep(0.1)
    return samples, process.returncode, process.communicate()[1]


def growth(samples, total):
    """Growth of the peak memory from the second to the last quarter of the work, in MB."""
    second = [mb for done, mb in samples if 0.25 * total <= done < 0.5 * total and mb]
    last = [mb for done, mb in samples if 0.75 * total <= done < total and mb]
    assert second and last, samples
    return max(last) - max(second)


def test_memory_is_flat_over_5000_images_of_different_sizes(weights, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "many").mkdir()
    for k in range(5000):
        width, height = rng.integers(16, 97, 2).tolist()
        pixels = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "many" / f"{k:04d}.png", compress_level=1)
    args = ("many", "--weights", weights, "--device", "cpu", "--amp", "off", "--threshold", "0", "--out", "b.jsonl")
    samples, code, errors = memory_by_lines(start(tmp_path, *args), tmp_path / "b.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert code == 0 and [row["file"] for row in rows] == [f"many/{k:04d}.png" for k in range(5000)], errors
    assert len({(row["width"], row["height"]) for row in rows}) > 2000
    print(f"5,000 images: {max(mb for _, mb in samples):.0f} MB, growth {growth(samples, 5000):.1f} MB")
    assert growth(samples, 5000) < 25


def test_memory_is_flat_over_a_video_of_2000_frames(weights, tmp_path):
    av = pytest.importorskip("av")
    pytest.importorskip("trackers")
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(2000):
            pixels = np.full((48, 64, 3), 90, np.uint8)
            pixels[10:20, k % 54 : k % 54 + 10] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    args = ("video.mp4", "--weights", weights, "--device", "cpu", "--amp", "off", "--threshold", "0.01", "--track",
            "--save-video", "out.mp4", "--out", "b.jsonl")  # fmt: skip
    samples, code, errors = memory_by_lines(start(tmp_path, *args), tmp_path / "b.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert code == 0 and [row["frame"] for row in rows] == list(range(2000)), errors
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2000
    print(f"2,000 frames: {max(mb for _, mb in samples):.0f} MB, growth {growth(samples, 2000):.1f} MB")
    assert growth(samples, 2000) < 25


def test_three_ranks_resume_two_killed_ranks_and_each_of_10000_images_is_written_once(dino, weights, tmp_path):
    count, rng = 10_000, np.random.default_rng(0)
    part_size = min(256, count // 64)  # images per part
    num_parts = -(-count // part_size)
    (tmp_path / "many").mkdir()
    for k in range(count):
        pixels = np.full((20, 24, 3), rng.integers(0, 256, 3), np.uint8)
        pixels[4:12, k % 16 : k % 16 + 8] = 255
        Image.fromarray(pixels).save(tmp_path / "many" / f"{k:05d}.png", compress_level=1)
    (tmp_path / "many" / "00017.png").write_bytes(b"bad")
    args = ("many", "--weights", weights, "--out", "two.jsonl", "--device", "cpu", "--amp", "off", "--threshold", "0")
    processes = [start(tmp_path, *args, rank=rank, size=2) for rank in range(2)]
    parts = tmp_path / "two.jsonl.parts"
    deadline = time.monotonic() + 1800
    while len(list(parts.glob("*/*.jsonl"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "two.jsonl").exists()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*/*.jsonl")}
    assert 20 <= len(kept) < num_parts
    resumed = [start(tmp_path, *args, rank=rank, size=3) for rank in range(3)]
    while resumed[0].poll() is None and parts.exists():  # rank 0 removes the parts at the end
        for path, written in kept.items():
            try:
                assert path.stat().st_mtime_ns == written, "a finished part was processed again"
            except FileNotFoundError:
                break
        time.sleep(0.2)
    errors = [process.communicate()[1] for process in resumed]
    assert [process.returncode for process in resumed] == [7, 0, 0], errors
    assert f"has {len(kept)} of {num_parts} parts" in errors[0] and not parts.exists()
    merged = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert [row["file"] for row in merged] == [f"many/{k:05d}.png" for k in range(count) if k != 17]
    sample = [row["file"] for row in merged[::100]]
    assert dino("predict", *sample, *args[1:3], "--out", "one.json", *args[5:]).code == 0
    for a, b in zip(merged[::100], json.loads((tmp_path / "one.json").read_text()), strict=True):
        scores = ([d["score"] for d in row["detections"]] for row in (a, b))
        assert np.allclose(*scores, atol=1e-4)
