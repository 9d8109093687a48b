"""A detector takes pictures of any kind and says what it cannot take."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore import load_detector
from dinocore.errors import DataError


@pytest.fixture(scope="module")
def detector():
    return load_detector(amp="off")


@pytest.fixture(scope="module")
def smear():
    from dinocore.data.smear import draw_smear

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


def test_the_bundled_model_finds_cells_in_a_drawn_picture(detector, smear):
    found = detector(smear)
    assert (found.scores > 0.3).sum() >= 3
    assert [category.name for category in detector.categories] == ["RBC", "WBC", "Platelets"]


def test_a_turned_picture_is_turned_once_from_file_and_from_pil(detector, smear, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(smear).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "t.png", exif=exif)
    upright = detector(smear)
    assert same(upright, detector(tmp_path / "t.png"))
    with Image.open(tmp_path / "t.png") as picture:
        assert same(upright, detector(picture))


@pytest.mark.parametrize(
    "picture",
    [torch.zeros(3, 8, 8), np.zeros((8, 8, 3)), torch.zeros(1, 8, 8, dtype=torch.uint8), np.zeros((8, 8, 2), np.uint8)],
)
def test_a_picture_of_another_kind_is_named(detector, picture):
    with pytest.raises(DataError, match="uint8, but this is"):
        detector(picture)


def test_a_grey_array_is_taken(detector, smear):
    assert len(detector(smear[..., 0]).scores) > 0
