"""A detector accepts images of many types, and refuses other inputs with the reason."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore import build_model, load_detector
from dinocore.boxes import to_cxcywh
from dinocore.errors import CheckpointError, ConfigError, DataError
from dinocore.predict import Detections, Detector
from dinocore.structures import Predictions


@pytest.fixture(scope="module")
def detector():
    return load_detector(amp="off")


@pytest.fixture(scope="module")
def smear():
    from dinocore.data.synthetic.smear import draw_smear

    return draw_smear(5, 0, (320, 240))[0]


def is_close(a, b):
    return torch.allclose(a.boxes_xyxy, b.boxes_xyxy, atol=0.5) and torch.allclose(a.scores, b.scores, atol=1e-3)


def test_files_pil_images_arrays_and_tensors_give_the_same_detections(detector, smear, tmp_path):
    Image.fromarray(smear).save(tmp_path / "a.png")
    first = detector(tmp_path / "a.png")
    tensor = torch.from_numpy(smear).permute(2, 0, 1)
    for image in (str(tmp_path / "a.png"), Image.fromarray(smear), smear, tensor):
        assert is_close(first, detector(image))
    assert len(detector([smear, tensor])) == 2
    for batch in (np.stack([smear, smear[::-1]]), torch.stack([tensor, tensor.flip(1)])):
        detections = detector(batch)
        assert (
            len(detections) == 2
            and is_close(first, detections[0])
            and is_close(detector(smear[::-1].copy()), detections[1])
        )


def test_the_bundled_model_detects_cells_in_a_synthetic_image(detector, smear):
    detections = detector(smear)
    assert (detections.scores > 0.3).sum() >= 3
    assert {"RBC", "WBC", "Platelets"} <= {category.name for category in detector.categories}


def test_exif_rotation_is_applied_once_for_files_and_pil_images(detector, smear, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(smear).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "t.png", exif=exif)
    upright = detector(smear)
    assert is_close(upright, detector(tmp_path / "t.png"))
    with Image.open(tmp_path / "t.png") as image:
        assert is_close(upright, detector(image))


UINT8_IMAGE = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
INVALID_IMAGES = {  # an image, and the fix that the error suggests
    "float tensor": (torch.from_numpy(UINT8_IMAGE).permute(2, 0, 1) / 255, "(image * 255).round().to(torch.uint8)"),
    "channels last": (torch.from_numpy(UINT8_IMAGE), "image.permute(2, 0, 1)"),
    "grey tensor": (torch.from_numpy(UINT8_IMAGE[None, ..., 0]), "image.expand(3, -1, -1)"),
    "float array": (UINT8_IMAGE / 255, "(image * 255).round().astype(np.uint8)"),
    "channels first": (UINT8_IMAGE.transpose(2, 0, 1), "image.transpose(1, 2, 0)"),
    "grey array": (UINT8_IMAGE[..., :1], "image[..., 0]"),
    "grey first": (UINT8_IMAGE[None, ..., 0], "image[0]"),
}


@pytest.mark.parametrize("kind", INVALID_IMAGES)
def test_a_wrong_tensor_or_array_is_refused_with_the_code_that_fixes_it(detector, kind):
    image, fix = INVALID_IMAGES[kind]
    with pytest.raises(DataError, match=r"of uint8, but this is .*\(") as caught:
        detector(image)
    assert caught.value.fix.endswith(fix)
    detector(eval(fix, {"image": image, "torch": torch, "np": np}))


def test_inputs_that_cannot_be_converted_are_refused(detector):
    for image in (np.zeros((8, 8, 2), np.uint8), np.zeros((8, 8), bool), torch.zeros(8, dtype=torch.uint8)):
        with pytest.raises(DataError, match="uint8, but this is"):
            detector(image)


def test_a_single_image_as_a_stream_gives_one_result(detector, smear, tmp_path):
    Image.fromarray(smear).save(tmp_path / "a.png")
    for image in (smear, torch.from_numpy(smear).permute(2, 0, 1), str(tmp_path / "a.png"), Image.fromarray(smear)):
        (detections,) = detector.stream(image)
        assert is_close(detections, detector(smear))
    for value in (None, b"abc", io.BytesIO(b"abc")):
        with pytest.raises(DataError, match=rf"but this is {type(value).__name__}"):
            list(detector.stream(value))


def test_urls_and_folders_are_refused(detector, tmp_path):
    with pytest.raises(DataError, match=r"https://a\.b/c\.jpg is an address, .*; download it first"):
        detector("https://a.b/c.jpg")
    with pytest.raises(DataError, match="is a folder, not an image"):
        detector(tmp_path)


def test_an_empty_weights_name_and_a_whole_config_are_refused(detector):
    with pytest.raises(
        CheckpointError,
        match="the name of the weights is empty; check that the shell variables in your command are set",
    ):
        load_detector("")
    with pytest.raises(ConfigError, match=r"use config\.model"):
        build_model(detector.config)


def test_a_grey_array_is_accepted(detector, smear):
    assert len(detector(smear[..., 0]).scores) > 0


def test_detections_with_replaced_fields_keep_the_names_of_their_labels():
    detections = Detections(
        torch.tensor([2, 0, 2]), torch.tensor([0.9, 0.5, 0.4]), torch.zeros(3, 4), ("cat", "dog", "cat")
    )
    halved = detections._replace(scores=detections.scores / 2)
    assert halved.names == detections.names and torch.equal(halved.scores, detections.scores / 2)
    remaining = detections._replace(
        labels=detections.labels[1:], scores=detections.scores[1:], boxes_xyxy=detections.boxes_xyxy[1:]
    )
    assert remaining.names == ("dog", "cat")
    assert detections._replace(names=("a", "b", "c")).names == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"label 7 has no name; give names"):
        detections._replace(labels=torch.tensor([7, 0, 2]))
    with pytest.raises((TypeError, ValueError), match="colour"):
        detections._replace(colour=1)


@pytest.mark.parametrize("value", [io.BytesIO(b"abc"), b"abc"])
def test_file_objects_and_bytes_are_refused_with_advice(value, detector):
    for images in (value, [value]):
        with pytest.raises(DataError, match=f"but this is {type(value).__name__}; open it: PIL.Image.open"):
            detector(images)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF"])
def test_a_damaged_or_closed_pillow_image_is_refused_like_a_damaged_file(detector, smear, tmp_path, image_format):
    content = io.BytesIO()
    Image.fromarray(smear).save(content, image_format)
    (tmp_path / "cut").write_bytes(content.getvalue()[:900])
    for source in (io.BytesIO(content.getvalue()[:900]), tmp_path / "cut"):
        with Image.open(source) as image, pytest.raises(DataError, match="is damaged") as caught:
            detector(image)
        assert caught.value.code == "DATA-IMAGE-DAMAGED"
    closed = Image.open(io.BytesIO(content.getvalue()))
    closed.close()
    with pytest.raises(DataError, match="the image is damaged"):
        detector([closed])


def test_detections_unpack_into_three_named_parts(detector, smear):
    detections = pickle.loads(pickle.dumps(detector(smear)))
    labels, scores, boxes = detections
    assert len(labels) == len(scores) == len(boxes) == len(detections.names) > 0
    assert list(detections.names) == [detector.categories[k].name for k in labels.tolist()]


def select(detector, nms_iou, corners, logits):
    """The detections if the model predicts these boxes, xyxy in pixels of a 100 x 100 image."""
    eval_config = detector.config.eval.model_copy(update={"nms_iou": nms_iou})
    chosen = Detector(build_model(detector.config.model), detector.config, detector.categories, detector.device, "off")
    chosen.config = detector.config.model_copy(update={"eval": eval_config})
    boxes = to_cxcywh(torch.tensor(corners)) / 100
    return chosen.select(Predictions(torch.tensor([logits]), boxes[None]), [(100, 100)])[0]


def test_nms_within_a_class_is_applied_only_on_request(detector):
    corners = [[10.0, 10, 50, 50], [12.0, 10, 50, 50], [60.0, 60, 90, 90]]  # the first two have IoU 0.95
    logits = [[2.0, -9, -9], [1.0, 3, -9], [0.0, -9, -9]]
    without_nms, with_nms = (select(detector, limit, corners, logits) for limit in (1.0, 0.9))
    assert len(without_nms.scores) == 9
    confident = with_nms.scores > 0.3
    boxes = list(
        zip(with_nms.labels[confident].tolist(), with_nms.boxes_xyxy[confident, 0].round().int().tolist(), strict=True)
    )
    assert boxes == [(1, 12), (0, 10), (0, 60)]  # boxes of different classes are both kept
    assert len(select(detector, 0.96, corners, logits).scores) == 9


@pytest.mark.parametrize("value", [None, 3, b"ab", np.zeros((0, 5, 3), np.uint8), [3]])
def test_inputs_that_are_not_images_are_refused(detector, value):
    with pytest.raises(DataError, match="an image"):
        detector(value)


def test_a_copy_of_a_detector_gives_the_same_results(detector):
    image = np.full((64, 64, 3), 200, np.uint8)
    restored = pickle.loads(pickle.dumps(detector))
    assert all(torch.equal(a, b) for a, b in zip(detector(image)[:3], restored(image)[:3], strict=True))


def test_boxes_are_clipped_to_the_image(detector):
    """Two boxes centred on the top left and bottom right corners of the image."""
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.4], [1.0, 1.0, 0.2, 0.2]]])
    logits = torch.full((1, 2, len(detector.categories)), -9.0)
    logits[0, 0, 0], logits[0, 1, 0] = 4.0, 3.0
    (detections,) = detector.select(Predictions(logits, boxes), [(100, 200)])
    assert torch.allclose(detections.boxes_xyxy[:2], torch.tensor([[0.0, 0, 50, 20], [180, 90, 200, 100]]))
