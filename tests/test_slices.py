"""Large images in slices: they cover the image, and objects across edges are found once and completely."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore import load_detector
from dinocore.boxes import iou
from dinocore.config import DataConfig
from dinocore.data.synthetic.smear import draw_smear
from dinocore.errors import ConfigError
from dinocore.stream.slices import Slicing, WindowDetections, merge, parse_slicing, shrink_factor


@pytest.mark.parametrize("size", [(500, 8000), (3000, 4000), (640, 640), (769, 300), (641, 1281)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5])
def test_slices_cover_every_pixel_and_overlap_as_requested(size, overlap):
    windows = Slicing(640, overlap).windows(size)
    if not windows:
        assert max(size) <= 640 * 1.2
        return
    assert windows[0] == (0, 0, size[1], size[0])
    covered = np.zeros(size, bool)
    for x0, y0, x1, y1 in windows[1:]:
        assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    for low, high in ((0, 2), (1, 3)):
        spans = sorted({(window[low], window[high]) for window in windows[1:]})
        assert all(a[1] - b[0] >= overlap * 640 - 1 for a, b in itertools.pairwise(spans))


def perfect_detections(truth, windows, generator, jitter=1.5):
    """Detections of a perfect detector: the objects in each slice, clipped to it, with noise up to `jitter` pixels."""
    labels, scores, boxes, window = [], [], [], []
    for w, (x0, y0, x1, y1) in enumerate(windows):
        for label, box in truth:
            clipped = [max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)]
            if clipped[2] - clipped[0] < 3 or clipped[3] - clipped[1] < 3:
                continue
            if w == 0 and max(box[2] - box[0], box[3] - box[1]) < 60:
                continue  # too small to be found in the whole image
            noise = (torch.rand(4, generator=generator) - 0.5) * 2 * jitter
            clipped = torch.tensor(clipped).float() + noise
            low, high = torch.tensor([x0, y0, x0, y0]), torch.tensor([x1, y1, x1, y1])
            boxes.append(clipped.clamp(low, high))
            labels.append(label)
            scores.append(0.5 + 0.5 * float(torch.rand((), generator=generator)))
            window.append(w)
    return WindowDetections(torch.tensor(labels), torch.tensor(scores), torch.stack(boxes), torch.tensor(window))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("large", [False, True])
def test_objects_across_edges_are_detected_once_and_completely(seed, large):
    generator = torch.Generator().manual_seed(seed)
    windows = Slicing(200, 0.25).windows((420, 900))
    positions = [(x, y) for x in range(0, 840, 70) for y in range(0, 400, 70)]
    truth = []
    for x, y in positions:
        a, b = (20 + 35 * torch.rand(2, generator=generator)).tolist()
        truth.append((int(torch.randint(2, (), generator=generator)), [x, y, x + a, y + b]))
    if large:  # longer than the overlap, and cut in every slice
        truth += [(2, [60.0, 20, 380, 60]), (2, [500.0, 100, 560, 390])]
    detections = perfect_detections(truth, windows, generator)
    labels, _, boxes = merge(detections, windows)
    truth_labels, truth_boxes = torch.tensor([t[0] for t in truth]), torch.tensor([t[1] for t in truth])
    matched = (iou(truth_boxes[:, None], boxes[None]) > 0.8) & (truth_labels[:, None] == labels[None])
    assert matched.any(1).all(), "every object is found"
    assert len(boxes) == len(truth), "no duplicates, no parts of cut objects"


def test_an_object_longer_than_any_slice_is_merged_even_if_the_whole_image_misses_it():
    windows = Slicing(200, 0.25).windows((200, 700))
    truth = [(0, [50.0, 80, 650, 120])]
    detections = perfect_detections(truth, windows, torch.Generator().manual_seed(0))
    labels, _, boxes = merge(detections.take(detections.window > 0), windows)
    assert len(labels) == 1 and (boxes[0] - torch.tensor(truth[0][1])).abs().max() < 4


def test_two_objects_that_overlap_in_one_slice_are_both_kept():
    windows = Slicing(200, 0.25).windows((200, 700))
    boxes = torch.tensor([[20.0, 20, 60, 60], [24.0, 20, 64, 60]])
    detections = WindowDetections(
        torch.zeros(2, dtype=torch.int64), torch.tensor([0.9, 0.8]), boxes, torch.tensor([1, 1])
    )
    assert len(merge(detections, windows)[0]) == 2


@pytest.mark.parametrize(
    ("box", "label", "kept"),
    [
        ([200.0, 20, 310, 130], 0, False),  # encloses the slice's detection
        ([232.0, 52, 292, 64], 0, False),  # a part of it
        ([200.0, 20, 310, 130], 1, True),  # another class
        ([262.0, 20, 372, 130], 0, True),  # beside it
    ],
)
def test_a_box_of_the_whole_image_that_a_slice_contradicts_is_dropped(box, label, kept):
    windows = Slicing(200, 0.25).windows((200, 700))
    assert windows[2][0] < 220 and windows[2][2] > 320
    boxes = torch.tensor([box, [230.0, 50, 280, 100]])
    detections = WindowDetections(torch.tensor([label, 0]), torch.tensor([0.9, 0.5]), boxes, torch.tensor([0, 2]))
    assert len(merge(detections, windows)[0]) == 1 + kept


@pytest.mark.parametrize("side, overlap", [("31", 0.2), ("big", 0.2), ("640", 0.95), ("640", -0.1)])
def test_invalid_slices_are_refused(side, overlap):
    with pytest.raises(ConfigError, match=r"--slice|--overlap"):
        parse_slicing(side, overlap, DataConfig(), {})


def test_automatic_slices_are_as_large_as_the_training_images():
    assert parse_slicing("auto", 0.2, DataConfig(), {"median_short_side": 333}).side == 333
    assert parse_slicing("auto", 0.2, DataConfig(eval_scale=400), {}).side == 600


def test_automatic_slices_overlap_by_the_length_of_training_objects():
    def overlap(option, **facts):
        return parse_slicing("auto", option, DataConfig(), {"median_short_side": 400} | facts).overlap

    assert [overlap(None, object_side=side) for side in (10, 120, 390)] == [0.2, 0.3, 0.5]
    assert (overlap(None), overlap(0.4, object_side=10)) == (0.2, 0.4), "a given overlap takes precedence"
    assert parse_slicing("400", None, DataConfig(), {"object_side": 120}).overlap == 0.2


def test_a_run_stores_typical_sizes_of_its_images_and_objects(make_coco):
    from dinocore.data.annotations import read_annotations
    from dinocore.train.evaluation import _training_sizes

    objects = {1: [(1, 0, 0, 10, 20)] * 9 + [(1, 0, 0, 60, 4)], 2: []}  # nine are 20 long, one 60
    assert _training_sizes(read_annotations(make_coco(objects)), 0.1) == {"median_short_side": 48, "object_side": 23}


def test_a_very_wide_image_is_shrunk_and_an_ordinary_one_is_not():
    config = DataConfig(eval_scale=800, max_size=1333)
    assert shrink_factor((500, 8000), config) == pytest.approx(8000 / 1333, rel=0.01)
    assert shrink_factor((480, 640), config) < 1


def test_evaluation_in_slices_detects_objects_that_the_whole_image_misses(tmp_path):
    from dinocore.data.dataset import open_split
    from dinocore.evaluate.coco import coco_metrics, detect_all

    detector, ribbon, rows = load_detector(amp="off"), np.zeros((300, 2400, 3), np.uint8), []
    for k in range(8):
        ribbon[:, k * 300 : k * 300 + 300], labels, boxes = draw_smear(5, 100 + k, (300, 300))
        rows += [(label, k * 300 + x, y, w, h) for label, (x, y, w, h) in zip(labels, boxes.tolist(), strict=True)]
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        Image.fromarray(ribbon).save(tmp_path / split / "r.png")
        Image.new("RGB", (50, 40)).save(tmp_path / split / "z.png")  # smaller than in the annotations
        images = [{"id": 7, "file_name": "r.png", "width": 2400, "height": 300},
                  {"id": 8, "file_name": "z.png", "width": 60, "height": 40}]  # fmt: skip
        annotations = [
            {"id": n, "image_id": 7, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (label, *box) in enumerate(rows, 1)
        ]
        categories = [{"id": category.id, "name": category.name} for category in detector.categories]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        document = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    settings = detector.config.data.model_copy(update={"path": str(tmp_path)})
    truth = open_split(settings, "val", detector.categories)
    ap50 = {}
    for slicing in (None, Slicing(300, 0.2)):
        results = list(detect_all(detector, truth, slicing=slicing))
        assert [len(problems) for _, problems in results] == [0, 1] and "60 x 40" in results[1][1][0]
        ap50[slicing] = coco_metrics(truth, [row for rows, _ in results for row in rows]).summary["AP50"]
    whole, sliced = ap50.values()
    assert sliced > 0.6 and sliced > whole + 0.3


@pytest.mark.slow
def test_objects_in_a_panorama_of_8000_x_500_are_detected_only_in_slices():
    panorama, truth = np.zeros((500, 8000, 3), np.uint8), []
    for k in range(16):
        panorama[:, k * 500 : k * 500 + 500], _, boxes = draw_smear(5, 100 + k, (500, 500))
        truth += [(k * 500 + x, y, k * 500 + x + w, y + h) for x, y, w, h in boxes]
    detector = load_detector("cells", amp="off")
    slicing = parse_slicing("auto", None, detector.config.data, {})

    def recall(detections):
        boxes = detections.boxes_xyxy[detections.scores >= 0.3].double()
        return (iou(torch.tensor(truth)[:, None], boxes[None]) >= 0.5).any(1).float().mean().item()

    assert len(truth) == 226
    (sliced,) = detector.stream([panorama], slicing=slicing)
    assert recall(sliced) >= 0.95
    assert recall(detector(panorama)) < 0.1
