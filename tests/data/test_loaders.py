"""Batches: their images and order, padding, and images that cannot be read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore.config import Config, DataConfig, TrainConfig
from dinocore.data.annotations import read_annotations
from dinocore.data.batch import Sample, collate, normalise
from dinocore.data.formats.layout import find_layout
from dinocore.data.loaders import (
    Chunks,
    EvaluationImages,
    Steps,
    TrainingImages,
    evaluation_batches,
    load_annotated,
    steps_per_epoch,
    training_steps,
)
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.errors import DataError
from dinocore.structures import Target

SMALL = {"train_scales": (64, 72), "max_size": 120, "crop_scales": (70,), "crop_size": (40, 60), "eval_scale": 72}


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smears")
    write_sample_data(folder, num_images=8, size=(96, 72))
    return folder


@pytest.fixture
def annotations(sample_folder):
    return read_annotations(find_layout(sample_folder).train)


@pytest.fixture
def ten_images(make_coco, tmp_path):
    """Ten images with ids 1 to 10 and one object each, and a function that damages images by id."""

    def damage(*ids):
        for i in ids:
            (tmp_path / "train2017" / f"{i:04d}.png").write_bytes(b"no image")

    return read_annotations(make_coco({i: [(1, i, 2 * i, 20, 10)] for i in range(1, 11)})), damage


def config(batch_size=2, workers=0, seed=0):
    return Config(data=DataConfig(**SMALL, workers=workers), train=TrainConfig(batch_size=batch_size, seed=seed))


def sample(height, width, index=0, problem=None, value=255):
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    target = Target(torch.tensor([index]), torch.tensor([[0.5, 0.5, 0.1, 0.1]]), seed=index)
    return Sample(image, target, index, (height, width), problem)


# images and their order


@pytest.mark.parametrize(("images", "batch"), [(10, 3), (10, 5), (7, 7), (5, 1), (3, 8)])
def test_images_appear_at_most_once_per_epoch_in_full_batches(images, batch):
    per_epoch = steps_per_epoch(images, batch)
    steps = list(Steps(images, batch, seed=1, start=0, end=3 * per_epoch))
    assert len(steps) == 3 * per_epoch
    for epoch in range(3):
        items = [item for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for item in step]
        assert {e for e, _ in items} == {epoch}
        indices = [index for _, index in items]
        assert len(set(indices)) == len(indices) == min(images, per_epoch * batch)
        assert all(0 <= index < images for index in indices)


def test_a_batch_larger_than_the_dataset_is_the_whole_dataset():
    assert steps_per_epoch(3, 8) == 1
    (step,) = Steps(3, 8, seed=0, start=5, end=6)
    assert sorted(step) == [(5, 0), (5, 1), (5, 2)]


def test_a_start_within_an_epoch_continues_the_same_sequence():
    all_steps = list(Steps(10, 3, seed=4, start=0, end=11))
    for start in range(11):
        steps = Steps(10, 3, seed=4, start=start, end=11)
        assert list(steps) == all_steps[start:] and len(steps) == 11 - start


def test_the_order_depends_on_epoch_and_seed():
    orders = [[index for step in Steps(20, 20, seed, e, e + 1) for _, index in step] for seed in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_chunks_split_a_step_into_forward_passes():
    batches = Chunks(2, DataConfig())([sample(4, 4, i) for i in range(5)])
    assert [batch.indices for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [len(batch.targets) for batch in batches] == [2, 2, 1]


@pytest.mark.parametrize(("settings", "size"), [
    ({}, (65, 70)),
    ({"pad_size_divisor": 32}, (96, 96)),
    ({"pad_size_divisor": 70}, (70, 70)),
    ({"pad_size_divisor": 64, "max_size": 90}, (90, 90)),
    ({"pad_size_divisor": 64, "max_size": 40}, (65, 70)),  # a batch is never smaller than its images
    ({"pad_size_divisor": 64, "max_size": 40, "policy": "lsj", "lsj_size": 100}, (100, 100)),
])  # fmt: skip
def test_a_training_batch_is_padded_to_multiples_of_the_divisor_but_not_beyond_the_largest_size(settings, size):
    images = [sample(65, 20, 0, value=10), sample(30, 70, 1, value=20)]
    (batch,) = Chunks(2, DataConfig(**settings))(images)
    exact = collate(images)
    assert batch.images.shape[-2:] == batch.padding.shape[-2:] == size and exact.images.shape[-2:] == (65, 70)
    assert (batch.images[..., :65, :70] == exact.images).all() and (batch.padding[:, :65, :70] == exact.padding).all()
    assert batch.padding[:, 65:].all() and batch.padding[..., 70:].all() and not batch.images[..., 65:, :].any()
    assert [target.boxes.tolist() for target in batch.targets] == [target.boxes.tolist() for target in exact.targets]


def same(a, b):
    return torch.equal(a.images, b.images) and a.indices == b.indices and all(
        torch.equal(s.boxes, t.boxes) and torch.equal(s.labels, t.labels) and s.seed == t.seed
        for s, t in zip(a.targets, b.targets, strict=True)
    )  # fmt: skip


def test_batches_do_not_depend_on_the_number_of_workers(annotations):
    """An augmented image depends on (seed, epoch, index), but not on the worker that reads it."""
    serial, parallel = (list(training_steps(annotations, config(2, workers), 1, 0, 5)) for workers in (0, 2))
    assert len(serial) == len(parallel) == 5 and all(len(step) == 2 for step in serial)
    assert all(same(a, b) for one, two in zip(serial, parallel, strict=True) for a, b in zip(one, two, strict=True))
    resumed = list(training_steps(annotations, config(2), 1, 3, 5))
    assert all(same(a, b) for one, two in zip(serial[3:], resumed, strict=True) for a, b in zip(one, two, strict=True))


def test_an_image_depends_on_seed_epoch_and_index(annotations):
    def load(seed, epoch, index):
        return TrainingImages(annotations, config().data, seed)[epoch, index]

    first, repeated = load(0, 1, 2), load(0, 1, 2)
    assert torch.equal(first.image, repeated.image) and first.target.seed == repeated.target.seed
    for other in (load(1, 1, 2), load(0, 2, 2), load(0, 1, 3)):
        assert other.target.seed != first.target.seed
        assert other.image.shape != first.image.shape or not torch.equal(other.image, first.image)


# collating and normalising


def test_images_are_padded_at_the_right_and_bottom_where_the_mask_is_true():
    batch = collate([sample(3, 5, 0, value=10), sample(4, 2, 1, value=20)])
    assert batch.images.shape == (2, 3, 4, 5) and batch.images.dtype == torch.uint8
    assert ["".join(".#"[int(p)] for p in row) for row in batch.padding[0]] == [".....", ".....", ".....", "#####"]
    assert ["".join(".#"[int(p)] for p in row) for row in batch.padding[1]] == ["..###"] * 4
    assert (batch.images[0][:, ~batch.padding[0]] == 10).all() and (batch.images[1][:, ~batch.padding[1]] == 20).all()
    assert (batch.images[batch.padding[:, None].expand(-1, 3, -1, -1)] == 0).all()
    assert batch.sizes == [(3, 5), (4, 2)] and batch.indices == [0, 1] and batch.problems == []


SIZE = "boxes / torch.tensor([width, height, width, height])"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.rand(3, 4, 5)}, "must be (3, H, W) of uint8, but this is torch.float32"),
        ({"image": torch.zeros(4, 5, 3, dtype=torch.uint8)}, "image.permute(2, 0, 1)"),
        (
            {"boxes": torch.tensor([[50.0, 30, 20, 20]])},
            f"but these go from 20 to 50; divide pixels by the image's size: {SIZE}",
        ),
        ({"boxes": torch.tensor([[0.5, 0.5, -0.1, 0.1]])}, "go from -0.1 to 0.5"),
        ({"boxes": torch.tensor([[0.5, 0.5, float("nan"), 0.1]])}, "as fractions of the image"),
        ({"boxes": torch.tensor([0.5, 0.5, 0.1, 0.1])}, "but these are torch.int64 (1,) and (4,)"),
        ({"labels": torch.tensor([0, 1])}, "but these are torch.int64 (2,) and (1, 4)"),
        ({"labels": torch.tensor([0.0])}, "labels must be integers (n,)"),
    ],
)
def test_an_invalid_sample_is_refused(change, message):
    valid = sample(4, 5)
    target = Target(change.get("labels", valid.target.labels), change.get("boxes", valid.target.boxes))
    invalid = valid._replace(image=change.get("image", valid.image), target=target)
    with pytest.raises(DataError) as caught:
        collate([sample(3, 5, 0), invalid])
    assert message in str(caught.value)


def test_boxes_slightly_beyond_the_image_and_images_without_boxes_are_accepted():
    target = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.2, 1.0005]]))
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert collate([sample(3, 5)._replace(target=one) for one in (target, empty)]).targets == [target, empty]


def test_pixels_are_normalised_with_mean_and_std_and_padding_is_zero():
    batch = collate([sample(2, 3, 0, value=255), sample(2, 2, 1, value=51)])
    normalised = normalise(batch, mean=(0.5, 0.2, 0.0), std=(0.5, 0.1, 2.0), device=torch.device("cpu"))
    assert normalised.images.dtype == torch.float32 and normalised.images.shape == (2, 3, 2, 3)
    torch.testing.assert_close(normalised.images[0, :, 1, 2], torch.tensor([1.0, 8.0, 0.5]))
    torch.testing.assert_close(normalised.images[1, :, 1, 1], torch.tensor([-0.6, 0.0, 0.1]))
    assert (normalised.images[1, :, :, 2] == 0).all()
    assert [t.seed for t in normalised.targets] == [0, 1]


# targets


def test_a_training_target_matches_its_annotation(ten_images):
    annotations, _ = ten_images
    no_augmentation = DataConfig(flip=0.0, crop_chance=0.0, train_scales=(96,))
    loaded = TrainingImages(annotations, no_augmentation, 0)[0, 3]  # id 4: a 20 x 10 box at (4, 8) in a 64 x 48 image
    assert loaded.image.shape == (3, 96, 128) and loaded.size == (48, 64) and loaded.problem is None
    torch.testing.assert_close(loaded.target.boxes, torch.tensor([[14 / 64, 13 / 48, 20 / 64, 10 / 48]]))
    assert loaded.target.labels.tolist() == [0]


def test_targets_exclude_crowds_and_objects_outside_and_clip_boxes(make_coco):
    def add_objects(document):
        rows = [[-10, -10, 30, 20], [60, 40, 40, 40], [64, 0, 9, 9], [1, 1, 30, 30]]
        document["annotations"] = [
            {"image_id": 1, "category_id": 1, "bbox": row, "iscrowd": int(n == 3)} for n, row in enumerate(rows)
        ] + [{"image_id": 2, "category_id": 1, "bbox": [n, n, 5, 5]} for n in range(30)]

    annotations = read_annotations(make_coco({1: [], 2: []}, edit=add_objects))
    _, boxes, labels = load_annotated(annotations, 0, DataConfig(), annotations.trainable())
    assert boxes.tolist() == [[0, 0, 20, 10], [60, 40, 64, 48]] and labels.tolist() == [0, 0]


def test_an_image_without_objects_is_in_training_batches(make_coco):
    annotations = read_annotations(make_coco({1: [], 2: [(1, 5, 5, 9, 9)]}))
    (batch,) = next(iter(training_steps(annotations, config(2), 2, 0, 1)))
    assert sorted(len(target.labels) for target in batch.targets) in ([0, 0], [0, 1])  # a crop may drop the only object
    assert all(target.boxes.shape == (len(target.labels), 4) for target in batch.targets)


# images that cannot be read


def test_a_damaged_image_is_replaced_by_the_next_one_and_reported_once(ten_images):
    annotations, damage = ten_images
    damage(3, 4)
    images = TrainingImages(annotations, config().data, 0)
    replacement, next_one = images[7, 2], images[7, 4]
    assert replacement.index == 4 and torch.equal(replacement.image, next_one.image) and next_one.problem is None
    assert "0003.png is not an image" in replacement.problem and "0004" not in replacement.problem
    batch = collate([replacement, next_one, images[7, 3]])
    assert len(batch.problems) == 2 and "0004.png" in batch.problems[1]


def test_a_damaged_last_image_is_replaced_by_the_first_one(ten_images):
    annotations, damage = ten_images
    damage(10)
    assert TrainingImages(annotations, config().data, 0)[0, 9].index == 0


def test_ten_damaged_images_in_a_row_raise_an_error(ten_images):
    annotations, damage = ten_images
    damage(*range(1, 10))
    images = TrainingImages(annotations, config().data, 0)
    assert images[0, 0].index == 9
    damage(10)
    with pytest.raises(DataError, match=r"10 images in a row cannot be read; the first: .*0003\.png"):
        images[0, 2]


def test_a_size_other_than_annotated_is_reported_and_a_rotation_is_recognised(make_coco, tmp_path):
    annotations = read_annotations(make_coco())
    Image.new("RGB", (60, 48)).save(tmp_path / "train2017" / "0007.png")
    loaded = TrainingImages(annotations, config().data, 0)[0, 0]
    assert loaded.index == 1 and loaded.problem.endswith("0007.png has 60 x 48 pixels, but the annotations say 64 x 48")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "train2017" / "0009.png", exif=exif)
    problem = EvaluationImages(annotations, config().data)[1]
    assert problem.endswith(
        "has 48 x 64 pixels, but the annotations say 64 x 48, which is the same rotated, as by an EXIF orientation"
    )


def test_an_image_over_the_pixel_limit_is_reported(ten_images):
    annotations, _ = ten_images
    problem = EvaluationImages(annotations, DataConfig(max_pixels=64 * 48 - 1))[0]
    assert "more than data.max_pixels = 3071" in problem


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_the_order_and_reports_unreadable_images(ten_images, workers):
    annotations, damage = ten_images
    damage(2, 5, 6)
    batches = list(evaluation_batches(annotations, config(workers=workers).data, batch_size=2))
    assert [batch and batch.indices for batch, _ in batches] == [[0], [2, 3], None, [6, 7], [8, 9]]
    assert [len(problems) for _, problems in batches] == [1, 0, 2, 0, 0]
    assert "0005.png" in batches[2][1][0] and "0006.png" in batches[2][1][1]


def test_evaluation_images_have_one_scale_and_no_randomness(annotations):
    images = EvaluationImages(annotations, config().data)
    assert len(images) == 6 and {images[i].image.shape for i in range(6)} == {(3, 72, 96)}
    assert torch.equal(images[1].image, images[1].image) and images[0].size == (72, 96)


def test_boxes_in_batches_match_the_annotations(sample_folder, annotations):
    """Compares boxes of batches, without augmentation, with those in the JSON file."""
    document = json.loads((sample_folder / "annotations" / "instances_train2017.json").read_text())
    for batch, problems in evaluation_batches(annotations, config().data):
        assert problems == []
        image_id = int(annotations.image_ids[batch.indices[0]])
        expected = np.array([a["bbox"] for a in document["annotations"] if a["image_id"] == image_id]).reshape(-1, 4)
        cx, cy, w, h = (batch.targets[0].boxes.double() * torch.tensor([96, 72, 96, 72])).T
        assert torch.stack([cx - w / 2, cy - h / 2, w, h], 1).numpy() == pytest.approx(expected, abs=1e-3)
