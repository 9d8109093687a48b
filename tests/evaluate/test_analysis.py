"""Every number of an analysis, compared with a reference tool or a slow implementation with loops."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data.annotations import Annotations, Category
from dinocore.errors import DataError
from dinocore.evaluate.analysis import analyse
from dinocore.evaluate.answer import to_json
from dinocore.evaluate.backends import run_backend
from dinocore.evaluate.bootstrap import resample
from dinocore.evaluate.coco import coco_metrics
from dinocore.evaluate.compare import compare
from dinocore.evaluate.curves import best, tally
from dinocore.evaluate.matches import match
from dinocore.evaluate.metrics import calibration, confusion, optimal_lrp
from dinocore.evaluate.tide import tide
from dinocore.report.evaluation import evaluation_page
from dinocore.report.page import render_page, write_page
from dinocore.report.parts import Gallery, Matrix, Table


def make(owners, labels, boxes, crowd=None, images=3, kinds=3):
    """Annotations with descending ids; by default, images 10, 9, 8 and classes 5, 4, 3."""
    order = np.argsort(owners, kind="stable")
    owners, labels = np.asarray(owners, int)[order], np.asarray(labels, int)[order]
    boxes = np.asarray(boxes, float).reshape(-1, 4)[order]
    crowd = np.zeros(len(owners), bool) if crowd is None else np.asarray(crowd, bool)[order]
    return Annotations(
        file=Path("annotations.json"), image_root=Path("."),
        categories=[Category(kinds + 2 - k, f"class {k}") for k in range(kinds)],
        image_ids=np.arange(images)[::-1] + 8, file_names=np.array([b"a.png"] * images),
        sizes=np.full((images, 2), 640), starts=np.searchsorted(owners, np.arange(images + 1)),
        boxes=boxes, labels=labels, area=boxes[:, 2] * boxes[:, 3], crowd=crowd, notes=[],
    )  # fmt: skip


def row(annotations, picture, label, box, score):
    return {"image_id": int(annotations.image_ids[picture]), "category_id": annotations.categories[label].id,
            "bbox": list(map(float, box)), "score": float(score)}  # fmt: skip


def problem(seed, crowds=0.1, images=6, ties=False, dets=60):
    """Random objects, and detections that are right, loose, of another class, duplicated or elsewhere."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 40))
    boxes = np.concatenate([random.uniform(0, 300, (count, 2)), random.uniform(5, 200, (count, 2))], 1).round(1)
    labels = np.append(np.arange(3), random.integers(0, 3, count))[:count]
    annotations = make(random.integers(0, images - 1, count), labels, boxes, random.random(count) < crowds, images)
    owners = annotations.owners()
    results = []
    for _ in range(dets):
        n = random.integers(count)
        box, label, owner = annotations.boxes[n], int(annotations.labels[n]), int(owners[n])
        if random.random() < 0.7:
            box = np.concatenate([box[:2] + random.normal(0, 0.15, 2) * box[2:], box[2:] * random.uniform(0.7, 1.4, 2)])
        if random.random() < 0.25:
            label = int(random.integers(0, 3))
        if random.random() < 0.15:
            owner, box = int(random.integers(images)), random.uniform(0, 200, 4)
        score = random.integers(0, 6) / 5 if ties else random.random()
        results.append(row(annotations, owner, label, box, score))
    return annotations, results


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 0.2, 1]), st.booleans(), st.sampled_from([0, 5, 60, 400]))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_ap_and_ar_are_those_of_pycocotools_to_the_last_bit(seed, crowds, ties, dets):
    annotations, results = problem(seed, crowds, ties=ties, dets=dets)
    judged = coco_metrics(annotations, results, "pycocotools")
    analysis = analyse(annotations, results, times=0)
    assert analysis.summary == judged.summary
    assert np.array_equal(
        analysis.averages.precision, run_backend(annotations, results, "pycocotools").precision[..., -1]
    )
    classes = {one.name: {"AP": one.averages["AP"], "AP50": one.averages["AP50"]} for one in analysis.classes}
    assert classes == judged.classes


def test_the_101st_detection_of_a_class_is_left_out_as_in_coco():
    annotations = make([0], [0], [[10, 10, 50, 50]])
    wrong = [row(annotations, 0, 0, [300, 300, 9, 9], 0.9 - n / 1000) for n in range(100)]
    results = [*wrong, row(annotations, 0, 0, [10, 10, 50, 50], 0.1)]
    assert analyse(annotations, results, 0).summary["AP"] == 0
    assert (
        analyse(annotations, results[1:], 0).summary["AP"] == coco_metrics(annotations, results[1:]).summary["AP"] > 0
    )


def test_a_crowd_takes_any_number_of_detections():
    annotations = make([0, 0], [0, 0], [[10, 10, 50, 50], [200, 200, 99, 99]], crowd=[0, 1])
    over = [row(annotations, 0, 0, [210, 210, 20, 20 + n], 0.9 - n / 100) for n in range(3)]
    assert analyse(annotations, [*over, row(annotations, 0, 0, [10, 10, 50, 50], 0.1)], 0).summary[
        "AP"
    ] == pytest.approx(1)


def test_no_annotations_to_evaluate_is_not_an_error():
    annotations = make([], [], [])
    for results in ([], [row(annotations, 0, 0, [1, 1, 5, 5], 0.5)]):
        answer = to_json(analyse(annotations, results, 10))
        assert answer["AP"] == -1 and answer["best"] is None and answer["lrp"]["error"] is None
        json.dumps(answer, allow_nan=False)


# TIDE ----------------------------------------------------------------------------------------------------------------


def tidecv_says(annotations, results):
    tidecv = pytest.importorskip("tidecv")
    truth, found = tidecv.Data("truth", max_dets=10**6), tidecv.Data("found", max_dets=10**6)
    for i in annotations.image_ids.tolist():
        truth.add_image(i, str(i))
    owners = annotations.image_ids[annotations.owners()]
    for n, label in enumerate(annotations.labels):
        add = truth.add_ignore_region if annotations.crowd[n] else truth.add_ground_truth
        add(int(owners[n]), annotations.categories[label].id, annotations.boxes[n].tolist())
    for one in results:
        found.add_detection(one["image_id"], one["category_id"], one["score"], one["bbox"])
    run = tidecv.TIDE().evaluate(truth, found, mode=tidecv.TIDE.BOX)
    gain = {error.short_name: value for error, value in run.fix_main_errors().items()}
    special = {error.short_name: value for error, value in run.fix_special_errors().items()}
    count = {error.short_name: number for error, number in run.count_errors().items()}
    return run.ap, gain | {"FP": special["FalsePos"], "FN": special["FalseNeg"]}, count


@pytest.mark.slow  # tidecv imports pandas, seaborn and OpenCV
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore")
def test_tide_errors_equal_tidecvs(seed, monkeypatch):
    """Equal to 1e-6 points of AP; the data avoids the differences listed at `tide`.

    tidecv's recalls are n / 100; pycocotools' and ours come from linspace, and differ in the last bit.
    """
    monkeypatch.setattr("dinocore.evaluate.curves.RECALLS", np.arange(101) / 100)
    annotations, results = problem(seed, crowds=0.1 if seed % 2 else 0)
    objects = {annotations.categories[k].id for k in annotations.labels[~annotations.crowd]}
    results = [one for one in results if one["category_id"] in objects]
    ap, gain, count = tidecv_says(annotations, results)
    ours = tide(match(annotations, results))
    assert 100 * ours.ap50 == pytest.approx(ap, abs=1e-6)
    assert {name: 100 * value for name, value in ours.gain.items()} == pytest.approx(gain, abs=1e-6)
    assert {name: ours.count[name] for name in count} == count


def test_each_error_is_called_by_its_name():
    annotations = make([0, 0, 1], [0, 1, 0], [[0, 0, 100, 100], [200, 0, 100, 100], [0, 0, 50, 50]])
    cases = {
        "Loc": (0, 0, [0, 0, 100, 30]), "Cls": (0, 0, [200, 0, 100, 100]), "Both": (0, 0, [200, 0, 100, 30]),
        "Bkg": (0, 0, [500, 500, 9, 9]),
    }  # fmt: skip
    for name, (picture, label, box) in cases.items():
        count = tide(match(annotations, [row(annotations, picture, label, box, 0.9)])).count
        assert [key for key in ("Cls", "Loc", "Both", "Dupe", "Bkg") if count[key]] == [name]
        assert count["Miss"] == (2 if name in ("Loc", "Cls") else 3)
    twice = [row(annotations, 0, 0, [0, 0, 100, 100], score) for score in (0.9, 0.8)]
    assert tide(match(annotations, twice)).count["Dupe"] == 1


def test_the_kinds_of_error_are_with_detections_on_crowds_and_fp_is_without(tmp_path):
    annotations = make([0, 0], [0, 1], [[0, 0, 300, 300], [400, 0, 50, 50]], crowd=[True, False])
    results = [row(annotations, 0, 0, [10 * k, 0, 50, 50], 0.9) for k in range(3)]
    results += [row(annotations, 0, 0, [500, 500, 9, 9], 0.9), row(annotations, 0, 1, [400, 0, 50, 50], 0.9)]
    Image.new("RGB", (640, 640), "grey").save(tmp_path / "a.png")
    annotations = annotations._replace(image_root=tmp_path)
    analysis = analyse(annotations, results, times=0)
    assert (analysis.tide.count["Bkg"], analysis.tide.count["FP"]) == (4, 1)
    text = parts(evaluation_page(analysis, annotations, {}, DataConfig()), Table)["Where AP50 is lost"].text
    assert text.endswith("FP excludes the 3 detections on crowds, which the kinds of error include.")
    without = analyse(annotations._replace(crowd=np.array([False, False])), results, times=0)
    page = evaluation_page(without, annotations, {}, DataConfig())
    assert "crowd" not in parts(page, Table)["Where AP50 is lost"].text


# LRP, F1, calibration, confusion -------------------------------------------------------------------------------------


def slow_matches(annotations, results, label, least):
    """(IoUs of right detections, number of wrong ones, number of objects), with loops and without crowds."""
    right, wrong = [], 0
    for picture, image_id in enumerate(annotations.image_ids):
        rows = annotations.objects(picture)
        objects = [b for b, k in zip(annotations.boxes[rows], annotations.labels[rows], strict=True) if k == label]
        mine = [r for r in results if r["image_id"] == image_id and r["score"] >= least
                and r["category_id"] == annotations.categories[label].id]  # fmt: skip
        for found in sorted(mine, key=lambda r: -r["score"]):
            ious = [slow_iou(found["bbox"], box) for box in objects]
            if ious and max(ious) >= 0.5:
                right.append(max(ious))
                objects.pop(ious.index(max(ious)))
            else:
                wrong += 1
    return right, wrong, int((annotations.labels == label).sum())


def slow_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@pytest.mark.parametrize("seed", range(4))
def test_lrp_and_f1_are_what_their_definitions_say(seed):
    annotations, results = problem(seed, crowds=0, ties=seed % 2 == 0)
    for label in range(3):
        k = 2 - label  # classes are sorted by id
        every = []
        for least in [*sorted({r["score"] for r in results}), 2.0]:
            right, wrong, objects = slow_matches(annotations, results, label, least)
            missed = objects - len(right)
            error = (sum((1 - iou) / (1 - 0.5) for iou in right) + wrong + missed) / (len(right) + wrong + missed or 1)
            every.append((error, 2 * len(right) / max(2 * len(right) + wrong + missed, 1), right, wrong, missed))
        counts = tally(match(annotations, results), k)
        if not counts.objects:
            continue
        ours, least = optimal_lrp(counts), min(every, key=lambda one: one[0])
        assert ours.error == pytest.approx(least[0])
        if least[2]:
            assert ours.localisation == pytest.approx(1 - np.mean(least[2]))
            assert ours.false_positives == pytest.approx(least[3] / (len(least[2]) + least[3]))
        assert ours.false_negatives == pytest.approx(least[4] / counts.objects)
        chosen = best(counts)
        assert (chosen.f1 if chosen else 0) == pytest.approx(max(one[1] for one in every))


def test_scores_that_are_right_as_often_as_they_say_have_no_calibration_error():
    owners = np.arange(100)
    annotations = make(owners, np.zeros(100, int), np.tile([0, 0, 10, 10], (100, 1)), images=100)
    honest = [row(annotations, n, 0, [0 if n < 70 else 300, 0, 10, 10], 0.7) for n in range(100)]
    assert calibration(match(annotations, honest)).ece == pytest.approx(0, abs=1e-12)
    sure = [one | {"score": 1.0} for one in honest]
    found = calibration(match(annotations, sure))
    assert found.ece == pytest.approx(0.3) and found.count.tolist() == [0] * 9 + [100]


def test_confusion_counts_each_object_and_detection_once():
    annotations = make([0, 0, 1, 1], [0, 1, 2, 2], [[0, 0, 50, 50], [100, 0, 50, 50], [0, 0, 50, 50], [0, 200, 90, 90]],
                       crowd=[0, 0, 0, 1])  # fmt: skip
    results = [
        row(annotations, 0, 0, [0, 0, 50, 50], 0.9), row(annotations, 0, 2, [100, 0, 50, 50], 0.8),
        row(annotations, 0, 1, [100, 0, 50, 50], 0.7), row(annotations, 1, 0, [400, 0, 50, 50], 0.9),
        row(annotations, 1, 2, [0, 200, 50, 50], 0.9), row(annotations, 1, 2, [0, 0, 50, 50], 0.2),
    ]  # fmt: skip
    matrix = confusion(match(annotations, results), 0.5)  # sorted by id: classes 2, 1, 0, background
    expected = np.zeros((4, 4), int)
    expected[2, 2] = 1  # correct
    expected[1, 0] = 1  # class 1 predicted as class 2; the later detection of class 1 has no object left
    expected[3, 1] = expected[3, 2] = 1
    expected[0, 3] = 1  # its detection is below the threshold; the detection on the crowd does not count
    assert matrix.tolist() == expected.tolist()


# intervals and comparison --------------------------------------------------------------------------------------------


def test_a_sample_gives_the_numbers_of_images_that_are_there_several_times():
    annotations, results = problem(5, crowds=0.2)
    samples = resample(match(annotations, results), 4, seed=3)
    random = np.random.default_rng(3)
    places = {int(image_id): i for i, image_id in enumerate(np.sort(annotations.image_ids))}
    for n in range(4):
        drawn = random.integers(0, 6, 6)
        assert samples.means("AP")[n] == pytest.approx(explicit(annotations, results, sorted(drawn), places), abs=1e-9)


def explicit(annotations, results, drawn, places):
    """pycocotools' AP of a data set in which an image appears as often as it was drawn."""
    owners = np.array([places[int(i)] for i in annotations.image_ids])[annotations.owners()]
    rows = [(new, m) for new, picture in enumerate(drawn) for m in np.flatnonzero(owners == picture)]
    chosen = [m for _, m in rows]
    copy = make([new for new, _ in rows], annotations.labels[chosen], annotations.boxes[chosen],
                annotations.crowd[chosen], images=len(drawn))  # fmt: skip
    copy = copy._replace(image_ids=np.arange(len(drawn)))
    found = [one | {"image_id": new} for new, picture in enumerate(drawn) for one in results
             if places[one["image_id"]] == picture]  # fmt: skip
    return coco_metrics(copy, found, "pycocotools").summary["AP"]


def test_the_interval_of_a_share_is_that_of_the_binomial():
    """One object per image, 60 % of them found: with 400 images, 1.96 standard errors are 0.0480."""
    annotations = make(np.arange(400), np.zeros(400, int), np.tile([0, 0, 10, 10], (400, 1)), images=400)
    results = [row(annotations, n, 0, [0, 0, 10, 10], 0.9) for n in range(240)]
    low, high = analyse(annotations, results, 1000).interval("AR100")
    assert (low, high) == pytest.approx((0.552, 0.648), abs=0.006)


def test_a_consistent_improvement_is_significant_and_no_change_is_not():
    annotations = make(np.arange(60), np.zeros(60, int), np.tile([0, 0, 10, 10], (60, 1)), images=60)
    half = analyse(annotations, [row(annotations, n, 0, [0, 0, 10, 10], 0.9) for n in range(30)], 200)
    more = analyse(annotations, [row(annotations, n, 0, [0, 0, 10, 10], 0.9) for n in range(45)], 200)
    change = compare(half, more).summary["AR100"]
    assert change.change == pytest.approx(0.25) and 0.1 < change.interval.low < 0.25 < change.interval.high < 0.4
    same = compare(half, half).summary["AP"]
    assert (same.change, *same.interval) == (0, 0, 0)
    other = analyse(make([0], [0], [[0, 0, 10, 10]], images=60), [], 0)
    with pytest.raises(DataError, match="different annotations"):
        compare(half, other)


def test_the_worst_images_have_the_most_errors():
    annotations = make([0, 1, 1, 2], [0, 0, 0, 0], [[0, 0, 9, 9], [0, 0, 9, 9], [50, 0, 9, 9], [0, 0, 9, 9]])
    results = [row(annotations, 0, 0, [0, 0, 9, 9], 0.9), row(annotations, 2, 0, [90, 90, 9, 9], 0.9)]
    worst = analyse(annotations, results, 0).worst
    assert [tuple(one) for one in worst] == [(8, 0, 1, 1), (9, 0, 0, 2)]  # a tie, sorted by id; image 10 has no error


# the page ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    annotations, results = problem(1)
    Image.new("RGB", (640, 640), "grey").save(tmp_path / "a.png")
    annotations = annotations._replace(image_root=tmp_path)
    analysis = analyse(annotations, results, 20)
    return analysis, evaluation_page(analysis, annotations, {"weights": "<script>"}, DataConfig())


def parts(page, kind):
    return {part.title: part for section in page.sections for part in section.parts if isinstance(part, kind)}


def test_its_numbers_are_those_of_json(made):
    analysis, page = made
    answer, tables = to_json(analysis), parts(page, Table)
    for name, value, *limits in tables["The 12 metrics"].rows:
        assert value == (answer[name] if answer[name] >= 0 else None)
        assert limits == (answer["intervals"].get(name) or [None, None])
    for name, objects, _, ap, *_ in tables["By class"].rows:
        assert (objects, ap) == (answer["classes"][name]["objects"], answer["classes"][name]["AP"])
    assert {row[0]: row[3] for row in tables["Where AP50 is lost"].rows} == answer["tide"]["gain"]
    assert parts(page, Matrix)["Confusion"].values == answer["confusion"]["counts"]


def test_it_opens_with_what_is_found_and_missed_then_good_and_bad_images(made):
    analysis, page = made
    confident = analysis.matches.detections.score >= analysis.threshold
    right = int((confident & analysis.matches.right[0, 0]).sum())
    wrong = int((confident & ~analysis.matches.right[0, 0] & ~analysis.matches.ignored[0, 0]).sum())
    total = int(analysis.matches.counts[0].sum())
    threshold = f"{analysis.threshold:.2f}"
    assert page.headline == f"Finds {right} of {total} objects at threshold {threshold}, with {wrong} false alarms."
    assert to_json(analysis)["at_threshold"] == {"objects": total, "found": right, "false_alarms": wrong}
    assert page.sections[0].title == "Examples"
    good, bad = (part.images for part in page.sections[0].parts)
    assert [len(good), len(bad)] == [2, 3], "five images have objects, and none is in both galleries"
    errors = {}
    for picture in (*good, *bad):
        kinds = [mark.kind for mark in picture.marks if (mark.score or 1) >= analysis.threshold]
        late = [mark for mark in picture.marks if mark.kind == "truth" and mark.score < analysis.threshold]
        errors[id(picture)] = kinds.count("wrong") + kinds.count("missed") + len(late)
    assert max(errors[id(one)] for one in good) <= min(errors[id(one)] for one in bad)
    assert re.search(r'<p class="headline">Finds .*?</p>\s*<main>', render_page(page))


@pytest.mark.parametrize("kinds", [50, 300, pytest.param(1203, marks=pytest.mark.slow)])
def test_many_classes_make_a_small_page_with_the_worst_of_them_and_files_with_all(tmp_path, kinds):
    random = np.random.default_rng(0)
    num = 4 * kinds
    boxes = np.concatenate([random.uniform(0, 500, (num, 2)), random.uniform(20, 90, (num, 2))], 1)
    labels = np.arange(num) % kinds
    annotations = Annotations(
        file=tmp_path / "annotations.json", image_root=tmp_path, image_ids=np.arange(40), notes=[],
        categories=[Category(k, f"kind {k}") for k in range(kinds)], file_names=np.array([b"a.png"] * 40),
        sizes=np.full((40, 2), 640), starts=np.linspace(0, num, 41).astype(int), boxes=boxes, labels=labels,
        area=boxes[:, 2] * boxes[:, 3], crowd=np.zeros(num, bool),
    )  # fmt: skip
    taken_for = np.where(random.random(num) < 0.3, random.integers(0, kinds, num), labels)
    taken_for[labels == kinds - 1] = kinds - 2  # the last class is always predicted as the one before it
    results = [
        {"image_id": int(owner), "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
        for owner, label, box, score in zip(
            annotations.owners(), taken_for, boxes, random.uniform(0.5, 1, num), strict=True
        )
    ]
    analysis = analyse(annotations, results, 0)
    page = evaluation_page(analysis, annotations, {}, DataConfig())
    written = write_page(tmp_path / "report.html", page)
    assert (tmp_path / "report.html").stat().st_size < (5_000_000 if kinds > 1000 else 1_000_000)
    by_class, pairs, matrix = (
        parts(page, Table)["By class"],
        parts(page, Table)["Confusion: all pairs"],
        parts(page, Matrix),
    )
    assert [row[2] for row in by_class.rows] == sorted((row[2] for row in by_class.rows), reverse=True)
    assert pairs.rows[0] == [f"kind {kinds - 1}", f"kind {kinds - 2}", 4]
    names = matrix["Confusion"].rows
    assert len(names) == 41 and names[-1] == "background" and f"kind {kinds - 1}" in names
    counts = analysis.confusion
    assert sum(row[2] for row in pairs.rows) == counts.sum() - counts.diagonal().sum()
    files = {path.name: path.read_text().splitlines() for path in written[1:]}
    if kinds < 200:
        assert "report-by-class.csv" not in files
    else:
        assert len(files["report-by-class.csv"]) == 1 + kinds
        assert files["report-confusion-all-pairs.csv"][1] == f"kind {kinds - 1},kind {kinds - 2},4"
        assert (tmp_path / "report.html").read_text().count("<tr") < 1500
        assert f"The first 200 of {kinds:,} rows; all are in report-by-class.csv." in written[0].read_text()


def test_each_object_and_detection_of_a_bad_image_is_a_box(made):
    analysis, page = made
    gallery = parts(page, Gallery)["Predictions and annotations"]
    assert gallery.threshold == analysis.threshold
    matches = analysis.matches
    for worst, picture in zip(analysis.worst, gallery.images, strict=True):
        here = int(np.searchsorted(matches.image_ids, worst.image_id))
        kinds = [mark.kind for mark in picture.marks if (mark.score or 1) >= analysis.threshold]
        assert (kinds.count("found"), kinds.count("wrong")) == (worst.right, worst.wrong)
        objects = (matches.objects.image == here) & ~matches.objects.crowd
        assert sum(mark.kind in ("truth", "missed") for mark in picture.marks) == objects.sum()


def test_it_renders_and_names_cannot_inject(made):
    html = render_page(made[1])
    assert "<td><script>" not in html and "&lt;script&gt;" in html
