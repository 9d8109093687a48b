"""Damaged or foreign exported files and invalid inputs raise a ValueError, and never give wrong detections."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocore.errors import CheckpointError
from dinocore.export.checksum import add_checksum
from dinocore.export.detector import FileDetector
from dinocore.export.programs import open_exported
from dinocore.export.runtime import ExportedDetector

REFUSED = "damaged or in another format|not written by this version"
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"<html>404 Not Found</html>",
    "another format": lambda content: b"\x89PNG\r\n\x1a\n" + content,
    "first bytes missing": lambda content: content[100:],
    "last byte missing": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "middle missing": lambda content: content[: len(content) // 3] + content[2 * len(content) // 3 :],
    "noise in the middle": lambda content: (
        content[: len(content) // 3] + np.random.default_rng(1).bytes(300) + content[len(content) // 3 + 300 :]
    ),
    "opened as text": lambda content: content.decode("utf-8", "replace").encode(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_with_only_our_own_message(write_exported, damage, capfd):
    file = write_exported()
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(ValueError, match=REFUSED):
        open_exported(file)
    with pytest.raises(CheckpointError, match=REFUSED):
        FileDetector(file)
    assert capfd.readouterr() == ("", "")


def test_a_file_truncated_anywhere_is_refused(write_onnx):
    file = write_onnx()
    content = file.read_bytes()
    for length in np.random.default_rng().integers(0, len(content), 60):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=REFUSED):
            ExportedDetector(file)


@pytest.mark.parametrize(
    "info",
    [
        {"schema": 2}, {"schema": "1"}, {"canvas": None}, {"canvas": [96]}, {"canvas": [0, 128]}, {"multiple": 0},
        {"canvas": [96.0, 128]}, {"canvas": "96"}, {"least": [96]}, {"names": ["disc"]}, {"ids": 3}, {"names": None},
        {"nms_iou": None}, {"nms_iou": 1.5}, {"pixels": "uint7"}, {"eval_scale": "a"}, {"eval_scale": -20},
        {"max_size": 0}, {"max_dets": 2.5}, {"threshold": "a"}, {"threshold": -1}, {"thresholds": [0.5]},
        {"ids": [1, "b"]}, {"names": ["disc", 3]},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_with_wrong_metadata_is_refused(write_onnx, info):
    with pytest.raises(ValueError, match="not written by this version of `dino export`"):
        ExportedDetector(write_onnx(info))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '"schema"', '{"schema": 1}'])
def test_a_file_with_invalid_metadata_is_refused(write_onnx, text):
    import onnx

    file = write_onnx()
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {"dino": text})
    onnx.save(model, file)
    with pytest.raises(ValueError, match="not written by this version of `dino export`"):
        ExportedDetector(file)


@pytest.mark.parametrize("tensor", ["images", "sizes", "labels", "scores", "boxes"])
def test_a_graph_with_wrong_inputs_or_outputs_fails_to_run(write_onnx, tensor):
    import onnx

    file = write_onnx()
    model = onnx.load(file)
    for value in [*model.graph.input, *model.graph.output]:
        value.name = "other" if value.name == tensor else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == tensor else name for name in names]
    onnx.save(model, file)
    with pytest.raises(ValueError, match=r"failed to run: out of memory \(use fewer images\) or damaged"):
        ExportedDetector(file)(Image.new("RGB", (20, 20)))


def test_non_finite_scores_are_refused(write_onnx):
    import onnx

    file = write_onnx()
    model = onnx.load(file)
    (scores,) = (tensor for tensor in model.graph.initializer if tensor.name == "scores_")
    scores.raw_data = np.full(3, np.nan, np.float32).tobytes()
    onnx.save(model, file)
    with pytest.raises(ValueError, match="output is not finite"):
        ExportedDetector(file)(Image.new("RGB", (20, 20), "white"))


@pytest.fixture
def write_openvino(write_onnx, tmp_path) -> Callable[[], Path]:
    """A function that writes the hand-written detector as an .xml and a .bin file."""
    openvino, onnx = pytest.importorskip("openvino"), pytest.importorskip("onnx")

    def write() -> Path:
        model = openvino.convert_model(write_onnx())
        description = onnx.load(tmp_path / "hand.onnx").metadata_props[0].value
        model.set_rt_info(description, ["dino"])
        openvino.save_model(model, tmp_path / "hand.xml", compress_to_fp16=False)
        return tmp_path / "hand.xml"

    return write


def test_an_openvino_file_gives_the_same_results_as_onnx(write_openvino, write_onnx):
    image = Image.new("RGB", (70, 50), "white")
    actual, expected = ExportedDetector(write_openvino())(image), ExportedDetector(write_onnx())(image)
    assert len(actual.labels) == 1
    for ours, reference in zip(actual, expected, strict=True):
        assert ours == pytest.approx(reference)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "first bytes missing", "middle missing"])
def test_a_damaged_openvino_file_is_refused(write_openvino, suffix, damage):
    file = write_openvino()
    part = file.with_suffix(suffix)
    part.write_bytes(DAMAGE[damage](part.read_bytes()))
    with pytest.raises(ValueError, match=REFUSED):
        ExportedDetector(file)


def test_an_openvino_file_without_its_weights_is_refused(write_openvino):
    file = write_openvino()
    file.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match=REFUSED):
        ExportedDetector(file)


@pytest.mark.parametrize("size", [(96, 127), (128, 96), (64, 96), (97, 128), (0, 128)])
def test_a_canvas_that_a_file_does_not_support_is_refused(write_onnx, size):
    with pytest.raises(ValueError, match=r"needs images \(1 to 64, H, W, 3\), HxW \[96, 128\] to \[96, 128\]"):
        ExportedDetector(write_onnx()).run(np.zeros((1, *size, 3), np.uint8), np.array([[9, 9]]))


def test_images_are_placed_on_the_smallest_canvas_of_the_range_that_fits(write_onnx):
    detector = ExportedDetector(write_onnx({"least": [32, 64], "canvas": [96, 128], "multiple": 32}))
    for height, width in np.random.default_rng().integers(1, (97, 129), (50, 2)):
        shape = detector.place([np.zeros((height, width, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)])[0].shape
        assert shape == (2, max(32, -(-height // 32) * 32), max(64, -(-width // 32) * 32), 3)
    with pytest.raises(ValueError, match=r"\[32, 64\] to \[96, 128\] in steps of 32"):
        detector.run(np.zeros((1, 96, 100, 3), np.uint8), np.array([[9, 9]]))


def detections_or_error(file: Path) -> str:
    """A file's detections in a white image as text, or the error message."""
    try:
        rows = open_exported(file)(Image.new("RGB", (70, 50), "white"), threshold=0.0)
        return str([column.tolist() for column in rows])
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("part", [".onnx", ".xml", ".bin"])
def test_a_flipped_bit_is_refused_or_has_no_effect(write_openvino, tmp_path, part):
    write_openvino()
    file = tmp_path / ("hand.onnx" if part == ".onnx" else "hand.xml")
    add_checksum(file)
    damaged = file.with_suffix(part)
    original, expected = damaged.read_bytes(), detections_or_error(file)
    num_refused = 0
    for position in np.random.default_rng().permutation(len(original))[:100]:
        content = bytearray(original)
        content[position] ^= 1 << int(position % 8)
        damaged.write_bytes(content)
        actual = detections_or_error(file)
        assert actual == expected or "is damaged" in actual, f"byte {position}: {actual}"
        num_refused += "checksum is wrong" in actual
    assert num_refused > 50 if part != ".bin" else num_refused == min(100, len(original))


def test_the_bin_of_another_export_is_refused(write_openvino, tmp_path):
    file = write_openvino()
    add_checksum(file)
    assert "checksum" not in detections_or_error(file)
    weights = file.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(CheckpointError, match="its checksum is wrong, so it or its"):
        FileDetector(file)


def test_a_file_edited_by_another_program_is_accepted(write_onnx):
    import onnx

    file = write_onnx()
    add_checksum(file)
    model = onnx.load(file)
    assert {entry.key for entry in model.metadata_props} == {"dino", "dino_crc32"}
    onnx.checker.check_model(model)
    model.doc_string = "simplified"
    onnx.save(model, file)
    assert "is damaged" not in detections_or_error(file)
