"""Large JPEGs are decoded at a reduced size for training, without visible changes to images or boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore.config import Config, DataConfig, TrainConfig
from dinocore.data import loaders
from dinocore.data.annotations import read_annotations
from dinocore.data.images import Decoded, read_image, read_reduced
from dinocore.data.loaders import EvaluationImages, TrainingImages, training_steps
from dinocore.data.transforms import annotated_image, resize, to_tensor

DEFAULT = DataConfig()
SMALL = {"train_scales": (96, 110, 150), "crop_scales": (120, 180), "crop_size": (80, 140), "max_size": 220}
AS_STORED = {  # how an upright image is stored, by EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def save(image, path, orientation=1, **options):
    """Save `image` as a JPEG that is upright once its EXIF orientation is applied."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    transpose = AS_STORED[orientation]
    stored = image if transpose is None else image.transpose(transpose)
    stored.save(path, "JPEG", quality=95, subsampling=0, exif=exif, **options)


@pytest.fixture
def make_jpegs(make_coco, tmp_path):
    """A function that writes annotated JPEGs of a white rectangle on black, with the EXIF orientations in turn."""

    def make(boxes, size, orientations=(1,)):
        def rename_to_jpg(document):
            for row in document["images"]:
                row["file_name"] = row["file_name"].replace("png", "jpg")

        split = make_coco({n: [(1, *box)] for n, box in enumerate(boxes)}, size, edit=rename_to_jpg)
        for n, (x, y, width, height) in enumerate(boxes):
            image = Image.new("RGB", size)
            image.paste("white", (x, y, x + width, y + height))
            save(image, tmp_path / "train2017" / f"{n:04d}.jpg", orientations[n % len(orientations)])
        return read_annotations(split)

    return make


@pytest.fixture
def decoded_sizes(monkeypatch):
    """Sizes at which the loader decodes images."""
    sizes = []

    def spy(*arguments):
        sizes.append((reduced := read_reduced(*arguments)).image.size)
        return reduced

    monkeypatch.setattr(loaders, "read_reduced", spy)
    return sizes


def white_extent(image):
    """Corners of the white pixels, xyxy."""
    rows, columns = (torch.nonzero((image.float().mean(0) > 127).any(side)).flatten() for side in (1, 0))
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def box_corners(sample):
    """The first box of a sample, xyxy in pixels."""
    height, width = sample.image.shape[-2:]
    cx, cy, w, h = (sample.target.boxes[0] * torch.tensor([width, height, width, height])).tolist()
    return torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


@pytest.mark.parametrize("size", [(1201, 907), (907, 1205), (1280, 960)])
def test_boxes_match_the_rectangles_for_every_exif_orientation(make_jpegs, decoded_sizes, size):
    """With flips, crops, all eight EXIF orientations, and odd and even sizes."""
    width, height = size
    rng = np.random.default_rng(0)
    boxes = [(int(x * width), int(y * height), width // 3, height // 4) for x, y in rng.uniform(0, 0.6, (16, 2))]
    annotations = make_jpegs(boxes, size, tuple(AS_STORED))
    images = TrainingImages(annotations, DataConfig(**SMALL, vertical_flip=0.5), seed=0)
    num_compared = 0
    for epoch in range(6):
        for index in range(len(boxes)):
            sample = images[epoch, index]
            assert sample.problem is None and sample.size == (height, width)
            if len(sample.target.boxes) and (box := box_corners(sample))[2:].sub(box[:2]).min() >= 3:  # not too thin
                assert (white_extent(sample.image) - box).abs().max() <= 1, (epoch, index)
                num_compared += 1
    assert num_compared > 60 and all(max(small) < max(size) / 1.9 for small in decoded_sizes)


@pytest.mark.parametrize("orientation", AS_STORED)
def test_the_frame_is_the_area_of_the_image_in_the_decoded_pixels(tmp_path, orientation):
    image = Image.new("RGB", (1001, 803), "white")
    save(image, tmp_path / "a.jpg", orientation)
    reduced = read_reduced(tmp_path / "a.jpg", DEFAULT, (400, 400))
    assert reduced.image.size == (501, 402) and reduced.size == (1001, 803)
    left, top, right, bottom = reduced.frame
    assert (right - left, bottom - top) == (500.5, 401.5)
    mirrored = (orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8))
    assert (left, top) == (0.5 * mirrored[0], 0.5 * mirrored[1])


@pytest.mark.parametrize(
    ("min_decode_size", "expected"),
    [((801, 601), (1600, 1200)), ((800, 600), (800, 600)), ((400, 301), (800, 600)), ((400, 300), (400, 300)),
     ((30, 1200), (1600, 1200)), ((3, 2), (200, 150)), ((5000, 5000), (1600, 1200))],
)  # fmt: skip
def test_a_jpeg_is_never_decoded_below_the_minimum_size(tmp_path, min_decode_size, expected):
    save(Image.new("RGB", (1600, 1200)), tmp_path / "a.jpg")
    save(Image.new("RGB", (1200, 1600)), tmp_path / "b.jpg", orientation=6)
    assert read_reduced(tmp_path / "a.jpg", DEFAULT, min_decode_size).image.size == expected
    assert read_reduced(tmp_path / "b.jpg", DEFAULT, min_decode_size[::-1]).image.size == expected[::-1]


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "gif", "ppm"])
def test_other_formats_are_decoded_at_full_size(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (90, 60), "red").save(path)
    assert read_reduced(path, DEFAULT, (9, 6)) == Decoded(read_image(path, DEFAULT), (90, 60), (0, 0, 90, 60))


@pytest.mark.slow
def test_a_12_megapixel_photo_is_decoded_smaller_and_looks_the_same(make_coco, tmp_path, decoded_sizes, monkeypatch):
    annotations = read_annotations(make_coco({1: [(1, 0, 0, 2000, 1500)]}, (4000, 3000)))
    rows, columns = np.mgrid[:750, :1000]
    texture = 128 + 60 * np.sin(rows / 12) + 60 * np.cos(columns * rows / 15000)
    scene = Image.fromarray(texture.astype(np.uint8)).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
    scene.save(annotations.path(0), "JPEG", quality=90)  # a JPEG, although its name ends in .png
    config = DataConfig()
    samples = [TrainingImages(annotations, config, 0)[epoch, 0] for epoch in range(6)]
    assert max(decoded_sizes) == (2000, 1500) and (1000, 750) in decoded_sizes
    monkeypatch.setattr(loaders, "read_reduced", lambda path, settings, _: read_reduced(path, settings, (4000, 3000)))
    for epoch, small in enumerate(samples):
        full = TrainingImages(annotations, config, 0)[epoch, 0]
        assert full.image.shape == small.image.shape
        assert (full.image.float() - small.image.float()).abs().mean() < 2
        torch.testing.assert_close(full.target.boxes, small.target.boxes, atol=1e-3, rtol=0)


def test_evaluation_decodes_at_full_size(make_jpegs):
    annotations = make_jpegs([(100, 100, 500, 300)], (1201, 907))
    full = annotated_image(to_tensor(read_image(annotations.path(0), DEFAULT)), torch.zeros(0, 4), torch.zeros(0))
    assert full[0].shape == (3, 907, 1201)
    actual = EvaluationImages(annotations, DataConfig(eval_scale=72))[0].image
    assert torch.equal(actual, resize(full, 72, 1333)[0])


def test_reduced_images_do_not_depend_on_the_number_of_workers(make_jpegs):
    annotations = make_jpegs([(50 * n, 40 * n, 300, 200) for n in range(4)], (800, 600))

    def images(workers):
        config = Config(data=DataConfig(**SMALL, workers=workers), train=TrainConfig(batch_size=2))
        return [batch.images for step in training_steps(annotations, config, 1, 0, 4) for batch in step]

    assert all(torch.equal(a, b) for a, b in zip(images(0), images(2), strict=True))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_a_truncated_file_is_reported_at_reduced_size(make_jpegs, decoded_sizes, progressive, fraction):
    annotations = make_jpegs([(0, 0, 300, 200)] * 2, (800, 600))
    path = annotations.path(0)
    noise = np.random.default_rng(0).integers(100, 150, (600, 800, 3), dtype=np.uint8)
    save(Image.fromarray(noise), path, progressive=progressive)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    sample = TrainingImages(annotations, DataConfig(**SMALL), 0)[0, 0]
    assert sample.index == 1 and f"{path} is damaged" in sample.problem and "truncated" in sample.problem
    assert len(decoded_sizes) == 1 and max(decoded_sizes[0]) < 800
