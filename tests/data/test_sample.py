"""The sample dataset is reproducible, has exact boxes, and resembles BCCD."""

import contextlib
import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dinocore.data.synthetic import sample, smear
from dinocore.data.synthetic.cells import PLATELET, RBC, WBC, random_look, red_cell
from dinocore.data.synthetic.sample import draw_smear, write_sample_data
from dinocore.errors import ConfigError, EnvironmentFault

SMALL = (160, 120)


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def placed_cells(seed, index, size):
    """The cells of `draw_smear(seed, index, size)`."""
    rng = np.random.default_rng((seed, index))
    return smear._arrange(rng, random_look(rng, min(size) / 480), size)


def slide_mask(item, size, margin=1000):
    """The mask of one cell at the size of the image; parts outside the image are cut off."""
    slide = np.zeros((size[1] + 2 * margin, size[0] + 2 * margin), bool)
    height, width = item.cell.mask.shape
    slide[margin + item.top :, margin + item.left :][:height, :width] = item.cell.mask
    return slide[margin:-margin, margin:-margin]


def extent(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    return folder, write_sample_data(folder, num_images=10, seed=3, size=SMALL)


@pytest.fixture(scope="module")
def many_annotations():
    """(labels, boxes) of 200 images."""
    return [draw_smear(0, index, SMALL)[1:] for index in range(200)]


def test_the_same_seed_gives_the_same_files_and_another_seed_different_ones(dataset, tmp_path):
    folder, summary = dataset
    assert write_sample_data(tmp_path / "same", 10, 3, SMALL) == summary
    write_sample_data(tmp_path / "other", 10, 4, SMALL)
    assert digest(tmp_path / "same") == digest(folder)
    assert not set(digest(tmp_path / "other").values()) & set(digest(folder).values())


def test_an_image_does_not_depend_on_how_many_are_drawn(dataset, tmp_path):
    write_sample_data(tmp_path, 4, 3, SMALL)
    first = "train2017/smear_000001.jpg"
    assert digest(tmp_path)[first] == digest(dataset[0])[first]


def test_images_of_one_dataset_differ():
    assert len({draw_smear(0, index, SMALL)[0].tobytes() for index in range(20)}) == 20


@pytest.mark.parametrize("size", [(640, 480), (96, 200)])
def test_a_box_is_the_extent_of_the_drawn_mask(size):
    for index in range(6):
        _, labels, boxes = draw_smear(1, index, size)
        items = placed_cells(1, index, size)
        assert labels == [item.cell.label for item in items]
        assert boxes.tolist() == [extent(slide_mask(item, size)) for item in items]


@pytest.mark.parametrize(("left", "top"), [(200, 150), (-40, 100), (560, 420)])
def test_a_box_encloses_the_pixels_that_the_cell_changes(left, top):
    size = (640, 480)
    look = random_look(np.random.default_rng(5), 1.0)
    item = smear.Placed(red_cell(np.random.default_rng(6), look), left, top)
    with_cell, without = (smear._paint(np.random.default_rng(7), items, size).astype(int) for items in ([item], []))
    changed = extent(np.abs(with_cell - without).sum(-1) > 24)
    assert np.allclose(changed, item.box(size), atol=2.5)


def test_at_least_half_of_every_cell_is_inside_the_image_and_uncovered():
    for index in range(6):
        covered = np.zeros((480, 640), bool)
        for item in reversed(placed_cells(2, index, (640, 480))):
            mask = slide_mask(item, (640, 480))
            assert (mask & ~covered).sum() >= 0.5 * item.cell.mask.sum()
            covered |= mask


def test_boxes_are_inside_the_image_and_not_empty(many_annotations):
    boxes = np.concatenate([boxes for _, boxes in many_annotations])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= SMALL).all()


def test_counts_are_near_those_of_bccd(many_annotations):
    counts = np.array([[labels.count(label) for label in (RBC, WBC, PLATELET)] for labels, _ in many_annotations])
    assert counts.mean(0) == pytest.approx([13, 1, 1.1], abs=2) and 0.8 < counts[:, 1].mean() < 1.2
    assert (counts.max(0) <= [30, 2, 6]).all() and set(counts[:, 1]) == {0, 1, 2}


def test_some_images_have_no_objects_and_some_have_few(many_annotations):
    numbers = [len(labels) for labels, _ in many_annotations]
    assert 2 <= numbers.count(0) <= 15
    assert any(1 <= n <= 3 for n in numbers)
    assert all(boxes.shape == (len(labels), 4) for labels, boxes in many_annotations)


@pytest.mark.slow
def test_sizes_are_near_those_of_bccd_and_scale_with_the_image():
    def sides(size, count):
        annotations = [draw_smear(0, index, size)[1:] for index in range(count)]
        labels, boxes = np.concatenate([d[0] for d in annotations]), np.concatenate([d[1] for d in annotations])
        return np.array([np.median(boxes[labels == label, 2:].max(1)) for label in (RBC, WBC, PLATELET)])

    large = sides((640, 480), 30)
    assert ((large > [90, 140, 32]) & (large < [115, 225, 50])).all()
    assert sides((320, 240), 60) == pytest.approx(large / 2, rel=0.15)


def test_files_follow_the_coco_layout_with_train_and_val(dataset):
    folder, summary = dataset
    assert summary[:2] == (8, 2) and summary.objects.keys() == {"RBC", "WBC", "Platelets"}
    documents = {
        split: json.loads((folder / f"annotations/instances_{split}2017.json").read_text())
        for split in ("train", "val")
    }
    expected = {f"annotations/instances_{split}2017.json" for split in documents}
    for split, document in documents.items():
        assert document.keys() == {"info", "licenses", "images", "annotations", "categories"}
        assert [(c["id"], c["name"]) for c in document["categories"]] == [(1, "RBC"), (2, "WBC"), (3, "Platelets")]
        assert [a["id"] for a in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
        expected |= {f"{split}2017/{image['file_name']}" for image in document["images"]}
        for image in document["images"]:
            with Image.open(folder / f"{split}2017" / image["file_name"]) as saved_image:
                assert saved_image.size == (image["width"], image["height"]) == SMALL
    assert digest(folder).keys() == expected  # no other files
    assert sum(summary.objects.values()) == sum(len(d["annotations"]) for d in documents.values())


def test_pycocotools_reads_the_boxes_that_were_drawn(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(dataset[0] / "annotations/instances_train2017.json"))
    for image_id in coco.getImgIds():
        _, labels, boxes = draw_smear(3, image_id - 1, SMALL)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert [a["category_id"] for a in annotations] == labels
        assert [a["bbox"] for a in annotations] == boxes.tolist()
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] and a["iscrowd"] == 0 for a in annotations)


@pytest.mark.parametrize(("num_images", "train", "val"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (5, 4, 1)])
def test_small_datasets_are_split(tmp_path, num_images, train, val):
    assert write_sample_data(tmp_path, num_images, size=(64, 64))[:2] == (train, val)
    for split, count in (("train", train), ("val", val)):
        document = json.loads((tmp_path / f"annotations/instances_{split}2017.json").read_text())
        assert len(document["images"]) == count == len(list((tmp_path / f"{split}2017").iterdir()))


def test_an_interrupted_run_leaves_no_annotations(tmp_path, monkeypatch):
    write_sample_data(tmp_path, 3, size=SMALL)

    def stop_at_the_third(seed, index, size):
        if index == 2:
            raise KeyboardInterrupt
        return draw_smear(seed, index, size)

    monkeypatch.setattr(sample, "draw_smear", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path, 3, seed=1, size=SMALL)
    assert list((tmp_path / "annotations").iterdir()) == []


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"file/in/.* cannot be written"):
        write_sample_data(tmp_path / "file" / "in", 1, 0, SMALL)


@pytest.mark.parametrize(
    ("num_images", "seed", "size"), [(0, 0, SMALL), (3, -1, SMALL), (3, 0, (640, 63)), (3, 0, (9999, 64))]
)
def test_invalid_arguments_are_refused_before_anything_is_written(tmp_path, num_images, seed, size):
    with pytest.raises(ConfigError, match="choose"):
        write_sample_data(tmp_path, num_images, seed, size)
    assert list(tmp_path.iterdir()) == []


def test_a_slide_is_pale_red_cells_are_reddish_and_nuclei_violet():
    background, inside = [], {RBC: [], WBC: []}
    for index in range(10):
        image, labels, boxes = draw_smear(4, index)
        free = np.ones(image.shape[:2], bool)
        for label, (x, y, w, h) in zip(labels, boxes.astype(int), strict=True):
            free[y : y + h, x : x + w] = False
            if label in inside:
                inside[label].append(np.median(image[y : y + h, x : x + w].reshape(-1, 3), axis=0))
        background.append(np.median(image[free], axis=0))
    assert np.mean(background, axis=0) == pytest.approx([195, 197, 193], abs=6)  # BCCD: 197, 199, 195
    red, green, blue = np.mean(inside[RBC], axis=0)
    assert red > blue > green
    red, green, blue = np.mean(inside[WBC], axis=0)
    assert blue > red > green
