"""Both backends compute the same metrics on any data, and print nothing."""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dinocore.data.annotations import Annotations, Category, as_coco_dict
from dinocore.errors import ConfigError, DataError, EnvironmentFault
from dinocore.evaluate import backends
from dinocore.evaluate.backends import choose_backend
from dinocore.evaluate.coco import coco_metrics
from dinocore.presets import load_config
from dinocore.system.extras import install_line

BOX = [10.0, 10.0, 50.0, 50.0]
HUGE = 2**53 + 1  # not representable in float64


@pytest.fixture(autouse=True)
def no_output(capfd):
    """Check that neither Python nor native code prints anything."""
    yield
    assert capfd.readouterr() == ("", "")


def make_annotations(objects, image_ids=(1,), category_ids=(1,)):
    """Annotations of objects (image id, class index or -1, box, area, crowd)."""
    rows = sorted(objects, key=lambda row: list(image_ids).index(row[0]))
    counts = [sum(row[0] == i for row in rows) for i in image_ids]
    return Annotations(
        file=Path("annotations.json"),
        image_root=Path("."),
        categories=[Category(i, f"class {i}") for i in category_ids],
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=np.array([b"a.png"] * len(image_ids)),
        sizes=np.full((len(image_ids), 2), 640, dtype=np.int64),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        area=np.array([row[3] for row in rows], dtype=np.float64),
        crowd=np.array([row[4] for row in rows], dtype=bool),
        notes=[],
    )


def result(image_id=1, category_id=1, box=BOX, score=0.5):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def evaluate_both(annotations, results):
    """The metrics of both backends, after a check that neither fell back to the other."""
    slow, fast = (coco_metrics(annotations, results, name) for name in ("pycocotools", "hotcoco"))
    assert (slow.backend, fast.backend) == ("pycocotools", "hotcoco")
    return slow, fast


def assert_equal(annotations, results):
    slow, fast = evaluate_both(annotations, results)
    assert slow._replace(backend="") == fast._replace(backend="")  # equal to the last bit
    assert list(slow.summary) == list(fast.summary) and list(slow.classes) == list(fast.classes)
    numbers = [*fast.summary.values(), *(n for c in fast.classes.values() for n in c.values())]
    assert all(n == -1 or 0 <= n <= 1 for n in numbers)  # never NaN


@st.composite
def random_cases(draw):
    """Random annotations and results, with so few positions and scores that boxes coincide and scores tie."""
    seeds = st.integers(0, 2**32 - 1)
    random = np.random.default_rng(draw(seeds))
    image_ids = draw(st.lists(st.sampled_from([0, 1, 5, 9, 400, 2**40, HUGE, HUGE + 1]), min_size=1, unique=True))
    category_ids = draw(st.lists(st.sampled_from([0, 1, 3, 90, HUGE]), min_size=1, max_size=4, unique=True))
    grid, scores = draw(st.sampled_from([0.7, 4, 16, 50])), draw(st.sampled_from([1, 3, 1000]))
    crowds, copies = draw(st.sampled_from([0, 0.2, 1])), draw(st.sampled_from([0, 0.6]))

    def box():
        return (grid * np.concatenate([random.integers(0, 8, 2), random.integers(0, 10, 2)])).tolist()

    objects = []
    for _ in range(draw(st.integers(0, 30))):
        bbox, kind = box(), int(random.integers(-1, len(category_ids)))
        area = float(random.choice([bbox[2] * bbox[3], 32**2, 96**2, 96**2 - 0.1, 0]))
        objects.append((int(random.choice(image_ids)), kind, bbox, area, bool(random.random() < crowds)))
    results = []
    for _ in range(draw(st.sampled_from([0, 1, 20, 300]))):
        owner, kind, bbox = int(random.choice(image_ids)), int(random.choice(category_ids)), box()
        if objects and random.random() < copies:
            owner, label, bbox, *_ = objects[random.integers(len(objects))]
            kind = category_ids[label]
        results.append(result(owner, kind, bbox, float(random.integers(0, scores + 1) / scores)))
    return make_annotations(objects, image_ids, category_ids), results


@pytest.mark.slow
@given(random_cases())
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_both_backends_agree_on_random_data(case):
    assert_equal(*case)


GOOD = (1, 0, BOX, 2500, False)
CASES = {
    "no result": ([GOOD], []),
    "no object": ([], [result()]),
    "neither": ([], []),
    "only crowds": ([(1, 0, BOX, 2500, True)], [result(), result(score=0.4)]),
    "more than 100 on one object": ([GOOD], [result(score=n / 200) for n in range(150)]),
    "101st is correct": ([GOOD], [result(box=[300, 300, 9, 9])] * 100 + [result()]),
    "ties keep their order": ([GOOD], [result(box=[300, 300, 9, 9]), result(), result(box=[10, 10, 50, 45])]),
    "no area": ([(1, 0, [5, 5, 0, 0], 0, False)], [result(box=[5, 5, 0, 0]), result(box=[9, 9, -4, -4])]),
    "huge": ([(1, 0, [0, 0, 1e6, 1e6], 1e12, False)], [result(box=[0, 0, 1e6, 1e6])]),
    "0 and -0": ([GOOD], [result(box=[300, 300, 9, 9], score=-0.0), result(score=0.0)]),
    "integers": ([GOOD], [result(box=[10, 10, 50, 50], score=1)]),
    "unknown class of an object": ([GOOD, (1, -1, BOX, 2500, False)], [result()]),
    "unknown class of a result": ([GOOD], [result(category_id=7), result(score=0.1)]),
}


@pytest.mark.parametrize("case", CASES)
def test_both_backends_agree_on_edge_cases(case):
    objects, results = CASES[case]
    assert_equal(make_annotations(objects), results)


def test_both_backends_agree_without_images_or_classes():
    assert_equal(make_annotations([], ()), [])
    assert_equal(make_annotations([], (1,), ()), [])


@given(random_cases())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_metrics_equal_those_of_cocoeval(case):
    annotations, results = case
    results = results or [result(annotations.image_ids[0], annotations.categories[0].id)]  # not an empty list
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = as_coco_dict(annotations)
        truth.createIndex()
        detections = truth.loadRes([dict(row) for row in results])
        run = COCOeval(truth, detections, "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    assert list(coco_metrics(annotations, results, "hotcoco").summary.values()) == run.stats.tolist()


@pytest.mark.parametrize("fault", ["last of ties first", "crowds are objects", "one detection too few"])
def test_a_wrong_backend_gives_different_metrics(monkeypatch, fault):
    original = backends.BACKENDS["hotcoco"]

    def wrong(annotations, results):
        if fault == "last of ties first":
            return original(annotations, results[::-1])
        if fault == "crowds are objects":
            return original(annotations._replace(crowd=np.zeros_like(annotations.crowd)), results)
        return original(annotations, results[:-1])

    monkeypatch.setitem(backends.BACKENDS, "hotcoco", wrong)
    objects = [GOOD, (1, 0, [200, 200, 90, 90], 8100, True)]
    slow, fast = evaluate_both(make_annotations(objects), [result(box=[300, 300, 9, 9]), result()])
    assert slow.summary != fast.summary


def test_results_are_not_modified():
    results = [result(), result(score=0.1)]
    evaluate_both(make_annotations([GOOD]), results)
    assert results == [result(), result(score=0.1)]


@pytest.mark.parametrize("image_id, score", [(-5, 0.5), (1, float("nan"))])
def test_input_that_hotcoco_refuses_is_evaluated_by_pycocotools(image_id, score):
    annotations = make_annotations([(image_id, 0, BOX, 2500, False)], (image_id,))
    assert coco_metrics(annotations, [result(image_id, score=score)], "hotcoco").backend == "pycocotools"


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_results_of_another_data_set_are_refused(backend):
    with pytest.raises(DataError, match=r"annotations\.json doesn't have, such as 8"):
        coco_metrics(make_annotations([GOOD]), [result(image_id=8)], backend)


def test_without_hotcoco_auto_uses_pycocotools_and_requesting_it_gives_the_install_command(monkeypatch):
    assert choose_backend("auto") == "hotcoco"
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert choose_backend("auto") == choose_backend("pycocotools") == "pycocotools"
    assert coco_metrics(make_annotations([GOOD]), [result()]).backend == "pycocotools"
    with pytest.raises(EnvironmentFault) as caught:
        coco_metrics(make_annotations([GOOD]), [result()], "hotcoco")
    assert install_line("fast") in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


def test_the_backend_setting_has_three_values():
    assert load_config("tiny").eval.backend == "auto"
    assert load_config("tiny", ["eval.backend=pycocotools"]).eval.backend == "pycocotools"
    with pytest.raises(ConfigError, match=r"eval\.backend"):
        load_config("tiny", ["eval.backend=faster"])
    with pytest.raises(ConfigError, match="auto, pycocotools or hotcoco"):
        choose_backend("faster")
