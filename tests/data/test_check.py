"""Findings of `dino check-data`, its repaired copy of the annotations, and its report."""

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dinocore.config import Config
from dinocore.data.annotations import as_coco_dict, read_annotations
from dinocore.data.check import scan as images
from dinocore.data.check.check import Checked, check_data
from dinocore.data.check.contents import overlaps
from dinocore.data.check.fitness import anchor_distance
from dinocore.data.check.repair import Repair, likely_root
from dinocore.data.formats.layout import find_layout
from dinocore.data.split import Split
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.errors import DataError, EnvironmentFault
from dinocore.presets import load_config
from dinocore.report.data import data_page
from dinocore.report.page import MAX_BYTES, render_page

TINY = load_config("tiny")


def check(folder: Path, decode: bool = True, config: Config = TINY) -> Checked:
    *_, checked = check_data(folder, config, decode)
    assert isinstance(checked, Checked)
    return checked


def codes(checked: Checked) -> dict[str, int]:
    return {finding.code: finding.count for _, finding in checked.findings()}


def noise(seed: int, size=(64, 48)) -> Image.Image:
    """Smooth random colours, different for every seed."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def clean(make_coco, tmp_path):
    """Two splits without faults, each with three images of ten objects."""
    for n, name in enumerate(("train", "val")):
        objects = {10 * n + i: [(1 + (i + k) % 2, 4 * k, 20, 20, 9 + k) for k in range(10)] for i in range(1, 4)}
        make_coco(objects, name=name)
        for i in objects:
            noise(i).save(tmp_path / f"{name}2017" / f"{i:04d}.png")
    return tmp_path


def edit(folder: Path, change, name="train") -> None:
    file = folder / "annotations" / f"instances_{name}2017.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_a_clean_dataset_has_no_findings_and_correct_statistics(clean):
    checked = check(clean)
    assert codes(checked) == {}
    stats = checked.splits["train"].numbers
    assert (stats["images"], stats["objects"], stats["empty_images"], stats["crowds"]) == (3, 30, 0, 0)
    assert stats["classes"] == {"disc": {"id": 1, "objects": 15, "images": 3},
                                  "ring": {"id": 2, "objects": 15, "images": 3}}  # fmt: skip
    assert stats["objects_per_image"]["max"] == 10 and stats["shares"] == {"small": 1, "medium": 0, "large": 0}
    assert stats["object_aspect"]["max"] == pytest.approx(20 / 9, abs=1e-3)
    json.dumps(checked.as_dict(), allow_nan=False)


PLURAL_OF_ONE = re.compile(r"\b1 (\w+ )?(images|pairs|boxes|objects|regions)\b|\b1 of \d+ boxes (reach|have|lie|fit)\b")


def update_first(table: str, **values):
    """A function that updates the first row of a table."""
    return lambda document: document[table][0].update(values)


@pytest.mark.parametrize(
    ("code", "level", "change"),
    [
        ("DATA-ENTRY", "error", update_first("annotations", bbox=None)),
        ("DATA-KEYS", "error", lambda d: d.pop("images")),
        ("DATA-FILLED", "note", lambda d: d["annotations"][0].pop("area")),
        ("DATA-ID-TWICE", "error", update_first("annotations", id=2)),
        ("DATA-ID-TWICE", "error", lambda d: d["categories"].append(d["categories"][0])),
        ("DATA-IMAGE-TWICE", "warning", lambda d: d["images"].append(d["images"][0] | {"id": 99})),
        ("DATA-ORPHAN", "error", update_first("annotations", image_id=404)),
        ("DATA-ID", "error", update_first("images", id="1")),
        ("DATA-BOX", "error", update_first("annotations", bbox=[1, 2, 3])),
        ("DATA-BOX-NAN", "error", update_first("annotations", bbox=[1, 2, 3, float("nan")])),
        ("DATA-BOX-FLAT", "warning", update_first("annotations", bbox=[1, 2, 0, 5])),
        ("DATA-BOX-PARTLY", "note", update_first("annotations", bbox=[-3, 2, 9, 5])),
        ("DATA-BOX-OUTSIDE", "warning", update_first("annotations", bbox=[100, 2, 9, 5])),
        ("DATA-BOX-TINY", "warning", update_first("annotations", bbox=[1, 2, 0.01, 5])),
        ("DATA-BOX-TWICE", "warning", lambda d: d["annotations"].append(d["annotations"][0] | {"id": 99})),
        ("DATA-BOX-TWO-CLASSES", "note",
         lambda d: d["annotations"].append(d["annotations"][0] | {"id": 99, "category_id": 1})),
        ("DATA-CROWD", "note", update_first("annotations", iscrowd=1)),
        ("DATA-IMAGE-SIZE", "error", update_first("images", width=63)),
        ("DATA-PATH-ESCAPE", "error", update_first("images", file_name="../secret.png")),
        ("DATA-IMAGE-MISSING", "error", update_first("images", file_name="none.png")),
        ("DATA-CLASS-UNUSED", "note", lambda d: d["categories"].append({"id": 9, "name": "star"})),
        ("DATA-CLASS-NAME", "warning", update_first("categories", name="ring")),
        ("DATA-CLASS-ALIKE", "warning", update_first("categories", name="Ring")),
        ("DATA-CLASS-ALIKE", "warning", lambda d: d["categories"].append({"id": 9, "name": "RING "})),
        ("DATA-IMAGE-EMPTY", "note", lambda d: d.update(annotations=d["annotations"][10:])),
        ("DATA-NOTHING", "error", lambda d: d.update(annotations=[])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_fault_injected_into_good_data_is_found_once_with_its_code(clean, code, level, change):
    edit(clean, change)
    checked = check(clean)
    (finding,) = [f for name, f in checked.findings() if f.code == code and name == "train"]
    assert finding.level == level and finding.count == 1 and finding.text
    assert not PLURAL_OF_ONE.search(finding.text), finding.text
    if level == "error":
        with pytest.raises(DataError):  # training refuses data with errors
            from dinocore.data.dataset import open_dataset

            open_dataset(TINY.data.model_copy(update={"path": str(clean)}))


def test_val_classes_with_another_name_or_id_are_reported(clean):
    edit(clean, update_first("categories", name="dish"), "val")
    assert codes(check(clean))["DATA-CLASS-UNKNOWN"] == 1
    edit(clean, update_first("categories", name="star", id=77), "val")
    assert codes(check(clean))["DATA-ORPHAN"] == 15, "the 15 objects of the class still have its old id"


@pytest.mark.parametrize(("names", "pair"), [
    (("traffic light", "traffic_light"), "traffic light (15 objects) ~ traffic_light (15 objects)"),
    (("T-Shirt", "t shirt"), "T-Shirt (15 objects) ~ t shirt (15 objects)"),
    (("ÉTÉ", "été"), "ÉTÉ (15 objects) ~ été (15 objects)"),
    (("1", "-1"), ""), (("1 1", "11"), ""), (("a", "b"), ""), (("c+", "c-"), ""),
])  # fmt: skip
def test_class_names_that_differ_only_in_case_and_separators_are_reported_before_training(clean, names, pair):
    def rename(document):
        for row, name in zip(document["categories"], names, strict=True):
            row["name"] = name

    edit(clean, rename)
    train = read_annotations(find_layout(clean).train)
    text = "classes whose names differ only in case, spaces, `-` and `_`"
    assert train.notes == ([f"{text}: {pair}"] if pair else [])


def test_orphans_can_be_skipped(clean):
    edit(clean, update_first("annotations", image_id=404))
    config = load_config("tiny", ["data.allow_orphans=true"])
    checked = check(clean, config=config)
    assert checked.counts()["errors"] == 0 and codes(checked)["DATA-ORPHAN"] == 1
    assert checked.splits["train"].numbers["objects"] == 29


def test_unlisted_images_are_reported(clean):
    noise(50).save(clean / "train2017" / "more.png")
    assert codes(check(clean)) == {"DATA-IMAGE-UNLISTED": 1}


def test_images_with_more_objects_than_queries_detections_or_denoising_pairs_are_reported(clean):
    config = load_config("tiny", ["model.num_queries=9", "eval.max_dets=9", "model.denoising.num_pairs=8"])
    counts = codes(check(clean, config=config))
    assert {code: counts[code] for code in counts if code.startswith("MODEL")} == {
        "MODEL-QUERIES": 3, "MODEL-DETECTIONS": 3, "MODEL-DENOISING": 3,
    }  # fmt: skip
    fixes = {f.code: f.fix for _, f in check(clean, config=config).findings() if f.code.startswith("MODEL")}
    assert fixes == {
        "MODEL-QUERIES": "--set model.num_queries=50", "MODEL-DETECTIONS": "--set eval.max_dets=50",
        "MODEL-DENOISING": "--set model.denoising.num_pairs=50",
    }  # fmt: skip


def test_a_box_left_by_an_accidental_click_is_reported(clean):
    edit(clean, lambda d: d["annotations"][0].update(bbox=[7, 8, 1, 2]))
    (finding,) = [f for _, f in check(clean).findings() if f.code == "DATA-BOX-DOT"]
    assert finding.level == "warning" and finding.text.endswith("as from an accidental click: 0001.png [7, 8, 1, 2]")


def test_objects_smaller_than_a_cell_or_far_from_anchors_are_counted(clean):
    edit(clean, lambda d: [row.update(bbox=[1, 1, 1, 40]) for row in d["annotations"][:20]])
    edit(clean, lambda d: [row.update(bbox=[1, 1, 1, 1]) for row in d["annotations"][20:]])
    config = load_config("tiny", ["data.eval_scale=96"])  # images are enlarged to twice their size: 1 pixel becomes 2
    findings = {f.code: f for name, f in check(clean, config=config).findings() if name == "train"}
    cell, anchors = findings["MODEL-CELL"], findings["MODEL-ANCHORS"]
    assert cell.what.startswith("10 of 30 objects (33%), in 1 image,") and cell.count == 1
    assert anchors.what.startswith("20 of 30 objects (67%), in 2 images,") and anchors.count == 2
    assert "anchors are the model's initial boxes, squares whose sides are 5, 10, 20 %" in anchors.what
    assert [place.text for place in anchors.places] == ["0001.png: 10", "0002.png: 10"], "each file is listed once"
    assert [len(place.boxes) for place in anchors.places] == [10, 10]
    assert anchor_distance(np.array([[0.05, 0.05], [0.1, 0.2], [0.01, 0.8]]), 4).round(3).tolist() == [1, 2, 10]


def test_a_size_before_exif_rotation_is_recognised(clean):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1).save(clean / "train2017" / "0001.png", exif=exif)
    ((_, finding),) = check(clean).findings()
    assert finding.code == "DATA-IMAGE-SIZE" and "the same rotated, as by an EXIF orientation" in finding.text
    assert "data.exif=false" in finding.fix
    as_stored = TINY.model_copy(update={"data": TINY.data.model_copy(update={"exif": False})})
    assert not codes(check(clean, config=as_stored)), "the size is that of the stored image"


def test_an_image_repeated_within_and_across_splits_is_reported(clean):
    content = (clean / "train2017" / "0001.png").read_bytes()
    for name in ("val2017/0011.png", "train2017/0002.png"):
        (clean / name).write_bytes(content)
    assert codes(check(clean, decode=False)) == {"DATA-LEAK": 1}
    (clean / "val2017" / "0011.png").write_bytes(noise(99).tobytes()[:10] + content)
    assert "DATA-DUPLICATE" in codes(check(clean, decode=False))


def test_three_copies_of_an_image_are_one_finding(clean):
    for name in ("0002.png", "0003.png"):
        (clean / "train2017" / name).write_bytes((clean / "train2017" / "0001.png").read_bytes())
    (finding,) = [f for _, f in check(clean, decode=False).findings() if f.code == "DATA-DUPLICATE"]
    assert finding.what == "1 image is repeated in a split, byte for byte"
    assert "0001.png = train 0002.png = train 0003.png" in finding.text and finding.fix == "keep one of each"


def test_a_slightly_brightened_copy_is_a_near_duplicate(clean):
    brightened = Image.open(clean / "train2017" / "0001.png").point(lambda v: min(255, v + 3))
    brightened.save(clean / "val2017" / "0011.png")
    ((_, finding),) = check(clean).findings()
    assert finding.code == "DATA-NEAR-LEAK" and finding.places[0].text == "train 0001.png ~ val 0011.png"


@pytest.mark.parametrize(
    ("code", "make_image"),
    [
        ("DATA-IMAGE-DARK", lambda: noise(1).point(lambda v: v // 12)),
        ("DATA-IMAGE-BLANK", lambda: Image.new("RGB", (64, 48), "gray")),
    ],
)
def test_dark_and_blank_images_are_found(clean, code, make_image):
    make_image().save(clean / "train2017" / "0001.png")
    assert codes(check(clean)) == {code: 1}


def test_unusual_image_sizes_are_reported(clean):
    for i, size in ((1, (8, 48)), (2, (600, 40))):
        noise(i, size).save(clean / "train2017" / f"{i:04d}.png")
        edit(clean, lambda d, i=i, size=size: d["images"][i - 1].update(width=size[0], height=size[1]))
    assert codes(check(clean))["DATA-IMAGE-ODD"] == 2


def test_files_with_several_frames_are_reported(clean):
    noise(1).save(clean / "train2017" / "0001.png", format="GIF", save_all=True, append_images=[noise(2)])
    assert codes(check(clean)) == {"DATA-IMAGE-FRAMES": 1}


def test_decoding_finds_all_truncated_images_and_a_scan_without_it_finds_some(tmp_path):
    write_sample_data(tmp_path, num_images=14, seed=1, size=(96, 72))
    images = sorted((tmp_path / "train2017").iterdir())[:10]
    rng = random.Random(0)
    for n, file in enumerate(images):
        content = file.read_bytes()
        end = len(content) - 4 if n == 0 else rng.randrange(1, len(content) - 4)
        file.write_bytes(content[:end])
    checked = check(tmp_path)
    bad = sum(count for code, count in codes(checked).items() if code in ("DATA-IMAGE-DAMAGED", "DATA-IMAGE-FORMAT"))
    assert bad == 10 and checked.counts()["errors"] >= 1
    assert codes(check(tmp_path, decode=False))["DATA-IMAGE-DAMAGED"] > 1, (
        "a missing end of a JPEG is found without decoding"
    )


def test_a_jpeg_missing_its_last_bytes_is_reported(clean):
    file = sorted((clean / "train2017").iterdir())[0]
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((512, 640)).save(file, "JPEG")
    edit(clean, lambda document: [row.update(width=0) for row in document["images"] if row["file_name"] == file.name])
    file.write_bytes(file.read_bytes()[:-20])
    for decode in (False, True):
        assert codes(check(clean, decode=decode))["DATA-IMAGE-CUT"] == 1


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"%PDF-1.7", b"GARBAGE" * 99])
def test_a_file_that_is_not_an_image_is_an_error(clean, content):
    (clean / "train2017" / "0001.png").write_bytes(content)
    assert codes(check(clean, decode=False)) == {"DATA-IMAGE-FORMAT": 1}


def test_scanning_in_several_processes_gives_the_same_result(clean, monkeypatch):
    annotations = read_annotations(find_layout(clean).train)
    serial = list(images.scan_images(annotations, TINY.data, decode=True))
    monkeypatch.setattr(images, "FEW", 1)
    assert list(images.scan_images(annotations, TINY.data, decode=True)) == serial
    assert list(images.scan_images(annotations, TINY.data, True, [2, 0])) == [serial[2], serial[0]]


def test_a_killed_scan_process_is_reported(clean, monkeypatch):
    monkeypatch.setattr(images, "FEW", 1)
    monkeypatch.setattr(images, "read_header", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(EnvironmentFault, match="a process that reads images was killed"):
        check(clean)


# the repaired copy


def repair_and_read(folder: Path):
    split = find_layout(folder).train
    document = json.loads(split.annotations.read_bytes())
    document, changes = Repair(document, folder / "train2017", folder, TINY.data).run()
    copy = folder / "copy.json"
    copy.write_text(json.dumps(document))
    return read_annotations(Split(copy, [folder / "train2017"], folder=folder)), changes


def test_a_valid_file_is_not_changed(clean):
    before = read_annotations(find_layout(clean).train)
    after, changes = repair_and_read(clean)
    assert changes == [] and as_coco_dict(after) == as_coco_dict(before)


def test_ids_become_unique_integers_and_every_change_is_logged(clean):
    def corrupt(document):
        document["images"][0]["id"] = "1"
        document["annotations"][0]["image_id"] = "1"
        document["annotations"][1]["id"] = 0
        document["annotations"][2]["id"] = document["annotations"][3]["id"]
        document["annotations"][4]["bbox"] = [-5, 5, 20, 10]
        document["annotations"][5]["category_id"] = 404

    edit(clean, corrupt)
    after, changes = repair_and_read(clean)
    assert len(after.boxes) == 29 and after.image_ids.tolist() == [1, 2, 3]
    assert [0, 5, 15, 10] in after.boxes.tolist()
    logged = [(change.table, change.row, change.change) for change in changes]
    assert ("images", 0, "`id` converted to a whole number") in logged
    assert ("annotations", 1, "renumbered") in logged
    assert ("annotations", 5, "dropped: unknown `category_id`") in logged and len(logged) == 7


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
    st.lists(st.floats(), max_size=5), st.just("../../etc/passwd"), st.just([1, 2, 3, 4]),
)  # fmt: skip


def corrupt_anywhere(document, data) -> None:
    """Replace one value of a row or a whole table with junk, or append junk as a row."""
    table = data.draw(st.sampled_from(["images", "categories", "annotations"]))
    rows = document.get(table)
    if not isinstance(rows, list) or data.draw(st.integers(0, 15)) == 0:
        document[table] = data.draw(JUNK)
        return
    index = data.draw(st.integers(0, len(rows) - 1)) if rows else 0
    if not rows or not isinstance(rows[index], dict) or data.draw(st.integers(0, 9)) == 0:
        rows.append(data.draw(JUNK))
    else:
        rows[index][data.draw(st.sampled_from(sorted(rows[index]) or ["id"]))] = data.draw(JUNK)


def is_refused(split: Split) -> bool:
    """Whether `read_annotations` refuses the split; if not, its result is checked."""
    try:
        annotations = read_annotations(split)
    except DataError as error:
        assert len(str(error)) < 2000
        return True
    assert np.isfinite(annotations.boxes).all() and (annotations.labels >= 0).all()
    truth = as_coco_dict(annotations)
    assert {row["image_id"] for row in truth["annotations"]} <= {row["id"] for row in truth["images"]}
    return False


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_broken_files_are_read_or_refused_checked_and_repaired(clean, data):
    """Hypothesis puts junk in one to four places of a valid file."""
    file, good = clean / "annotations" / "instances_train2017.json", clean / "good.txt"
    if not good.exists():
        good.write_bytes(file.read_bytes())
    document = json.loads(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        corrupt_anywhere(document, data)
    file.write_text(json.dumps(document))
    refused = is_refused(Split(file, [clean / "train2017"], folder=clean))
    checked = check(clean, decode=False)
    errors = [f for name, f in checked.findings() if name == "train" and f.level == "error"]
    assert refused <= bool(errors), "check-data reports an error if training refuses the data"
    json.dumps(checked.as_dict())
    copy, _ = Repair(document, clean / "train2017", clean, TINY.data).run()
    (clean / "copy.txt").write_text(json.dumps(copy))
    read_annotations(Split(clean / "copy.txt", [clean / "train2017"], folder=clean))


# the report


def test_the_report_shows_findings_escapes_names_and_stays_small(clean):
    edit(clean, update_first("categories", name="<script>alert(1)</script>"))
    edit(clean, lambda d: d["annotations"].append(d["annotations"][0] | {"id": 99}))
    page = render_page(data_page(check(clean)))
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 1 and "DATA-BOX-TWICE" in page
    page = page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")  # a name that is not loaded
    assert "http" not in page and len(page) < MAX_BYTES


def test_overlaps_are_intersections_over_unions():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 5, 5], [0, 0, 0, 9]], dtype=float)
    assert overlaps(boxes)[0].round(4).tolist() == [1, 0.3333, 0, 0]


def test_a_missing_box_is_computed_from_its_polygon_or_rle(clean):
    def change(document):
        first, second, third, fourth = document["annotations"][:4]
        first.update(bbox=None, segmentation=[[5, 6, 20, 6, 20, 30], [2, 8, 9, 8, 9, 9]])
        second.update(bbox=[1, float("nan"), 2, 2], segmentation={"size": [48, 64], "counts": [48 * 2 + 3, 10, 2963]})
        third.update(bbox=None, segmentation={"size": [48, 0], "counts": "garbage"})
        fourth.update(bbox=None, segmentation=[[1, "2"]])

    edit(clean, change)
    split = find_layout(clean).train
    document = json.loads(split.annotations.read_text())
    repaired, changes = Repair(document, clean / "train2017", clean, TINY.data).run()
    assert [row["bbox"] for row in repaired["annotations"][:2]] == [[2, 6, 18, 24], [2, 3, 1, 10]]
    assert len(repaired["annotations"]) == 28 and sum("segmentation" in c.change for c in changes) == 2


def test_text_ids_are_replaced_with_numbers_in_all_tables(clean):
    def change(document):
        for row in document["images"]:
            row["id"] = f"img{row['id']}"
        for row in document["categories"]:
            row["id"] = row["name"]
        for row in document["annotations"]:
            row.update(image_id=f"img{row['image_id']}", category_id="disc" if row["category_id"] == 1 else "ring")

    before = read_annotations(find_layout(clean).train)
    edit(clean, change)
    split = find_layout(clean).train
    repaired, _ = Repair(json.loads(split.annotations.read_text()), clean / "train2017", clean, TINY.data).run()
    split.annotations.write_text(json.dumps(repaired))
    after = read_annotations(split)
    assert (after.boxes == before.boxes).all() and (after.labels == before.labels).all()


def test_unusual_iscrowd_area_and_size_values_are_handled(clean):
    def change(document):
        for row, crowd in zip(document["annotations"], ("0", "1", True, False, 0.0), strict=False):
            row.update(iscrowd=crowd, area=-1)
        document["images"][0].update(width=64.0, height=48.0)

    edit(clean, change)
    annotations = read_annotations(find_layout(clean).train)
    assert annotations.crowd[:5].tolist() == [False, True, True, False, False]
    assert annotations.area[:5].tolist() == (annotations.boxes[:5, 2] * annotations.boxes[:5, 3]).tolist()
    assert annotations.notes[0].startswith("filled in: `area` of 5 objects") and "`width`" not in annotations.notes[0]


def test_a_box_far_larger_than_its_image_is_not_trained_on(clean):
    edit(clean, lambda d: d["annotations"][0].update(bbox=[-1e6, -1e6, 2e6, 2e6]))
    assert read_annotations(find_layout(clean).train).trainable().sum() == 29
    assert codes(check(clean))["DATA-BOX-OUTSIDE"] == 1


def test_missing_keys_and_a_missing_split_are_reported_with_fixes(clean):
    (clean / "annotations" / "instances_val2017.json").unlink()
    edit(clean, lambda d: d.pop("categories"))
    findings = {finding.code: finding for _, finding in check(clean).findings()}
    assert '"categories": [{"id": 1, "name": "cell"}]' in findings["DATA-KEYS"].fix
    assert "no validation split" in findings["DATA-SPLIT"].what and "--val-fraction 0.2" in findings["DATA-SPLIT"].fix


def test_paths_from_another_machine_are_replaced_with_local_file_names(clean):
    def change(document):
        names = (r"C:\data\0001.png", "../../label-studio/media/0002.png", "/home/me/0009.png")
        for row, name in zip(document["images"], names, strict=True):
            row["file_name"] = name

    edit(clean, change)
    split = find_layout(clean).train
    document = json.loads(split.annotations.read_text())
    root = likely_root(document, split.image_roots)
    assert root == clean / "train2017"
    repaired, changes = Repair(document, root, clean, TINY.data).run()
    assert [row["file_name"] for row in repaired["images"]] == ["0001.png", "0002.png"]
    assert len(repaired["annotations"]) == 20 and any("no `file_name` within" in c.change for c in changes)


def test_file_names_that_nearly_match_are_corrected_and_their_images_kept(clean):
    file_names = ("0001.PNG", "0002.jpg", "0003%2Epng")
    edit(clean, lambda d: [row.update(file_name=name) for row, name in zip(d["images"], file_names, strict=True)])
    before = read_annotations(find_layout(clean).train)
    document = json.loads(find_layout(clean).train.annotations.read_text())
    repaired, changes = Repair(document, clean / "train2017", clean, TINY.data).run()
    assert [row["file_name"] for row in repaired["images"]] == ["0001.png", "0002.png", "0003.png"]
    assert [change.before for change in changes] == [*file_names] and len(repaired["annotations"]) == 30
    edit(clean, lambda d: d.update(repaired))
    after = read_annotations(find_layout(clean).train)
    assert "not spelled as on disk" in str(before.notes) and not after.notes
    assert (after.boxes == before.boxes).all() and list(after.file_names) == list(before.file_names)


@pytest.mark.skipif(os.name == "nt", reason="a backslash separates folders on Windows")
def test_a_file_name_may_contain_a_backslash(clean):
    (clean / "train2017/0001.png").rename(clean / r"train2017/a\b.png")
    edit(clean, lambda d: d["images"][0].update(file_name=r"a\b.png"))
    assert len(read_annotations(find_layout(clean).train).image_ids) == 3


def test_an_invalid_iscrowd_value_is_reported(clean):
    def change(document):
        for row, crowd in zip(document["annotations"], (2, -1, "yes", [1], None, 0, 1, "true"), strict=False):
            row["iscrowd"] = crowd

    edit(clean, change)
    annotations = read_annotations(find_layout(clean).train)
    assert annotations.crowd[:8].tolist() == [False] * 6 + [True] * 2
    assert "`iscrowd` of 1 object (0), `iscrowd` of 4 objects that is neither 0 nor 1 (0)" in annotations.notes[0]


def test_a_val_split_with_only_crowds_is_reported_as_empty(clean):
    edit(clean, lambda d: [row.update(iscrowd=1) for row in d["annotations"]], name="val")
    assert codes(check(clean))["DATA-SPLIT-EMPTY"] == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
def test_a_named_pipe_in_the_data_is_refused_without_waiting(clean):
    file = clean / "annotations" / "instances_train2017.json"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="is not a regular file; check what it is: ls -l"):
        find_layout(clean)


def test_paths_from_another_machine_with_equal_file_names_keep_their_boxes(clean):
    """Boxes must not move to an image of the same name in another folder; ambiguous images are dropped."""
    root = clean / "train2017"
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / "0001.png").rename(root / name / "0001.png") if name == "a" else shutil.copy(
            root / "0002.png", root / name / "0001.png"
        )

    def change(document):
        names = ("/home/me/x/a/0001.png", "/home/me/x/b/0001.png", "/home/me/c/0002.png")
        for row, name in zip(document["images"], names, strict=True):
            row["file_name"] = name
        document["images"].append(dict(document["images"][2], id=99, file_name="/home/me/d/0002.png"))

    edit(clean, change)
    split = find_layout(clean).train
    document = json.loads(split.annotations.read_text())
    ids = [row["id"] for row in document["images"]]
    assert likely_root(document, split.image_roots) == root
    repaired, changes = Repair(document, root, clean, TINY.data).run()
    assert {row["id"]: row["file_name"] for row in repaired["images"]} == {ids[0]: "a/0001.png", ids[1]: "b/0001.png"}
    assert sum("2 entries may mean 0002.png" in c.change for c in changes) == 2
