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


def same(a, b):
    return torch.allclose(a.boxes_xyxy, b.boxes_xyxy, atol=0.5) and torch.allclose(a.scores, b.scores, atol=1e-3)


def test_files_pil_arrays_and_tensors_give_the_same(detector, smear, tmp_path):
    Image.fromarray(smear).save(tmp_path / "a.png")
    first = detector(tmp_path / "a.png")
    tensor = torch.from_numpy(smear).permute(2, 0, 1)
    for picture in (str(tmp_path / "a.png"), Image.fromarray(smear), smear, tensor):
        assert same(first, detector(picture))
    assert len(detector([smear, tensor])) == 2
    for several in (np.stack([smear, smear[::-1]]), torch.stack([tensor, tensor.flip(1)])):
        found = detector(several)
        assert len(found) == 2 and same(first, found[0]) and same(detector(smear[::-1].copy()), found[1])


def test_the_bundled_model_finds_cells_in_a_drawn_image(detector, smear):
    found = detector(smear)
    assert (found.scores > 0.3).sum() >= 3
    assert {"RBC", "WBC", "Platelets"} <= {category.name for category in detector.categories}


def test_exif_rotation_is_applied_once_for_files_and_pil_images(detector, smear, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(smear).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "t.png", exif=exif)
    upright = detector(smear)
    assert same(upright, detector(tmp_path / "t.png"))
    with Image.open(tmp_path / "t.png") as picture:
        assert same(upright, detector(picture))


AS_INTEGERS = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
WITH_FIX = {  # an image, and the fix that the error suggests
    "float tensor": (torch.from_numpy(AS_INTEGERS).permute(2, 0, 1) / 255, "(image * 255).round().to(torch.uint8)"),
    "channels last": (torch.from_numpy(AS_INTEGERS), "image.permute(2, 0, 1)"),
    "grey tensor": (torch.from_numpy(AS_INTEGERS[None, ..., 0]), "image.expand(3, -1, -1)"),
    "float array": (AS_INTEGERS / 255, "(image * 255).round().astype(np.uint8)"),
    "channels first": (AS_INTEGERS.transpose(2, 0, 1), "image.transpose(1, 2, 0)"),
    "grey array": (AS_INTEGERS[..., :1], "image[..., 0]"),
    "grey first": (AS_INTEGERS[None, ..., 0], "image[0]"),
}


@pytest.mark.parametrize("kind", WITH_FIX)
def test_a_wrong_tensor_or_array_is_refused_with_the_code_that_fixes_it(detector, kind):
    image, fix = WITH_FIX[kind]
    with pytest.raises(DataError, match=r"of uint8, but this is .*\(") as caught:
        detector(image)
    assert caught.value.fix.endswith(fix)
    detector(eval(fix, {"image": image, "torch": torch, "np": np}))


def test_inputs_that_cannot_be_converted_are_named(detector):
    for image in (np.zeros((8, 8, 2), np.uint8), np.zeros((8, 8), bool), torch.zeros(8, dtype=torch.uint8)):
        with pytest.raises(DataError, match="uint8, but this is"):
            detector(image)


def test_a_stream_of_one_image_is_not_taken_apart(detector, smear, tmp_path):
    Image.fromarray(smear).save(tmp_path / "a.png")
    for image in (smear, torch.from_numpy(smear).permute(2, 0, 1), str(tmp_path / "a.png"), Image.fromarray(smear)):
        (found,) = detector.stream(image)
        assert same(found, detector(smear))
    for wrong in (None, b"abc", io.BytesIO(b"abc")):
        with pytest.raises(DataError, match=rf"but this is {type(wrong).__name__}"):
            list(detector.stream(wrong))


def test_urls_and_folders_are_named_as_such(detector, tmp_path):
    with pytest.raises(DataError, match=r"https://a\.b/c\.jpg is an address, .*; download it first"):
        detector("https://a.b/c.jpg")
    with pytest.raises(DataError, match="is a folder, not an image"):
        detector(tmp_path)


def test_weights_without_a_name_and_a_whole_config_are_refused(detector):
    with pytest.raises(
        CheckpointError,
        match="the name of the weights is empty; check that the shell variables in your command are set",
    ):
        load_detector("")
    with pytest.raises(ConfigError, match=r"use config\.model"):
        build_model(detector.config)


def test_a_grey_array_is_taken(detector, smear):
    assert len(detector(smear[..., 0]).scores) > 0


def test_detections_with_something_replaced_keep_the_names_of_their_labels():
    found = Detections(torch.tensor([2, 0, 2]), torch.tensor([0.9, 0.5, 0.4]), torch.zeros(3, 4), ("cat", "dog", "cat"))
    halved = found._replace(scores=found.scores / 2)
    assert halved.names == found.names and torch.equal(halved.scores, found.scores / 2)
    kept = found._replace(labels=found.labels[1:], scores=found.scores[1:], boxes_xyxy=found.boxes_xyxy[1:])
    assert kept.names == ("dog", "cat")
    assert found._replace(names=("a", "b", "c")).names == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"label 7 has no name; give names"):
        found._replace(labels=torch.tensor([7, 0, 2]))
    with pytest.raises((TypeError, ValueError), match="colour"):
        found._replace(colour=1)


@pytest.mark.parametrize("given", [io.BytesIO(b"abc"), b"abc"])
def test_file_objects_and_bytes_are_named_as_such(given, detector):
    for images in (given, [given]):
        with pytest.raises(DataError, match=f"but this is {type(given).__name__}; open it: PIL.Image.open"):
            detector(images)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF"])
def test_a_damaged_or_closed_pillow_image_is_refused_like_a_damaged_file(detector, smear, tmp_path, form):
    content = io.BytesIO()
    Image.fromarray(smear).save(content, form)
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
    found = pickle.loads(pickle.dumps(detector(smear)))
    labels, scores, boxes = found
    assert len(labels) == len(scores) == len(boxes) == len(found.names) > 0
    assert list(found.names) == [detector.categories[k].name for k in labels.tolist()]


def select(detector, nms_iou, corners, logits):
    """The detections if the model predicts these boxes, xyxy in pixels of a 100 x 100 image."""
    limits = detector.config.eval.model_copy(update={"nms_iou": nms_iou})
    chosen = Detector(build_model(detector.config.model), detector.config, detector.categories, detector.device, "off")
    chosen.config = detector.config.model_copy(update={"eval": limits})
    boxes = to_cxcywh(torch.tensor(corners)) / 100
    return chosen.select(Predictions(torch.tensor([logits]), boxes[None]), [(100, 100)])[0]


def test_of_two_overlapping_boxes_of_a_class_the_worse_is_dropped_only_on_request(detector):
    corners = [[10.0, 10, 50, 50], [12.0, 10, 50, 50], [60.0, 60, 90, 90]]  # the first two have IoU 0.95
    logits = [[2.0, -9, -9], [1.0, 3, -9], [0.0, -9, -9]]
    everything, fewer = (select(detector, limit, corners, logits) for limit in (1.0, 0.9))
    assert len(everything.scores) == 9
    sure = fewer.scores > 0.3
    found = list(zip(fewer.labels[sure].tolist(), fewer.boxes_xyxy[sure, 0].round().int().tolist(), strict=True))
    assert found == [(1, 12), (0, 10), (0, 60)]  # boxes of different classes are both kept
    assert len(select(detector, 0.96, corners, logits).scores) == 9


@pytest.mark.parametrize("wrong", [None, 3, b"ab", np.zeros((0, 5, 3), np.uint8), [3]])
def test_inputs_that_are_not_images_are_named_as_such(detector, wrong):
    with pytest.raises(DataError, match="an image"):
        detector(wrong)


def test_a_copy_of_a_detector_gives_the_same_results(detector):
    picture = np.full((64, 64, 3), 200, np.uint8)
    again = pickle.loads(pickle.dumps(detector))
    assert all(torch.equal(a, b) for a, b in zip(detector(picture)[:3], again(picture)[:3], strict=True))


def test_boxes_are_clipped_to_the_image(detector):
    """Two boxes centred on the top left and bottom right corners of the image."""
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.4], [1.0, 1.0, 0.2, 0.2]]])
    logits = torch.full((1, 2, len(detector.categories)), -9.0)
    logits[0, 0, 0], logits[0, 1, 0] = 4.0, 3.0
    (found,) = detector.select(Predictions(logits, boxes), [(100, 200)])
    assert torch.allclose(found.boxes_xyxy[:2], torch.tensor([[0.0, 0, 50, 20], [180, 90, 200, 100]]))
