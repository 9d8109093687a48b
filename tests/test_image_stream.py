"""Detection in many images: batches of one shape, results in order and equal to those of single images."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore import load_detector
from dinocore.data.synthetic.smear import draw_smear
from dinocore.errors import ConfigError, DataError
from dinocore.stream import images as image_stream
from dinocore.stream.images import detect_stream, prepare, read_ahead

SIZES = [(160, 120), (120, 160), (160, 120), (128, 128), (160, 120), (120, 160), (160, 120)]


@pytest.fixture(scope="module")
def detector():
    return load_detector(amp="off")


@pytest.fixture(scope="module")
def images():
    return [draw_smear(9, k, size)[0] for k, size in enumerate(SIZES)]


def same_detections(a, b):
    """Equal boxes of scores above 0.2, up to rounding, in any order."""
    a, b = (d.boxes_xyxy[d.scores > 0.2] for d in (a, b))
    return len(a) == len(b) and all((b - box).abs().amax(1).min() < 0.05 for box in a)


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_images_of_mixed_shapes_give_the_same_results_in_order_as_one_by_one(detector, images, batch_size):
    alone = [detector(image) for image in images]
    together = list(detector.stream(images, batch_size))
    assert len(together) == len(images)
    assert all(map(same_detections, alone, together))
    assert not same_detections(together[0], together[2]), "otherwise a wrong order would not be noticed"


def test_a_list_is_processed_in_batches_of_one_shape(detector, images, monkeypatch):
    batch_sizes, forward = [], detector.forward

    def record(batch):
        batch_sizes.append(len(batch.images))
        assert not batch.padding.any()
        return forward(batch)

    monkeypatch.setattr(detector, "forward", record)
    detector(images)
    assert sorted(batch_sizes) == [1, 2, 4]
    batch_sizes.clear()
    list(detector.stream(images, 3))
    assert sorted(batch_sizes) == [1, 1, 2, 3]


def test_an_unreadable_image_gives_an_error_at_its_position(detector, images, tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(6)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    paths[2].write_bytes(b"no image")
    settings = detector.config.data.model_copy(update={"workers": 1})
    results = list(detect_stream(detector, read_ahead(paths, settings)))
    assert [isinstance(result, DataError) for result in results] == [False, False, True, False, False, False]
    assert results[2].where == str(paths[2])
    assert all(same_detections(results[k], detector(paths[k])) for k in (0, 1, 3, 4, 5))


def test_an_image_of_a_rare_shape_does_not_wait_for_the_end(detector, monkeypatch):
    monkeypatch.setattr(image_stream, "MAX_BATCH", 2)
    consumed = []
    rare, common = np.zeros((100, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)

    def images():
        for k in range(60):
            consumed.append(k)
            yield prepare(torch.from_numpy(common if k else rare).permute(2, 0, 1), detector.config.data)

    next(detect_stream(detector, images(), 2))
    assert len(consumed) < 20


def test_a_batch_that_runs_out_of_memory_is_halved(detector, images, monkeypatch):
    forward, sizes = detector.forward, []

    def limited_forward(batch):
        sizes.append(len(batch.images))
        if len(batch.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    alone = [detector(image) for image in images]
    monkeypatch.setattr(detector, "forward", limited_forward)
    assert all(map(same_detections, alone, detector(images)))
    assert sizes[0] == 4 and max(sizes[1:]) == 2


@pytest.mark.parametrize("size", [0, "many", "-1", "1.5"])
def test_an_invalid_batch_size_is_refused(detector, size):
    with pytest.raises(ConfigError, match=r"^batch_size=.* try batch_size=8$"):
        list(detector.stream([], size))


@pytest.mark.parametrize("slicing", ["auto", 640])
def test_invalid_slices_are_refused(detector, images, slicing):
    with pytest.raises(ConfigError, match=r"try slicing=Slicing\(640\)$"):
        list(detector.stream(images, slicing=slicing))


@pytest.mark.parametrize("images", ["", [""]])
def test_an_empty_path_is_reported_as_empty(detector, images):
    with pytest.raises(DataError, match="the path of an image is empty"):
        detector(images)


def test_detections_have_class_names_and_convert_to_supervision(detector, images):
    supervision = pytest.importorskip("supervision")
    detections = detector(images[0])
    assert detections.names == tuple(detector.categories[k].name for k in detections.labels.tolist())
    converted = detections.to_supervision()
    assert isinstance(converted, supervision.Detections) and len(converted) == len(detections.labels)
    assert converted.data["class_name"].tolist() == list(detections.names)
    assert np.allclose(converted.xyxy, detections.boxes_xyxy) and np.allclose(converted.confidence, detections.scores)
    assert len(type(detections)(*(part[:0] for part in detections)).to_supervision()) == 0
