"""The runtime of exported detectors, which needs no PyTorch."""

import ast
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

from dinocore.config import DataConfig
from dinocore.data.batch import View, as_batch, resized, size_for_model
from dinocore.data.images import read_image
from dinocore.data.transforms import to_tensor
from dinocore.export import runtime
from dinocore.export.detector import FileDetector
from dinocore.export.runtime import ExportedDetector, suppress
from dinocore.presets import override
from dinocore.stream.images import prepare
from dinocore.weights.file import least_scores

SOURCE = Path(runtime.__file__)
RNG = np.random.default_rng(11)


@pytest.mark.parametrize("size", [(RNG.integers(20, 900), RNG.integers(20, 900)) for _ in range(4)])
def test_boxes_are_in_pixels_of_the_original_image(write_onnx, size):
    width, height = map(int, size)
    image = np.full((height, width, 3), 255, np.uint8)
    labels, scores, boxes = ExportedDetector(write_onnx())(image, threshold=0.1)
    assert labels.tolist() == [0, 1]  # NMS drops the second of two overlapping boxes
    assert scores == pytest.approx([0.9, 0.2])
    expected = np.array([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 0.25, 1.0]]) * [width, height, width, height]
    assert boxes == pytest.approx(expected, abs=1e-3 * max(size))


def test_a_file_may_have_a_threshold_for_each_class(write_onnx):
    grey = np.full((60, 80, 3), 128, np.uint8)
    all_detections = ExportedDetector(write_onnx({"nms_iou": 1.0}))(grey, threshold=0.0)
    names = ExportedDetector(write_onnx({"nms_iou": 1.0})).info["names"]
    first = int(all_detections.labels[0])
    thresholds = [0.0 if k == first else 1.0 for k in range(len(names))]
    detections = ExportedDetector(write_onnx({"thresholds": thresholds, "nms_iou": 1.0}))(grey)
    assert detections.labels.tolist() == [label for label in all_detections.labels.tolist() if label == first]
    assert 0 < len(detections.labels) < len(all_detections.labels)


def test_the_threshold_of_the_file_is_used_unless_another_is_given(write_onnx):
    detector = ExportedDetector(write_onnx({"threshold": 0.85, "nms_iou": 1.0}))
    white, grey = Image.new("RGB", (90, 60), "white"), Image.new("RGB", (60, 90), (204, 204, 204))
    bright, dim = detector.detect([white, grey])
    assert bright.scores == pytest.approx([0.9])
    assert not len(dim.scores)
    assert detector(grey, threshold=0.7).scores == pytest.approx([0.72])


def test_images_are_rotated_according_to_their_metadata(write_onnx, tmp_path):
    image = Image.new("RGB", (80, 40), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=exif)
    assert ExportedDetector(write_onnx())(tmp_path / "rotated.jpg").boxes_xyxy[0] == pytest.approx([4, 16, 20, 48])


def test_an_image_always_fits_the_canvas(write_onnx):
    detector = ExportedDetector(write_onnx({"eval_scale": 300, "max_size": 500}))
    for _ in range(200):
        width, height = detector.input_size(tuple(int(side) for side in RNG.integers(1, 3000, 2)))
        assert 1 <= width <= 128 and 1 <= height <= 96


@pytest.mark.parametrize("iou", [0.3, 0.8, 1.0])
def test_duplicates_are_dropped_as_by_torchvision(iou):
    corners = RNG.random((60, 2, 2)).astype(np.float32)
    corners.sort(axis=1)
    boxes, labels = corners.reshape(60, 4) * 100, RNG.integers(0, 2, 60)
    scores = np.linspace(1, 0, 60, dtype=np.float32)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), iou)
    assert suppress(boxes, labels, iou) == expected.tolist()


def test_foreign_files_are_refused(write_onnx, tmp_path):
    with pytest.raises(ValueError, match="not written by this version of `dino export`"):
        ExportedDetector(write_onnx(None))
    with pytest.raises(ValueError, match="not written by this version"):
        ExportedDetector(write_onnx({"schema": 2}))
    with pytest.raises(ValueError, match="does not exist"):
        ExportedDetector(tmp_path / "nothing.onnx")


def test_a_truncated_file_is_refused(write_onnx):
    file = write_onnx()
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match="damaged or in another format"):
        ExportedDetector(file)


@pytest.mark.parametrize(
    ("shape", "sizes", "error_message"),
    [
        ((1, 96, 128), [[9, 9]], "needs images"),
        ((1, 3, 96, 128), [[9, 9]], "needs images"),
        ((2, 96, 128, 3), [[9, 9]], "sizes must be a height and width for each image"),
        ((1, 96, 128, 3), [[97, 9]], "sizes must be a height and width for each image, 1 to"),
        ((1, 96, 128, 3), [[9, 0]], "sizes must be a height and width for each image, 1 to"),
    ],
)
def test_inputs_of_a_wrong_shape_are_refused(write_onnx, shape, sizes, error_message):
    with pytest.raises(ValueError, match=error_message):
        ExportedDetector(write_onnx()).run(np.zeros(shape, np.uint8), np.array(sizes))


def test_the_runtime_can_be_copied_and_needs_no_torch(write_onnx, tmp_path):
    copied = tmp_path / "service.py"
    copied.write_text(SOURCE.read_text())
    Image.new("RGB", (50, 40), "white").save(tmp_path / "a.png")
    script = "import sys; sys.modules |= {'torch': None, 'dinocore': None}; import service; " \
             f"print(len(service.ExportedDetector({str(write_onnx())!r})('a.png').labels))"  # fmt: skip
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"


def test_the_runtime_is_short_and_imports_only_numpy_and_pillow():
    text = SOURCE.read_text()
    assert len(text.splitlines()) <= 150
    packages = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert packages - set(sys.stdlib_module_names) == {"numpy", "PIL"}


MODES = {
    "16-bit grey": lambda x: x[..., 0].astype(np.uint16) * 257,
    "32-bit grey": lambda x: x[..., 0].astype(np.int32) * 300 - 100,
    "floats": lambda x: np.where(x[..., 0] > 250, np.nan, x[..., 0] / 300).astype(np.float32),
    "alpha": lambda x: x,
    "grey and alpha": lambda x: x[..., :2].copy(),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_decoded_as_by_the_model(tmp_path, mode):
    pixels = MODES[mode](RNG.integers(0, 256, (30, 40, 4), np.uint8))
    file = tmp_path / "image.tif"
    Image.fromarray(pixels).save(file)
    expected = np.asarray(read_image(file, DataConfig()))
    assert np.ptp(expected) > 200
    assert np.array_equal(np.asarray(runtime.load(file)), expected)


@pytest.mark.parametrize("info", [{"canvas": [5000, 5000], "eval_scale": 320, "max_size": 426}, {"eval_scale": 320}])
def test_images_are_resized_as_in_evaluation(write_onnx, info):
    detector = ExportedDetector(write_onnx(info))
    data = DataConfig(eval_scale=detector.info["eval_scale"], max_size=detector.info["max_size"])
    data = data.on_canvas(detector.info["canvas"])
    for height, width in np.exp(RNG.uniform(0, 9, (2000, 2))).astype(int).tolist():
        assert detector.input_size((width, height)) == size_for_model((height, width), data)[::-1]
        if info["eval_scale"] == 320 and "canvas" in info:
            assert detector.input_size((width, height)) == resized((height, width), 320, 426)[::-1]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), "non-empty uint8 array .H, W, 3.; got uint8 .3, 20, 30"),
        (np.zeros((1, 20, 30, 3), np.uint8), "non-empty uint8 array .H, W, 3.; got uint8 .1, 20"),
        (np.zeros((20, 30, 3), np.float32), "got float32"),
        (np.zeros((0, 60, 3), np.uint8), "got uint8 .0, 60, 3"),
        (Image.new("RGB", (0, 9)), "non-empty"),
        (None, "got NoneType"),
        ([[1, 2]], "got list"),
    ],
)
def test_inputs_that_are_not_images_are_refused(write_onnx, image, message):
    with pytest.raises(ValueError, match=message):
        ExportedDetector(write_onnx())(image)


def test_other_types_of_pixels_and_sizes_are_refused(write_onnx):
    detector = ExportedDetector(write_onnx())
    canvas = np.zeros((1, 96, 128, 3), np.uint8)
    assert len(detector.run(canvas, [[9, 9]])[0]) == 1
    assert detector.detect([]) == []
    for images, sizes, message in (
        (canvas / np.float32(255), [[9, 9]], "float32"), (canvas.tolist(), [[9, 9]], "int64"),
        (canvas[:0], [], "needs images"),
        (canvas, [[np.nan, 9]], "sizes must be"), (canvas, [[9.5, 9]], "sizes must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            detector.run(images, sizes)
    for image in (np.zeros((9, 9)), np.zeros((9, 9), np.uint8), np.zeros((97, 9, 3), np.uint8), canvas[0] / 255.0):
        with pytest.raises(ValueError, match=r"needs images \(h, w, 3\) of uint8, up to \[96, 128\]"):
            detector.place([image])


def test_more_than_64_images_at_once_are_refused(write_onnx):
    detector, black = ExportedDetector(write_onnx()), Image.new("RGB", (9, 9))
    assert len(detector.detect([black] * 64)) == 64
    with pytest.raises(ValueError, match=r"needs images \(1 to 64, H, W, 3\).*got \(65, 96, 128, 3\)"):
        detector.detect([black] * 65)


@pytest.mark.parametrize("kind", ["path", "name", "open file", "image", "array", "grey"])
def test_one_image_in_place_of_a_list_is_refused(write_onnx, tmp_path, kind):
    detector, white = ExportedDetector(write_onnx()), Image.new("RGB", (9, 9), "white")
    white.save(tmp_path / "white.png")
    with (tmp_path / "white.png").open("rb") as file:
        single = {
            "path": tmp_path / "white.png", "name": str(tmp_path / "white.png"), "open file": file, "image": white,
            "array": np.asarray(white), "grey": np.asarray(white)[:, :, 0],
        }[kind]  # fmt: skip
        with pytest.raises(ValueError, match="give a list of images"):
            detector.detect(single)
        assert detector(single).scores.max() == pytest.approx(0.9)
    results = detector.detect(np.stack([np.asarray(white)] * 2))
    assert [len(detections.labels) for detections in results] == [1, 1]


def test_an_image_may_be_an_uploaded_file_object(write_onnx):
    upload = io.BytesIO()
    Image.new("RGB", (9, 9), "white").save(upload, "png")
    upload.seek(0)
    assert ExportedDetector(write_onnx())(upload).scores.max() == pytest.approx(0.9)


@pytest.mark.parametrize("threshold", [50, -0.1, float("nan"), [0.5, 1.5]])
def test_an_invalid_threshold_is_refused(write_onnx, threshold):
    with pytest.raises(ValueError, match="threshold in"):
        ExportedDetector(write_onnx())(Image.new("RGB", (9, 9), "white"), threshold)


def test_one_provider_may_be_given_by_its_name(write_onnx):
    assert ExportedDetector(write_onnx(), providers="CPUExecutionProvider").info["names"]


def test_a_label_without_a_name_is_refused(write_onnx):
    with pytest.raises(ValueError, match="unknown classes"):
        ExportedDetector(write_onnx({"names": ["disc"], "ids": [1]}))(Image.new("RGB", (9, 9), "white"))


def test_unverified_files_and_folders_are_refused_by_name(write_onnx, tmp_path):
    unverified = write_onnx().rename(tmp_path / "x.onnx.unverified")
    with pytest.raises(ValueError, match="failed the check of `dino export`"):
        ExportedDetector(unverified)
    with pytest.raises(ValueError, match="this file does not exist"):
        ExportedDetector(tmp_path)


def test_an_unreadable_file_is_not_reported_as_damaged(write_onnx, monkeypatch):
    file = write_onnx()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # chmod has no effect for root
    with pytest.raises(ValueError, match="cannot be read"):
        ExportedDetector(file)


def test_a_torch_export_program_is_refused_as_another_format(write_pt2):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="or in another format; export it again"):
        ExportedDetector(write_pt2())


def test_an_outdated_onnxruntime_is_reported_instead_of_a_damaged_file(write_onnx, monkeypatch):
    file = write_onnx()
    monkeypatch.setattr("onnxruntime.__version__", "1.17.3")
    with pytest.raises(ImportError, match=r"needs onnxruntime 1.20 or newer, this is 1.17.3"):
        ExportedDetector(file)


@pytest.fixture
def noise_images(tmp_path):
    """Three images of noise, larger than the canvas."""
    paths = []
    for k, (height, width) in enumerate([(300, 500), (500, 300), (90, 700)]):
        Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{k}.png")
        paths.append(tmp_path / f"{k}.png")
    return paths


def test_predict_and_the_runtime_pass_a_file_the_same_pixels(write_onnx, noise_images):
    file = write_onnx({"nms_iou": 1.0, "eval_scale": 200, "max_size": 300})
    detector = FileDetector(file)
    detector.config = override(detector.config, ["eval.max_dets=2"], ["eval"])
    inputs = []
    run = detector.runtime._run
    detector.runtime._run = lambda images, sizes: inputs.append((images, sizes)) or run(images, sizes)
    for path in noise_images:
        prepared = prepare(to_tensor(read_image(path, detector.config.data)), detector.config.data)
        detector.detect_batch(as_batch(list(prepared.views(detector.config.data))))
        detector.runtime(path)
        (predict_pixels, predict_size), (runtime_pixels, runtime_size) = inputs[-2:]
        assert predict_size.tolist() == runtime_size.tolist()
        assert np.abs(predict_pixels.astype(int) - runtime_pixels).max() <= 1


def test_the_top_detections_are_selected_before_duplicates_are_dropped(write_onnx, caplog):
    detector = FileDetector(write_onnx({"max_dets": 3}))
    white = as_batch([View(torch.full((3, 60, 80), 255, dtype=torch.uint8), (60, 80))])
    counts = []
    for max_dets in (1, 2, 3, 300):
        eval_config = detector.config.eval.model_copy(update={"max_dets": max_dets})
        detector.config = detector.config.model_copy(update={"eval": eval_config})
        counts.append(len(detector.detect_batch(white)[0].labels))
    assert counts == [1, 1, 2, 2]
    assert not caplog.records
    detector.config = override(detector.config, ["eval.max_dets=4"], ["eval"])
    assert "returns at most 3 detections per image, not 4" in caplog.text


def test_two_classes_with_the_same_name_keep_their_thresholds(write_onnx):
    detector = FileDetector(write_onnx({"names": ["disc", "disc"], "thresholds": [0.1, 0.7]}))
    assert least_scores(detector.categories, detector.threshold, detector.class_thresholds) == [0.1, 0.7]


def test_fewer_results_than_images_are_reported_as_out_of_memory(write_onnx):
    """OpenVINO returns empty outputs when out of memory, without an error."""
    detector = ExportedDetector(write_onnx())
    original = detector._run
    detector._run = lambda images, sizes: [rows[:0] for rows in original(images, sizes)]
    with pytest.raises(MemoryError, match="out of memory: 0 results for 2 images; use smaller batches"):
        detector.detect([Image.new("RGB", (9, 9))] * 2)
