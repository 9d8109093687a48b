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


def test_ids_may_be_written_as_pandas_writes_them(read):
    (row,) = read([result(1.0, 1.0, (1, 2, 3, 4), 1)])
    assert row == result(score=1.0) and type(row["image_id"]) is type(row["category_id"]) is int
    assert read([result(1e0), result()]) == [result(), result()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 1, "categ', "not valid JSON"),
        ("", "not valid JSON"),
        ({"annotations": []}, 'its top level is {"annotations": []}, not a list'),
        ([5], "in result 0 (counted from 0), the entry is 5, not an object"),
        ([result(), result(1.5)], "1 of 2 results are invalid; in result 1 (counted from 0), `image_id` is 1.5"),
        ([result("1")], '`image_id` is "1", not a whole number'),
        ([result(1, True)], "`category_id` is true, not a whole number"),
        ([result(box=[1, 2, 3])], "`bbox` is [1, 2, 3], not four numbers"),
        ([result(box=[1, 2, 3, None])], "`bbox` is [1, 2, 3, null], not four numbers"),
        ([result(score="0.5")], '`score` is "0.5", not a number'),
        ([{"image_id": 1.0, "score": 1}], "it lacks `category_id`, `bbox`"),
        ([result(1.0, score=float("nan"))], "1 of 1 results have a box or score that is not finite"),
    ],
)
def test_a_file_that_cannot_be_evaluated_is_named_with_its_first_fault(read, content, message):
    with pytest.raises(DataError) as caught:
        read(content)
    assert caught.value.code == "DATA-RESULTS" and caught.value.where.endswith("r.json")
    assert message in str(caught.value)
