"""Results files of other tools: what pycocotools reads is read, and invalid entries are reported."""

import json
from pathlib import Path

import numpy as np
import pytest

from dinocore.data.annotations import Annotations, Category
from dinocore.errors import DataError
from dinocore.evaluate.results import read_results

IMAGE = Annotations(
    file=Path("annotations.json"), image_root=Path("."), categories=[Category(1, "cell")], image_ids=np.array([1]),
    file_names=np.array([b"a.png"]), sizes=np.array([[64, 64]]), starts=np.array([0, 0]), boxes=np.zeros((0, 4)),
    labels=np.zeros(0, int), area=np.zeros(0), crowd=np.zeros(0, bool), notes=[],
)  # fmt: skip


def result(image_id=1, category_id=1, box=(1.0, 2.0, 3.0, 4.0), score=0.5):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


@pytest.fixture
def read(tmp_path):
    """A function that reads a results file with this content; the only image and class have id 1."""

    def read(content):
        path = tmp_path / "r.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_results(path, IMAGE).rows

    return read


def test_ids_may_be_floats_as_written_by_pandas(read):
    (row,) = read([result(1.0, 1.0, (1, 2, 3, 4), 1)])
    assert row == result(score=1.0) and type(row["image_id"]) is type(row["category_id"]) is int
    assert read([result(1e0), result()]) == [result(), result()]


@pytest.mark.parametrize("name", ["a.png", "a", "1", "/data/val/a.png", "val\\a.png"])
def test_images_may_be_given_by_file_name(read, name):
    assert read([result(name)]) == [result()]
    assert read([result(name, score=1), result(name, 1.0)]) == [result(score=1.0), result()], "also if ids are floats"


def test_file_names_take_precedence_over_ids(tmp_path):
    two = IMAGE._replace(image_ids=np.array([1, 2]), file_names=np.array([b"x/2.png", b"y/1.png"]), starts=np.zeros(3))
    path = tmp_path / "r.json"
    path.write_text(json.dumps([result(1) | {"file_name": "1.png"}, result(2) | {"file_name": "y/1.png"}]))
    rows, notes = read_results(path, two)
    assert rows == [result(2), result(2)]
    assert notes == ["1 of 2 results have another image_id than the annotations; images are matched by file name"]


def test_numbers_are_names_if_other_ids_are(tmp_path):
    names = np.array([b"007.png", b"b.png", b"1.png"])
    three = IMAGE._replace(image_ids=np.array([1, 2, 3]), file_names=names, starts=np.zeros(4))
    path = tmp_path / "r.json"
    path.write_text(json.dumps([result(7), result("b"), result(1)]))
    assert [row["image_id"] for row in read_results(path, three).rows] == [1, 2, 3]
    path.write_text(json.dumps([result(1) | {"file_name": "b.png"}, result(1)]))
    assert [row["image_id"] for row in read_results(path, three).rows] == [2, 1], "no id is a name"
    path.write_text(json.dumps([result("1"), result("2"), result("3")]))
    assert [row["image_id"] for row in read_results(path, three).rows] == [1, 2, 3], "all are ids, although 1 is a name"


@pytest.mark.parametrize(
    "rows",
    [
        [result(1) | {"file_name": "a.png"}],  # of two images
        [result(1) | {"file_name": "nope.png"}, result(2)],
        [result("x/a"), result(2)],  # 2 is not a name
        [result("9" * 5000)],
    ],
)
def test_an_unknown_or_ambiguous_name_is_refused_even_if_the_id_is_known(tmp_path, rows):
    two = IMAGE._replace(image_ids=np.array([1, 2]), file_names=np.array([b"x/a.png", b"y/a.png"]), starts=np.zeros(3))
    path = tmp_path / "r.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"of 1 image \(image_id"):
        read_results(path, two)


@pytest.mark.parametrize(
    ("ids", "fix"),
    [
        ((0, 1, 2), "lower by one than those of the annotations; add 1 to all"),
        ((2, 3, 4), "higher by one than those of the annotations; subtract 1 from all"),
        ((0, 1, 4), "give the data and --split"),
    ],
)
def test_category_ids_that_are_off_by_one_are_recognized(tmp_path, ids, fix):
    three = IMAGE._replace(categories=[Category(1, "a"), Category(2, "b"), Category(3, "c")])
    path = tmp_path / "r.json"
    path.write_text(json.dumps([result(category_id=category_id) for category_id in ids]))
    with pytest.raises(DataError) as caught:
        read_results(path, three)
    assert fix in caught.value.fix


def test_a_file_name_shared_by_two_images_is_refused(tmp_path):
    two = IMAGE._replace(image_ids=np.array([1, 2]), file_names=np.array([b"x/a.png", b"y/a.png"]), starts=np.zeros(3))
    path = tmp_path / "r.json"
    path.write_text(json.dumps([result("y/a"), result("x/a.png")]))
    assert [row["image_id"] for row in read_results(path, two).rows] == [2, 1]
    path.write_text(json.dumps([result("a")]))
    with pytest.raises(DataError, match=r"of 1 image \(image_id a\) that"):
        read_results(path, two)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 1, "categ', "not valid JSON"),
        ("", "not valid JSON"),
        ({"annotations": []}, 'its top level is {"annotations": []}, not a list'),
        ([5], "in result 0 (counted from 0), the entry is 5, not an object"),
        ([result(), result(1.5)], "1 of 2 results are invalid; in result 1 (counted from 0), `image_id` is 1.5"),
        ([result("b")], "1 of 1 results are of 1 image (image_id b) that"),
        ([result("01")], "1 of 1 results are of 1 image (image_id 01) that"),
        ([result(1, "1")], '`category_id` is "1", not a whole number'),
        ([{"file": "a.png", "detections": []}], "written by `dino predict`, which leaves out detections of low scores"),
        ([result(1, True)], "`category_id` is true, not a whole number"),
        ([result(box=[1, 2, 3])], "`bbox` is [1, 2, 3], not four numbers"),
        ([result(box=[1, 2, 3, None])], "`bbox` is [1, 2, 3, null], not four numbers"),
        ([result(score="0.5")], '`score` is "0.5", not a number'),
        ([{"image_id": 1.0, "score": 1}], "it lacks `category_id`, `bbox`"),
        ([result(1.0, score=float("nan"))], "1 of 1 results have a box or score that is not finite"),
    ],
)
def test_an_invalid_results_file_is_reported_with_its_first_fault(read, content, message):
    with pytest.raises(DataError) as caught:
        read(content)
    assert caught.value.code == "DATA-RESULTS" and caught.value.where.endswith("r.json")
    assert message in str(caught.value)
