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


def make_annotations(owners, labels, boxes, crowd=None, images=3, num_classes=3):
    """Annotations with descending ids; by default, images 10, 9, 8 and classes 5, 4, 3."""
    order = np.argsort(owners, kind="stable")
    owners, labels = np.asarray(owners, int)[order], np.asarray(labels, int)[order]
    boxes = np.asarray(boxes, float).reshape(-1, 4)[order]
    crowd = np.zeros(len(owners), bool) if crowd is None else np.asarray(crowd, bool)[order]
    return Annotations(
        file=Path("annotations.json"), image_root=Path("."),
        categories=[Category(num_classes + 2 - k, f"class {k}") for k in range(num_classes)],
        image_ids=np.arange(images)[::-1] + 8, file_names=np.array([b"a.png"] * images),
        sizes=np.full((images, 2), 640), starts=np.searchsorted(owners, np.arange(images + 1)),
        boxes=boxes, labels=labels, area=boxes[:, 2] * boxes[:, 3], crowd=crowd, notes=[],
    )  # fmt: skip


def row(annotations, image, label, box, score):
    return {"image_id": int(annotations.image_ids[image]), "category_id": annotations.categories[label].id,
            "bbox": list(map(float, box)), "score": float(score)}  # fmt: skip


def random_data(seed, crowds=0.1, images=6, ties=False, dets=60):
    """Random objects, and detections that are right, loose, of another class, duplicated or elsewhere."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 40))
    boxes = np.concatenate([random.uniform(0, 300, (count, 2)), random.uniform(5, 200, (count, 2))], 1).round(1)
    labels = np.append(np.arange(3), random.integers(0, 3, count))[:count]
    annotations = make_annotations(
        random.integers(0, images - 1, count), labels, boxes, random.random(count) < crowds, images
    )
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
def test_ap_and_ar_equal_those_of_pycocotools_exactly(seed, crowds, ties, dets):
    annotations, results = random_data(seed, crowds, ties=ties, dets=dets)
    expected = coco_metrics(annotations, results, "pycocotools")
    analysis = analyse(annotations, results, times=0)
    assert analysis.summary == expected.summary
    assert np.array_equal(
        analysis.averages.precision, run_backend(annotations, results, "pycocotools").precision[..., -1]
    )
    classes = {entry.name: {"AP": entry.averages["AP"], "AP50": entry.averages["AP50"]} for entry in analysis.classes}
    assert classes == expected.classes


def test_the_101st_detection_of_a_class_is_ignored_as_in_coco():
    annotations = make_annotations([0], [0], [[10, 10, 50, 50]])
    wrong = [row(annotations, 0, 0, [300, 300, 9, 9], 0.9 - n / 1000) for n in range(100)]
    results = [*wrong, row(annotations, 0, 0, [10, 10, 50, 50], 0.1)]
    assert analyse(annotations, results, 0).summary["AP"] == 0
    assert (
        analyse(annotations, results[1:], 0).summary["AP"] == coco_metrics(annotations, results[1:]).summary["AP"] > 0
    )


def test_a_crowd_matches_any_number_of_detections():
    annotations = make_annotations([0, 0], [0, 0], [[10, 10, 50, 50], [200, 200, 99, 99]], crowd=[0, 1])
    on_crowd = [row(annotations, 0, 0, [210, 210, 20, 20 + n], 0.9 - n / 100) for n in range(3)]
    assert analyse(annotations, [*on_crowd, row(annotations, 0, 0, [10, 10, 50, 50], 0.1)], 0).summary[
        "AP"
    ] == pytest.approx(1)


def test_evaluating_without_annotations_is_not_an_error():
    annotations = make_annotations([], [], [])
    for results in ([], [row(annotations, 0, 0, [1, 1, 5, 5], 0.5)]):
        data = to_json(analyse(annotations, results, 10))
        assert data["AP"] == -1 and data["best"] is None and data["lrp"]["error"] is None
        json.dumps(data, allow_nan=False)


# TIDE ----------------------------------------------------------------------------------------------------------------


def tidecv_results(annotations, results):
    tidecv = pytest.importorskip("tidecv")
    truth, detections = tidecv.Data("truth", max_dets=10**6), tidecv.Data("found", max_dets=10**6)
    for i in annotations.image_ids.tolist():
        truth.add_image(i, str(i))
    owners = annotations.image_ids[annotations.owners()]
    for n, label in enumerate(annotations.labels):
        add = truth.add_ignore_region if annotations.crowd[n] else truth.add_ground_truth
        add(int(owners[n]), annotations.categories[label].id, annotations.boxes[n].tolist())
    for result in results:
        detections.add_detection(result["image_id"], result["category_id"], result["score"], result["bbox"])
    run = tidecv.TIDE().evaluate(truth, detections, mode=tidecv.TIDE.BOX)
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
    annotations, results = random_data(seed, crowds=0.1 if seed % 2 else 0)
    objects = {annotations.categories[k].id for k in annotations.labels[~annotations.crowd]}
    results = [result for result in results if result["category_id"] in objects]
    ap, gain, count = tidecv_results(annotations, results)
    ours = tide(match(annotations, results))
    assert 100 * ours.ap50 == pytest.approx(ap, abs=1e-6)
    assert {name: 100 * value for name, value in ours.gain.items()} == pytest.approx(gain, abs=1e-6)
    assert {name: ours.count[name] for name in count} == count


def test_errors_are_classified_by_their_type():
    annotations = make_annotations([0, 0, 1], [0, 1, 0], [[0, 0, 100, 100], [200, 0, 100, 100], [0, 0, 50, 50]])
    cases = {
        "Loc": (0, 0, [0, 0, 100, 30]), "Cls": (0, 0, [200, 0, 100, 100]), "Both": (0, 0, [200, 0, 100, 30]),
        "Bkg": (0, 0, [500, 500, 9, 9]),
    }  # fmt: skip
    for name, (image, label, box) in cases.items():
        count = tide(match(annotations, [row(annotations, image, label, box, 0.9)])).count
        assert [key for key in ("Cls", "Loc", "Both", "Dupe", "Bkg") if count[key]] == [name]
        assert count["Miss"] == (2 if name in ("Loc", "Cls") else 3)
    duplicates = [row(annotations, 0, 0, [0, 0, 100, 100], score) for score in (0.9, 0.8)]
    assert tide(match(annotations, duplicates)).count["Dupe"] == 1


def test_error_types_include_detections_on_crowds_and_fp_excludes_them(tmp_path):
    annotations = make_annotations([0, 0], [0, 1], [[0, 0, 300, 300], [400, 0, 50, 50]], crowd=[True, False])
    results = [row(annotations, 0, 0, [10 * k, 0, 50, 50], 0.9) for k in range(3)]
    results += [row(annotations, 0, 0, [500, 500, 9, 9], 0.9), row(annotations, 0, 1, [400, 0, 50, 50], 0.9)]
    Image.new("RGB", (640, 640), "grey").save(tmp_path / "a.png")
    annotations = annotations._replace(image_root=tmp_path)
    analysis = analyse(annotations, results, times=0)
    assert (analysis.tide.count["Bkg"], analysis.tide.count["FP"]) == (4, 1)
    text = parts(evaluation_page(analysis, annotations, {}, DataConfig()), Table)["Where AP50 is lost"].text
    assert text.endswith("FP excludes the 3 detections on crowds, which the kinds of error include.")
    without_crowds = analyse(annotations._replace(crowd=np.array([False, False])), results, times=0)
    page = evaluation_page(without_crowds, annotations, {}, DataConfig())
    assert "crowd" not in parts(page, Table)["Where AP50 is lost"].text


# LRP, F1, calibration, confusion -------------------------------------------------------------------------------------


def slow_matches(annotations, results, label, min_score):
    """(IoUs of right detections, number of wrong ones, number of objects), with loops and without crowds."""
    right, wrong = [], 0
    for image, image_id in enumerate(annotations.image_ids):
        rows = annotations.objects(image)
        objects = [b for b, k in zip(annotations.boxes[rows], annotations.labels[rows], strict=True) if k == label]
        detections = [r for r in results if r["image_id"] == image_id and r["score"] >= min_score
                      and r["category_id"] == annotations.categories[label].id]  # fmt: skip
        for detection in sorted(detections, key=lambda r: -r["score"]):
            ious = [slow_iou(detection["bbox"], box) for box in objects]
            if ious and max(ious) >= 0.5:
                right.append(max(ious))
                objects.pop(ious.index(max(ious)))
            else:
                wrong += 1
    return right, wrong, int((annotations.labels == label).sum())


def slow_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    return intersection / (a[2] * a[3] + b[2] * b[3] - intersection)


@pytest.mark.parametrize("seed", range(4))
def test_lrp_and_f1_equal_their_definitions(seed):
    annotations, results = random_data(seed, crowds=0, ties=seed % 2 == 0)
    for label in range(3):
        k = 2 - label  # classes are sorted by id
        candidates = []
        for min_score in [*sorted({r["score"] for r in results}), 2.0]:
            right, wrong, objects = slow_matches(annotations, results, label, min_score)
            missed = objects - len(right)
            error = (sum((1 - iou) / (1 - 0.5) for iou in right) + wrong + missed) / (len(right) + wrong + missed or 1)
            candidates.append((error, 2 * len(right) / max(2 * len(right) + wrong + missed, 1), right, wrong, missed))
        counts = tally(match(annotations, results), k)
        if not counts.objects:
            continue
        ours, lowest = optimal_lrp(counts), min(candidates, key=lambda candidate: candidate[0])
        assert ours.error == pytest.approx(lowest[0])
        if lowest[2]:
            assert ours.localisation == pytest.approx(1 - np.mean(lowest[2]))
            assert ours.false_positives == pytest.approx(lowest[3] / (len(lowest[2]) + lowest[3]))
        assert ours.false_negatives == pytest.approx(lowest[4] / counts.objects)
        chosen = best(counts)
        assert (chosen.f1 if chosen else 0) == pytest.approx(max(candidate[1] for candidate in candidates))


def test_scores_equal_to_their_precision_have_no_calibration_error():
    owners = np.arange(100)
    annotations = make_annotations(owners, np.zeros(100, int), np.tile([0, 0, 10, 10], (100, 1)), images=100)
    calibrated = [row(annotations, n, 0, [0 if n < 70 else 300, 0, 10, 10], 0.7) for n in range(100)]
    assert calibration(match(annotations, calibrated)).ece == pytest.approx(0, abs=1e-12)
    overconfident = [detection | {"score": 1.0} for detection in calibrated]
    result = calibration(match(annotations, overconfident))
    assert result.ece == pytest.approx(0.3) and result.count.tolist() == [0] * 9 + [100]


def test_confusion_counts_each_object_and_detection_once():
    boxes = [[0, 0, 50, 50], [100, 0, 50, 50], [0, 0, 50, 50], [0, 200, 90, 90]]
    annotations = make_annotations([0, 0, 1, 1], [0, 1, 2, 2], boxes, crowd=[0, 0, 0, 1])
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


def test_a_bootstrap_sample_has_the_ap_of_a_dataset_with_repeated_images():
    annotations, results = random_data(5, crowds=0.2)
    samples = resample(match(annotations, results), 4, seed=3)
    random = np.random.default_rng(3)
    positions = {int(image_id): i for i, image_id in enumerate(np.sort(annotations.image_ids))}
    for n in range(4):
        sample = random.integers(0, 6, 6)
        assert samples.means("AP")[n] == pytest.approx(
            repeated_ap(annotations, results, sorted(sample), positions), abs=1e-9
        )


def repeated_ap(annotations, results, sample, positions):
    """pycocotools' AP of a data set in which an image appears as often as it was drawn."""
    owners = np.array([positions[int(i)] for i in annotations.image_ids])[annotations.owners()]
    rows = [(new, m) for new, image in enumerate(sample) for m in np.flatnonzero(owners == image)]
    chosen = [m for _, m in rows]
    copy = make_annotations([new for new, _ in rows], annotations.labels[chosen], annotations.boxes[chosen],
                            annotations.crowd[chosen], images=len(sample))  # fmt: skip
    copy = copy._replace(image_ids=np.arange(len(sample)))
    detections = [result | {"image_id": new} for new, image in enumerate(sample) for result in results
                  if positions[result["image_id"]] == image]  # fmt: skip
    return coco_metrics(copy, detections, "pycocotools").summary["AP"]


def test_the_interval_of_a_fraction_is_binomial():
    """One object per image, 60 % of them found: with 400 images, 1.96 standard errors are 0.0480."""
    annotations = make_annotations(np.arange(400), np.zeros(400, int), np.tile([0, 0, 10, 10], (400, 1)), images=400)
    results = [row(annotations, n, 0, [0, 0, 10, 10], 0.9) for n in range(240)]
    low, high = analyse(annotations, results, 1000).interval("AR100")
    assert (low, high) == pytest.approx((0.552, 0.648), abs=0.006)


def test_a_consistent_improvement_is_significant_and_no_change_is_not():
    annotations = make_annotations(np.arange(60), np.zeros(60, int), np.tile([0, 0, 10, 10], (60, 1)), images=60)
    half = analyse(annotations, [row(annotations, n, 0, [0, 0, 10, 10], 0.9) for n in range(30)], 200)
    more = analyse(annotations, [row(annotations, n, 0, [0, 0, 10, 10], 0.9) for n in range(45)], 200)
    change = compare(half, more).summary["AR100"]
    assert change.change == pytest.approx(0.25) and 0.1 < change.interval.low < 0.25 < change.interval.high < 0.4
    same = compare(half, half).summary["AP"]
    assert (same.change, *same.interval) == (0, 0, 0)
    other = analyse(make_annotations([0], [0], [[0, 0, 10, 10]], images=60), [], 0)
    with pytest.raises(DataError, match="different annotations"):
        compare(half, other)


def test_the_worst_images_have_the_most_errors():
    annotations = make_annotations(
        [0, 1, 1, 2], [0, 0, 0, 0], [[0, 0, 9, 9], [0, 0, 9, 9], [50, 0, 9, 9], [0, 0, 9, 9]]
    )
    results = [row(annotations, 0, 0, [0, 0, 9, 9], 0.9), row(annotations, 2, 0, [90, 90, 9, 9], 0.9)]
    worst = analyse(annotations, results, 0).worst
    assert [tuple(entry) for entry in worst] == [
        (8, 0, 1, 1),
        (9, 0, 0, 2),
    ]  # a tie, sorted by id; image 10 has no error


# the page ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def analysis_and_page(tmp_path):
    annotations, results = random_data(1)
    Image.new("RGB", (640, 640), "grey").save(tmp_path / "a.png")
    annotations = annotations._replace(image_root=tmp_path)
    analysis = analyse(annotations, results, 20)
    return analysis, evaluation_page(analysis, annotations, {"weights": "<script>"}, DataConfig())


def parts(page, kind):
    return {part.title: part for section in page.sections for part in section.parts if isinstance(part, kind)}


def test_numbers_of_the_page_equal_those_of_the_json(analysis_and_page):
    analysis, page = analysis_and_page
    data, tables = to_json(analysis), parts(page, Table)
    for name, value, *limits in tables["The 12 metrics"].rows:
        assert value == (data[name] if data[name] >= 0 else None)
        assert limits == (data["intervals"].get(name) or [None, None])
    for name, objects, _, ap, *_ in tables["By class"].rows:
        assert (objects, ap) == (data["classes"][name]["objects"], data["classes"][name]["AP"])
    assert {row[0]: row[3] for row in tables["Where AP50 is lost"].rows} == data["tide"]["gain"]
    assert parts(page, Matrix)["Confusion"].values == data["confusion"]["counts"]


def test_the_page_starts_with_counts_and_good_and_bad_examples(analysis_and_page):
    analysis, page = analysis_and_page
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
    for image in (*good, *bad):
        kinds = [mark.kind for mark in image.marks if (mark.score or 1) >= analysis.threshold]
        below_threshold = [mark for mark in image.marks if mark.kind == "truth" and mark.score < analysis.threshold]
        errors[id(image)] = kinds.count("wrong") + kinds.count("missed") + len(below_threshold)
    assert max(errors[id(example)] for example in good) <= min(errors[id(example)] for example in bad)
    assert re.search(r'<p class="headline">Finds .*?</p>\s*<main>', render_page(page))


@pytest.mark.parametrize("num_classes", [50, 300, pytest.param(1203, marks=pytest.mark.slow)])
def test_with_many_classes_the_page_shows_the_worst_and_files_contain_all(tmp_path, num_classes):
    random = np.random.default_rng(0)
    num_objects = 4 * num_classes
    boxes = np.concatenate([random.uniform(0, 500, (num_objects, 2)), random.uniform(20, 90, (num_objects, 2))], 1)
    labels = np.arange(num_objects) % num_classes
    annotations = Annotations(
        file=tmp_path / "annotations.json", image_root=tmp_path, image_ids=np.arange(40), notes=[],
        categories=[Category(k, f"kind {k}") for k in range(num_classes)], file_names=np.array([b"a.png"] * 40),
        sizes=np.full((40, 2), 640), starts=np.linspace(0, num_objects, 41).astype(int), boxes=boxes, labels=labels,
        area=boxes[:, 2] * boxes[:, 3], crowd=np.zeros(num_objects, bool),
    )  # fmt: skip
    predicted = np.where(random.random(num_objects) < 0.3, random.integers(0, num_classes, num_objects), labels)
    predicted[labels == num_classes - 1] = num_classes - 2  # the last class is always predicted as the one before it
    results = [
        {"image_id": int(owner), "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
        for owner, label, box, score in zip(
            annotations.owners(), predicted, boxes, random.uniform(0.5, 1, num_objects), strict=True
        )
    ]
    analysis = analyse(annotations, results, 0)
    page = evaluation_page(analysis, annotations, {}, DataConfig())
    written = write_page(tmp_path / "report.html", page)
    assert (tmp_path / "report.html").stat().st_size < (5_000_000 if num_classes > 1000 else 1_000_000)
    by_class, pairs, matrix = (
        parts(page, Table)["By class"],
        parts(page, Table)["Confusion: all pairs"],
        parts(page, Matrix),
    )
    assert [row[2] for row in by_class.rows] == sorted((row[2] for row in by_class.rows), reverse=True)
    assert pairs.rows[0] == [f"kind {num_classes - 1}", f"kind {num_classes - 2}", 4]
    names = matrix["Confusion"].rows
    assert len(names) == 41 and names[-1] == "background" and f"kind {num_classes - 1}" in names
    counts = analysis.confusion
    assert sum(row[2] for row in pairs.rows) == counts.sum() - counts.diagonal().sum()
    files = {path.name: path.read_text().splitlines() for path in written[1:]}
    if num_classes < 200:
        assert "report-by-class.csv" not in files
    else:
        assert len(files["report-by-class.csv"]) == 1 + num_classes
        assert files["report-confusion-all-pairs.csv"][1] == f"kind {num_classes - 1},kind {num_classes - 2},4"
        assert (tmp_path / "report.html").read_text().count("<tr") < 1500
        assert f"The first 200 of {num_classes:,} rows; all are in report-by-class.csv." in written[0].read_text()


def test_each_object_and_detection_of_a_bad_image_has_a_box(analysis_and_page):
    analysis, page = analysis_and_page
    gallery = parts(page, Gallery)["Predictions and annotations"]
    assert gallery.threshold == analysis.threshold
    matches = analysis.matches
    for entry, image in zip(analysis.worst, gallery.images, strict=True):
        index = int(np.searchsorted(matches.image_ids, entry.image_id))
        kinds = [mark.kind for mark in image.marks if (mark.score or 1) >= analysis.threshold]
        assert (kinds.count("found"), kinds.count("wrong")) == (entry.right, entry.wrong)
        objects = (matches.objects.image == index) & ~matches.objects.crowd
        assert sum(mark.kind in ("truth", "missed") for mark in image.marks) == objects.sum()


def test_metadata_is_escaped_in_the_page(analysis_and_page):
    html = render_page(analysis_and_page[1])
    assert "<td><script>" not in html and "&lt;script&gt;" in html
