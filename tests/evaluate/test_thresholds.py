"""The threshold of the best F1 goes with the weights."""

import json

import pytest
from PIL import Image

from dinocore.data.annotations import read_annotations
from dinocore.data.formats.layout import Split
from dinocore.evaluate.thresholds import best_thresholds
from dinocore.presets import load_config
from dinocore.weights.file import Weights


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


def result(kind, x, score):
    return {"image_id": 1, "category_id": kind, "bbox": [x, x, 10.0, 10.0], "score": score}


def test_each_class_has_its_own_and_all_together_one(annotations):
    found = best_thresholds(annotations, [result(3, 0, 0.7), result(5, 50, 0.2), result(5, 80, 0.1)])
    assert found == {"overall": 0.2, "classes": {"cat": 0.7, "dog": 0.2, "fox": None}}


def test_false_alarms_move_it_up(annotations):
    wrong = [result(5, 20 + n, 0.25 + n / 100) for n in range(8)]
    assert best_thresholds(annotations, [result(3, 0, 0.7), result(5, 50, 0.2), *wrong])["overall"] == 0.7


def test_without_a_right_detection_there_is_none(annotations):
    assert best_thresholds(annotations, [result(3, 50, 0.9)]) is None
    assert best_thresholds(annotations, []) is None


@pytest.mark.parametrize("stored", [None, {}, {"overall": None}, {"overall": "high"}, {"overall": 2.0}, [0.5]])
def test_weights_without_a_usable_threshold_have_none(stored):
    assert Weights({}, load_config("tiny"), [], {"thresholds": stored}).threshold is None
