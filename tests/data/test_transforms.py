"""Boxes still match their objects after augmentation: coloured rectangles are drawn, augmented and measured."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dinocore.config import DataConfig
from dinocore.data.batch import padded_size, resized
from dinocore.data.transforms import Plan, annotated_image, apply, as_target, draw, largest_size, resize

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
SMALL = {"train_scales": (96, 120, 150), "crop_scales": (100, 130), "crop_size": (60, 140), "max_size": 220}


def make_sample(boxes, size=(90, 130)):
    """An image of `size` (height, width) with the k-th box filled in the k-th colour, its boxes, and labels 0, 1, 2."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for colour, (x0, y0, x1, y1) in zip(COLOURS, boxes, strict=False):
        image[:, y0:y1, x0:x1] = colour[:, None, None]
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    return tv_tensors.Image(image), boxes, torch.arange(len(boxes))


def full_frame(sample):
    """The `frame` of an image that was decoded at full size."""
    return 0, 0, sample[0].shape[-1], sample[0].shape[-2]


def augment(sample, config, rng):
    return apply(draw(tuple(sample[0].shape[-2:]), config, rng), sample, full_frame(sample))


def crop(sample, limits, rng):
    """A random crop without resizing."""
    height, width = sample[0].shape[-2:]
    cuts = DataConfig(flip=0.0, crop_chance=1.0, crop_scales=(min(height, width),), crop_size=limits)
    plan = draw((height, width), cuts, rng)
    left, top, right, bottom = plan.region
    size = round((bottom - top) * height), round((right - left) * width)
    return apply(plan._replace(size=size), sample, full_frame(sample))


def bright_extent(image: Tensor, colour: int):
    """Corners, xyxy, of the pixels with at least half of a colour's full brightness; None if there are none."""
    bright = image[colour].float() / 255
    if bright.max() < 0.5:
        return None
    corners = []
    for line in (bright.max(0).values, bright.max(1).values):
        inside = (line >= 0.5).nonzero()
        corners.append((inside.min().item(), inside.max().item() + 1))
    (x0, x1), (y0, y1) = corners
    return torch.tensor([x0, y0, x1, y1], dtype=torch.float32)


def random_boxes(rng, size):
    """Three boxes that do not overlap: one in each third of the width."""
    height, width = size
    boxes = []
    for k in range(3):
        left, right = k * width // 3, (k + 1) * width // 3
        x0, y0 = int(rng.integers(left, right - 12)), int(rng.integers(0, height - 12))
        boxes.append((x0, y0, int(rng.integers(x0 + 8, right)), int(rng.integers(y0 + 8, height + 1))))
    return boxes


@pytest.mark.parametrize("size", [(90, 130), (160, 80)])
def test_boxes_match_their_rectangles_after_any_augmentation(size):
    config, num_kept, num_dropped = DataConfig(**SMALL, vertical_flip=0.3), 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image, boxes, labels = augment(make_sample(random_boxes(rng, size), size), config, rng)
        assert boxes.shape == (len(labels), 4) and boxes.canvas_size == tuple(image.shape[-2:])
        for colour in range(3):
            visible, row = bright_extent(image, colour), (labels == colour).nonzero().flatten()
            if len(row):
                num_kept += 1
                box = boxes[row[0]].as_subclass(Tensor)
                sliver = (box[2:] - box[:2]).min() < 3  # a crop left less than can be measured
                assert sliver or (visible - box).abs().max() <= 1, (seed, visible, box)
            else:
                num_dropped += 1
                assert visible is None, (seed, visible)
    assert num_kept > 100 and num_dropped > 10  # both cases occur


def step_by_step(sample, config, rng):
    """DETR's original augmentation, which makes a new image in every step."""
    flip, vertical_flip = rng.random() < config.flip, rng.random() < config.vertical_flip
    if rng.random() < config.crop_chance:
        sample = resize(sample, int(rng.choice(config.crop_scales)), None)
        (smallest, largest), (height, width) = config.crop_size, sample[0].shape[-2:]
        new_width = int(rng.integers(min(smallest, width), min(width, largest) + 1))
        new_height = int(rng.integers(min(smallest, height), min(height, largest) + 1))
        top, left = int(rng.integers(0, height - new_height + 1)), int(rng.integers(0, width - new_width + 1))
        image, boxes, labels = sample
        sample = (
            F.crop(image, top, left, new_height, new_width),
            F.crop(boxes, top, left, new_height, new_width),
            labels,
        )
    image, boxes, labels = resize(sample, int(rng.choice(config.train_scales)), config.max_size)
    boxes = F.clamp_bounding_boxes(boxes)
    for operation in [F.horizontal_flip] * flip + [F.vertical_flip] * vertical_flip:
        image, boxes = operation(image), operation(boxes)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return image, boxes[visible], labels[visible]


@pytest.mark.parametrize("size", [(240, 320), (427, 320)])
def test_one_resampling_matches_the_steps_of_detr(size):
    """With the same random numbers, sizes are equal, and boxes differ only by rounding crops to pixels."""
    config = DataConfig(
        vertical_flip=0.3, train_scales=(200, 240), crop_scales=(180, 260), crop_size=(150, 220), max_size=400
    )
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [128 + 100 * np.sin(rows / 31), 128 + 100 * np.cos(columns / 37), 128 + 100 * np.sin((rows + columns) / 41)]
    image = torch.from_numpy(np.stack(waves).astype(np.uint8))
    _, boxes, labels = make_sample([(10, 20, 90, 80), (150, 100, 240, 200), (290, 10, 310, 230)], size)
    for seed in range(40):
        samples = [
            augmentation((tv_tensors.Image(image), boxes, labels), config, np.random.default_rng(seed))
            for augmentation in (augment, step_by_step)
        ]
        (actual, actual_boxes, actual_labels), (expected, expected_boxes, expected_labels) = samples
        assert actual.shape == expected.shape and actual_labels.tolist() == expected_labels.tolist()
        assert (actual.float() - expected.float()).abs().mean() < 2
        torch.testing.assert_close(actual_boxes.as_subclass(Tensor), expected_boxes.as_subclass(Tensor), atol=1, rtol=0)


def test_crop_sizes_are_those_of_detr():
    """Crops have whole pixels of the resized image, and sides between 384 and 600."""
    config = DataConfig(crop_chance=1.0, crop_scales=(500,), train_scales=(640,))
    sides = np.array([])
    for seed in range(200):
        left, top, right, bottom = draw((480, 640), config, np.random.default_rng(seed)).region
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        part = np.array([(right - left) * 666, (bottom - top) * 500])  # 640 x 480 is resized to 666 x 500
        assert part == pytest.approx(part.round()) and (part.round() >= 384).all() and part[0] <= 600.5
        sides = np.append(sides, part.round())
    assert sides.min() < 390 and sides.max() > 590


def test_augment_only_resizes_if_all_probabilities_are_zero():
    sample = make_sample([(10, 10, 40, 40)])
    config = DataConfig(flip=0.0, crop_chance=0.0, train_scales=(180,), max_size=1000)
    image, boxes, _ = augment(sample, config, np.random.default_rng(0))
    assert image.shape == (3, 180, 260) and boxes.tolist() == [[20, 20, 80, 80]]
    assert (image == resize(sample, 180, 1000)[0]).all()


def test_a_flip_mirrors_the_box_and_a_second_one_undoes_it():
    sample = make_sample([(10, 20, 40, 50)])
    config = DataConfig(flip=1.0, crop_chance=0.0, train_scales=(90,))
    once = augment(sample, config, np.random.default_rng(0))
    assert once[1].tolist() == [[90, 20, 120, 50]]
    twice = augment(once, config, np.random.default_rng(0))
    assert (twice[0] == sample[0]).all() and twice[1].tolist() == sample[1].tolist()


def test_flips_have_the_configured_probability():
    config = DataConfig(flip=0.25, crop_chance=0.0, train_scales=(90,))
    sample = make_sample([(0, 0, 10, 10)])
    flipped = sum(augment(sample, config, np.random.default_rng(s))[1][0, 0] > 50 for s in range(400))
    assert 60 < flipped < 140


@pytest.mark.parametrize(
    ("size", "short", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),  # 800 * 640 / 480 = 1066.67, truncated
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),  # 1199.06
        ((375, 500), 480, 1333, (480, 640)),
        ((400, 1000), 800, 1333, (533, 1332)),  # 1333 * 400 / 1000 = 533.2; 533 * 2.5 = 1332.5
        ((1000, 400), 800, 1333, (1332, 533)),
        ((500, 500), 800, 1333, (800, 800)),
        ((800, 1333), 800, 1333, (800, 1333)),
        ((480, 640), 600, None, (600, 800)),
        ((100, 1000), 800, None, (800, 8000)),
        ((1, 5000), 800, 1333, (1, 1333)),  # DETR's rule gives a height of 0
        ((5000, 1), 800, 1333, (1333, 1)),
        ((1, 1), 800, 1333, (800, 800)),
        ((10, 8000), 800, 1333, (2, 1600)),  # 1.67, rounded to 2
    ],
)
def test_resized_sizes_are_those_of_detr(size, short, max_size, expected):
    assert resized(size, short, max_size) == expected


def test_resized_sizes_are_never_zero_or_huge():
    for height in (1, 2, 3, 17, 999, 10_000):
        for width in (1, 2, 5, 640, 10_000):
            for short in (1, 32, 800):
                new = resized((height, width), short, 1333)
                assert min(new) >= 1 and max(new) <= 2 * 1333


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (2, 900), (1, 1)])
def test_very_thin_images_are_augmented_without_large_intermediate_images(size, monkeypatch):
    original_resize = F.resize

    def checked_resize(tensor, size, **options):
        assert min(size) >= 1 and size[0] * size[1] < 10 * 1333 * 1333
        return original_resize(tensor, size, **options)

    monkeypatch.setattr(F, "resize", checked_resize)
    for seed in range(20):
        image, boxes, _ = augment(
            make_sample([(0, 0, size[1], size[0])], size), DataConfig(), np.random.default_rng(seed)
        )
        assert min(image.shape) >= 1 and image.numel() < 3 * 1333 * 1333 and boxes.isfinite().all()


def test_a_crop_drops_box_and_label_together_and_clips_the_rest():
    sample = make_sample([(0, 0, 20, 90), (60, 30, 70, 40), (110, 0, 130, 90)])
    outcomes = set()
    for seed in range(40):
        image, boxes, labels = crop(sample, (50, 60), np.random.default_rng(seed))
        height, width = image.shape[-2:]
        assert 50 <= height <= 60 and 50 <= width <= 60
        assert boxes.min() >= 0 and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        visible = [k for k in range(3) if image[k].any()]
        assert labels.tolist() == visible and len(boxes) == len(visible)
        outcomes.add(tuple(visible))
    assert len(outcomes) > 3


def test_a_crop_without_objects_gives_an_empty_target():
    image, boxes, labels = crop(make_sample([(0, 0, 2, 2)]), (10, 10), np.random.default_rng(1))
    assert image.shape == (3, 10, 10) and boxes.shape == (0, 4) and labels.shape == (0,)
    target = as_target(resize((image, boxes, labels), 20, None))
    assert target.boxes.shape == (0, 4) and target.labels.dtype == torch.int64


def test_a_crop_of_an_image_smaller_than_the_limits_stays_within_it():
    image, boxes, _ = crop(make_sample([(1, 1, 9, 9)], (10, 20)), (384, 600), np.random.default_rng(0))
    assert image.shape == (3, 10, 20) and boxes.tolist() == [[1, 1, 9, 9]]


def test_crops_reach_every_edge():
    numbers = torch.arange(12, dtype=torch.uint8)
    image = tv_tensors.Image(torch.stack([numbers.expand(12, 12), numbers[:, None].expand(12, 12)]))  # column, row
    empty = make_sample([])[1:]
    crops = [crop((image, *empty), (4, 6), np.random.default_rng(seed))[0] for seed in range(200)]
    first = torch.stack([part[:, 0, 0] for part in crops])
    last = torch.stack([part[:, -1, -1] for part in crops])
    assert first.min(0).values.tolist() == [0, 0] and last.max(0).values.tolist() == [11, 11]


def test_a_crop_thinner_than_a_pixel_is_one_pixel():
    plan = Plan((0.995, 0.0, 1.0, 1.0), (30, 20), flip=False, vertical_flip=False)
    sample = make_sample([(0, 0, 4, 10)], (10, 4))
    image, boxes, _ = apply(plan, sample, full_frame(sample))
    assert image.shape == (3, 30, 20) and boxes.tolist() == [[0, 0, 20, 30]]


def test_a_target_has_centres_and_sizes_as_fractions_of_the_image():
    target = as_target(make_sample([(13, 9, 39, 45)]), seed=5)
    torch.testing.assert_close(target.boxes, torch.tensor([[0.2, 0.3, 0.2, 0.4]]))
    assert type(target.boxes) is Tensor and target.boxes.dtype == torch.float32
    assert target.labels.tolist() == [0] and target.seed == 5


def test_the_same_generator_gives_the_same_image():
    config, sample = DataConfig(**SMALL), make_sample([(10, 10, 40, 40)])
    first, repeated, other = (augment(sample, config, np.random.default_rng((0, 1, seed))) for seed in (2, 2, 3))
    assert torch.equal(first[0], repeated[0]) and torch.equal(first[1], repeated[1])
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_no_global_random_generator_is_used():
    config, sample = DataConfig(**SMALL), make_sample([(10, 10, 40, 40)])
    torch.manual_seed(0)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for seed in range(5):
        augment(sample, config, np.random.default_rng(seed))
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()


def test_downscaling_is_antialiased():
    """One-pixel stripes become grey, not wider stripes."""
    stripes = torch.zeros(3, 120, 120, dtype=torch.uint8)
    stripes[..., ::2] = 255
    _, boxes, labels = make_sample([], (120, 120))
    small = resize((tv_tensors.Image(stripes), boxes, labels), 40, None)[0].float()
    assert (small - 127.5).abs().max() < 60
    assert (F.resize(stripes, [40, 40], antialias=False).float() - 127.5).abs().max() > 100  # without antialiasing


# settings that DETR does not have


def test_large_scale_jitter_keeps_boxes_on_their_objects():
    config = DataConfig(policy="lsj", lsj_size=96, lsj_scales=(0.3, 2.0), flip=0.5, vertical_flip=0.5)
    sizes = set()
    for seed in range(40):
        pixels = torch.zeros(3, 90, 120, dtype=torch.uint8)
        pixels[:, 30:60, 40:85] = 255
        sample = annotated_image(pixels, torch.tensor([[40.0, 30.0, 85.0, 60.0]]), torch.tensor([0]))
        plan = draw((90, 120), config, np.random.default_rng(seed))
        image, boxes, labels = apply(plan, sample, (0, 0, 120, 90))
        assert max(image.shape[-2:]) <= 96 and len(boxes) == len(labels)
        sizes.add(tuple(image.shape[-2:]))
        bright = image[0] > 127
        rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
        if len(boxes) and len(rows) and len(columns):
            extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert boxes[0].tolist() == pytest.approx([float(v) for v in extent], abs=1.01)
    assert len(sizes) > 10 and (96, 96) in sizes


def test_colour_jitter_keeps_boxes_and_does_not_affect_other_random_choices():
    plain, colored = DataConfig(), DataConfig(color_jitter=(0.4, 0.4, 0.4, 0.1))
    without, changed = (draw((90, 120), config, np.random.default_rng(1)) for config in (plain, colored))
    assert without == changed._replace(colors=()) and len(changed.colors) == 4
    pixels = torch.randint(256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sample = annotated_image(pixels, torch.tensor([[40.0, 30.0, 85.0, 60.0]]), torch.tensor([0]))
    before, after = (apply(plan, sample, (0, 0, 120, 90)) for plan in (without, changed))
    assert (before[1] == after[1]).all() and (before[0] != after[0]).any() and after[0].dtype == torch.uint8


@pytest.mark.parametrize("settings", [
    SMALL, SMALL | {"crop_chance": 0.0}, SMALL | {"pad_size_divisor": 7},
    {"policy": "lsj", "lsj_size": 96}, {"policy": "lsj", "lsj_scales": (0.2, 0.7)},
])  # fmt: skip
def test_the_largest_size_is_a_tight_bound_on_augmented_sizes(settings):
    config, rng = DataConfig(**settings), np.random.default_rng(0)
    sizes = rng.integers(40, 300, (5, 2))  # width and height
    height, width = largest_size(sizes, config, images=2)
    plans = [draw((h, w), config, rng) for w, h in sizes.tolist() for _ in range(300)]
    assert all(plan.size[0] <= height and plan.size[1] <= width for plan in plans)
    assert (height, width) == padded_size(height, width, config)
    assert max(plan.size[0] for plan in plans) >= 0.9 * height
    assert max(plan.size[1] for plan in plans) >= 0.9 * width
    single = largest_size(sizes, config, images=1)
    assert single[0] * single[1] <= height * width
