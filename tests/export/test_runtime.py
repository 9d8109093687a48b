"""The file that runs an exported detector without PyTorch."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

from dinocore.data.transforms import resized
from dinocore.export import runtime
from dinocore.export.runtime import ExportedDetector, suppress

SOURCE = Path(runtime.__file__)
RNG = np.random.default_rng(11)


@pytest.mark.parametrize("size", [(RNG.integers(20, 900), RNG.integers(20, 900)) for _ in range(4)])
def test_boxes_come_back_in_pixels_of_the_image(write_onnx, size):
    width, height = map(int, size)
    image = np.full((height, width, 3), 255, np.uint8)
    labels, scores, boxes = ExportedDetector(write_onnx())(image, threshold=0.1)
    assert labels.tolist() == [0, 1]  # the second of two that overlap is gone
    assert scores == pytest.approx([0.9, 0.2])
    expected = np.array([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 0.25, 1.0]]) * [width, height, width, height]
    assert boxes == pytest.approx(expected, abs=1e-3 * max(size))


def test_a_file_may_have_a_threshold_for_each_class(write_onnx):
    grey = np.full((60, 80, 3), 128, np.uint8)
    every = ExportedDetector(write_onnx({"nms_iou": 1.0}))(grey, threshold=0.0)
    names = ExportedDetector(write_onnx({"nms_iou": 1.0})).info["names"]
    first = int(every.labels[0])
    least = [0.0 if k == first else 1.0 for k in range(len(names))]
    found = ExportedDetector(write_onnx({"thresholds": least, "nms_iou": 1.0}))(grey)
    assert found.labels.tolist() == [label for label in every.labels.tolist() if label == first]
    assert 0 < len(found.labels) < len(every.labels)


def test_the_file_s_own_threshold_holds_unless_another_is_given(write_onnx):
    detector = ExportedDetector(write_onnx({"threshold": 0.85, "nms_iou": 1.0}))
    white, grey = Image.new("RGB", (90, 60), "white"), Image.new("RGB", (60, 90), (204, 204, 204))
    bright, dim = detector.detect([white, grey])
    assert bright.scores == pytest.approx([0.9])
    assert not len(dim.scores)
    assert detector(grey, threshold=0.7).scores == pytest.approx([0.72])


def test_images_are_turned_as_their_metadata_say(write_onnx, tmp_path):
    image = Image.new("RGB", (80, 40), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert ExportedDetector(write_onnx())(tmp_path / "turned.jpg").boxes_xyxy[0] == pytest.approx([4, 16, 20, 48])


def test_images_are_resized_as_in_evaluation(write_onnx):
    detector = ExportedDetector(write_onnx({"canvas": [2000, 2000], "eval_scale": 800, "max_size": 1333}))
    for _ in range(200):
        width, height = (int(side) for side in RNG.integers(1, 3000, 2))
        expected = resized((height, width), 800, 1333)
        assert detector.input_size((width, height)) == (min(expected[1], 1333), min(expected[0], 1333))


def test_an_image_always_fits_the_canvas(write_onnx):
    detector = ExportedDetector(write_onnx({"eval_scale": 300, "max_size": 500}))
    for _ in range(200):
        width, height = detector.input_size(tuple(int(side) for side in RNG.integers(1, 3000, 2)))
        assert 1 <= width <= 128 and 1 <= height <= 96


@pytest.mark.parametrize("iou", [0.3, 0.8, 1.0])
def test_what_was_found_twice_is_dropped_as_by_torchvision(iou):
    corners = RNG.random((60, 2, 2)).astype(np.float32)
    corners.sort(axis=1)
    boxes, labels = corners.reshape(60, 4) * 100, RNG.integers(0, 2, 60)
    scores = np.linspace(1, 0, 60, dtype=np.float32)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), iou)
    assert suppress(boxes, labels, iou) == expected.tolist()


def test_files_that_are_not_ours_are_refused(write_onnx, tmp_path):
    with pytest.raises(ValueError, match="not written by this version of `dino export`"):
        ExportedDetector(write_onnx(None))
    with pytest.raises(ValueError, match="not written by this version"):
        ExportedDetector(write_onnx({"schema": 2}))
    with pytest.raises(ValueError, match="does not exist"):
        ExportedDetector(tmp_path / "nothing.onnx")


def test_a_truncated_file_is_refused(write_onnx):
    file = write_onnx()
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        ExportedDetector(file)


@pytest.mark.parametrize(
    ("shape", "sizes", "said"),
    [
        ((1, 96, 128), [[9, 9]], "takes images"),
        ((1, 3, 96, 128), [[9, 9]], "takes images"),
        ((2, 96, 128, 3), [[9, 9]], "sizes must be a height and width for each image"),
        ((1, 96, 128, 3), [[97, 9]], "sizes must be a height and width for each image, 1 to"),
        ((1, 96, 128, 3), [[9, 0]], "sizes must be a height and width for each image, 1 to"),
    ],
)
def test_inputs_of_a_wrong_shape_are_refused_in_words(write_onnx, shape, sizes, said):
    with pytest.raises(ValueError, match=said):
        ExportedDetector(write_onnx()).run(np.zeros(shape, np.uint8), np.array(sizes))


def test_it_can_be_copied_and_needs_no_torch(write_onnx, tmp_path):
    copied = tmp_path / "service.py"
    copied.write_text(SOURCE.read_text())
    Image.new("RGB", (50, 40), "white").save(tmp_path / "a.png")
    script = "import sys; sys.modules |= {'torch': None, 'dinocore': None}; import service; " \
             f"print(len(service.ExportedDetector({str(write_onnx())!r})('a.png').labels))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_it_is_short_and_imports_little():
    text = SOURCE.read_text()
    assert len(text.splitlines()) <= 150
    top = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert top - set(sys.stdlib_module_names) == {"numpy", "PIL"}
