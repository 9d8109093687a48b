"""Thresholds with the best F1: how they are computed, and how weights store them."""

import json

import numpy as np
import pytest
from PIL import Image

from dinocore.data.annotations import Category, read_annotations
from dinocore.data.check.statistics import statistics
from dinocore.data.formats.layout import Split
from dinocore.evaluate.analysis import analyse
from dinocore.evaluate.answer import to_json
from dinocore.evaluate.coco import coco_metrics
from dinocore.evaluate.thresholds import MARGIN, best_thresholds
from dinocore.presets import load_config
from dinocore.weights.file import Weights, least_scores


@pytest.fixture
def annotations(tmp_path):
    box = {"image_id": 1, "iscrowd": 0, "area": 100.0}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 8, "name": "fox"}],
        "annotations": [
            box | {"id": 1, "category_id": 3, "bbox": [0, 0, 10, 10]},
            box | {"id": 2, "category_id": 5, "bbox": [50, 50, 10, 10]},
        ],
    }
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(document))
    return read_annotations(Split(tmp_path / "a.json", [tmp_path]))


def result(category_id, x, score):
    return {"image_id": 1, "category_id": category_id, "bbox": [x, x, 10.0, 10.0], "score": score}


def test_each_class_has_a_threshold_and_all_together_have_one(annotations):
    thresholds = best_thresholds(annotations, [result(3, 0, 0.7), result(5, 50, 0.2), result(5, 80, 0.1)])
    assert thresholds == {"overall": 0.2 - MARGIN, "classes": {"cat": 0.7 - MARGIN, "dog": 0.2 - MARGIN, "fox": None}}


def test_false_positives_raise_the_threshold(annotations):
    wrong = [result(5, 20 + n, 0.25 + n / 100) for n in range(8)]
    assert best_thresholds(annotations, [result(3, 0, 0.7), result(5, 50, 0.2), *wrong])["overall"] == 0.7 - MARGIN


def test_a_detection_whose_score_is_the_threshold_is_not_lost_to_rounding(annotations):
    threshold = best_thresholds(annotations, [result(3, 0, 0.7)])["overall"]
    assert np.nextafter(np.float32(0.7), np.float32(0)) >= threshold and threshold > 0.699


def test_without_a_correct_detection_there_is_no_threshold(annotations):
    assert best_thresholds(annotations, [result(3, 50, 0.9)]) is None
    assert best_thresholds(annotations, []) is None


@pytest.mark.parametrize("stored", [None, {}, {"overall": None}, {"overall": "high"}, {"overall": 2.0}, [0.5]])
def test_an_invalid_stored_threshold_is_ignored(stored):
    assert Weights({}, load_config("tiny"), [], {"thresholds": stored}).threshold is None


def test_a_class_without_a_threshold_uses_the_overall_one_or_0_3():
    categories = [Category(1, "cat"), Category(2, "dog"), Category(3, "fox")]
    stored = {"overall": 0.4, "classes": {"cat": 0.7, "dog": None, "fox": "high"}}
    weights = Weights({}, load_config("tiny"), categories, {"thresholds": stored})
    assert least_scores(categories, weights.threshold, weights.class_thresholds) == [0.7, 0.4, 0.4]
    assert least_scores(categories, None, {}) == [0.3, 0.3, 0.3]


def test_two_classes_with_the_same_name_have_separate_rows(annotations):
    same_names = annotations._replace(categories=[Category(3, "cat"), Category(5, "cat"), Category(8, "fox")])
    results = [result(3, 0, 0.7), result(5, 50, 0.2)]
    names = ["cat (id 3)", "cat (id 5)", "fox"]
    thresholds = [0.7 - MARGIN, 0.2 - MARGIN, None]
    assert best_thresholds(same_names, results)["classes"] == dict(zip(names, thresholds, strict=True))
    data = to_json(analyse(same_names, results, times=0))
    assert list(data["classes"]) == names and data["confusion"]["classes"][:3] == names
    assert list(coco_metrics(same_names, results).classes) == list(statistics(same_names)["classes"]) == names
