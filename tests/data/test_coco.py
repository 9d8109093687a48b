"""Valid COCO annotations are read as written; others are refused with the file, invalid entries and their number."""

import copy
import json
import random
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dinocore.data.annotations import Category, as_coco_dict, read_annotations
from dinocore.errors import DataError


def error_message(split, categories=None):
    with pytest.raises(DataError) as caught:
        read_annotations(split, categories)
    assert caught.value.exit_code == 3 and str(split.annotations) in str(caught.value)
    return str(caught.value)


def average_precision(annotations):
    """AP from pycocotools, with the annotations themselves as detections."""
    truth = COCO()
    truth.dataset = as_coco_dict(annotations)
    truth.createIndex()
    detections = [{k: row[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9}
             for row in truth.dataset["annotations"] if not row["iscrowd"]]  # fmt: skip
    evaluator = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats[0]


def objects_of(annotations, image_id):
    """(category id, box) of each object in an image."""
    rows = annotations.objects(annotations.image_ids.tolist().index(image_id))
    ids = [annotations.categories[k].id for k in annotations.labels[rows]]
    return list(zip(ids, annotations.boxes[rows].tolist(), strict=True))


# files that are read


def test_objects_are_assigned_to_their_images_in_any_file_order(make_coco):
    def shuffle(document):
        for rows in document.values():
            random.Random(3).shuffle(rows)

    objects = {i: [(1 + (i + n) % 2, i, n, 9, 9) for n in range(i % 4)] for i in (30, 7, 2, 19, 11)}
    annotations = read_annotations(make_coco(objects, edit=shuffle))
    assert sorted(annotations.image_ids.tolist()) == [2, 7, 11, 19, 30]
    for image_id, rows in objects.items():
        actual = sorted(objects_of(annotations, image_id))
        assert actual == sorted((kind, [float(v) for v in box]) for kind, *box in rows)
        index = annotations.image_ids.tolist().index(image_id)
        assert annotations.path(index).name == f"{image_id:04d}.png" and annotations.path(index).is_file()


def test_category_ids_with_gaps_zero_and_in_any_order_are_kept(make_coco):
    objects = {5: [(7, 0, 0, 9, 9), (0, 9, 9, 9, 9), (90, 20, 20, 9, 9), (3, 30, 30, 9, 9)]}
    annotations = read_annotations(make_coco(objects, categories={7: "g", 3: "c", 90: "z", 0: "a"}))
    assert annotations.categories == [Category(0, "a"), Category(3, "c"), Category(7, "g"), Category(90, "z")]
    assert annotations.labels.tolist() == [2, 0, 3, 1]
    assert [row["category_id"] for row in as_coco_dict(annotations)["annotations"]] == [7, 0, 90, 3]


def test_optional_coco_fields_are_filled_in(make_coco):
    def remove_optional_fields(document):
        for row in document["annotations"]:
            del row["area"], row["iscrowd"], row["id"]
        for row in document["images"]:
            del row["width"], row["height"]
        document["images"][1]["width"] = 0  # invalid, treated as missing

    annotations = read_annotations(make_coco(edit=remove_optional_fields))
    assert annotations.notes == [
        "filled in: `width` and `height` of 2 images (read from the files), `area` of 3 objects (width x height), "
        "`iscrowd` of 3 objects (0)"
    ]
    assert annotations.sizes.tolist() == [[64, 48], [64, 48]]
    assert annotations.area.tolist() == [240, 384, 900] and not annotations.crowd.any()
    assert average_precision(annotations) == 1


def test_a_missing_image_size_is_read_from_the_upright_image(make_coco, tmp_path):
    def remove_sizes(document):
        for row in document["images"]:
            del row["width"], row["height"]

    split = make_coco({3: [(1, 1, 1, 9, 9)]}, edit=remove_sizes)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "train2017" / "0003.png", exif=exif)
    assert read_annotations(split).sizes.tolist() == [[48, 64]]


def test_a_valid_area_is_kept_and_an_invalid_one_is_replaced(make_coco):
    def set_areas(document):
        for row, area in zip(document["annotations"], (17.5, float("nan"), 10**400), strict=True):
            row["area"] = area

    assert read_annotations(make_coco(edit=set_areas)).area.tolist() == [17.5, 384, 900]


def test_an_annotation_with_the_id_0_is_found_by_pycocotools(make_coco):
    def number_from_zero(document):
        for n, row in enumerate(document["annotations"]):
            row["id"] = n

    annotations = read_annotations(make_coco(edit=number_from_zero))
    assert average_precision(annotations) == 1
    assert [row["id"] for row in as_coco_dict(annotations)["annotations"]] == [1, 2, 3]


def test_crowds_are_evaluated_and_not_trained_on(make_coco):
    def mark_crowd(document):
        document["annotations"][0]["iscrowd"] = 1

    annotations = read_annotations(make_coco(edit=mark_crowd))
    assert annotations.trainable().tolist() == [False, True, True]
    assert [row["iscrowd"] for row in as_coco_dict(annotations)["annotations"]] == [1, 0, 0]
    assert average_precision(annotations) == 1 and annotations.notes == []


def test_images_without_objects_are_kept(make_coco):
    annotations = read_annotations(make_coco({1: [], 2: [(1, 1, 1, 9, 9)], 3: [], 4: []}))
    assert np.diff(annotations.starts).tolist() == [0, 1, 0, 0]
    assert len(as_coco_dict(annotations)["images"]) == 4
    empty = read_annotations(make_coco({1: []}))
    assert empty.boxes.shape == (0, 4) and empty.trainable().shape == (0,)
    assert read_annotations(make_coco({})).sizes.shape == (0, 2)


def test_objects_outside_their_image_are_kept_and_counted_but_not_trained_on(make_coco):
    rows = [(1, n, n, 5, 5) for n in range(30)]
    outside = [(1, 70, 5, 9, 9), (1, -20, 5, 20, 9)]
    annotations = read_annotations(make_coco({1: rows, 2: []}, edit=lambda d: add(d, outside)))
    assert annotations.trainable().sum() == 30 and len(annotations.boxes) == 32
    assert annotations.notes[1].startswith(
        "2 of 32 boxes lie outside their image, or are far larger, not trained on: annotation number 30"
    )
    single = read_annotations(make_coco({1: rows, 2: []}, edit=lambda d: add(d, outside[:1])))
    assert single.notes[1].startswith("1 of 31 boxes lies outside its image, or is far larger, not trained on")


def add(document, rows, image_id=2):
    document["annotations"] += [{"image_id": image_id, "category_id": kind, "bbox": box} for kind, *box in rows]


def test_roboflows_heading_category_is_not_a_class(make_coco):
    def roboflow(document):
        document["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        for row in document["categories"][1:]:
            row["supercategory"] = "shapes"

    annotations = read_annotations(make_coco(edit=roboflow))
    assert [c.id for c in annotations.categories] == [1, 2]
    assert annotations.notes == ["skipped as headings without objects: shapes"]
    val = read_annotations(make_coco(edit=roboflow, name="val"), annotations.categories)
    assert val.notes == [], "unknown classes without objects are not reported"


def test_a_supercategory_with_objects_is_kept_as_a_class(make_coco):
    def nested(document):
        document["categories"][1]["supercategory"] = "disc"

    assert len(read_annotations(make_coco(edit=nested)).categories) == 2


def test_an_unused_class_that_is_not_a_supercategory_is_kept(make_coco):
    assert len(read_annotations(make_coco(categories={1: "disc", 2: "ring", 3: "star"})).categories) == 3


def test_labels_follow_the_training_classes_and_unknown_classes_are_reported(make_coco):
    known = [Category(2, "ring"), Category(9, "star")]
    annotations = read_annotations(make_coco(name="val"), known)
    assert annotations.categories == known and annotations.labels.tolist() == [-1, 0, 0]
    assert annotations.notes == ["classes that were not trained on; not evaluated: disc"]
    assert [row["category_id"] for row in as_coco_dict(annotations)["annotations"]] == [2, 2]
    assert annotations.trainable().tolist() == [False, True, True]


def test_classes_are_matched_by_name_regardless_of_their_ids(make_coco):
    known = [Category(1, "ring"), Category(2, "disc")]
    annotations = read_annotations(make_coco(name="val"), known)
    assert annotations.categories == known and annotations.labels.tolist() == [1, 0, 0]
    capitals = [Category(0, "RING"), Category(9, "Disc")]
    assert read_annotations(make_coco(name="val"), capitals).labels.tolist() == [1, 0, 0]
    exact_first = [Category(0, "Ring"), Category(1, "ring"), Category(2, "disc")]
    assert read_annotations(make_coco(name="val"), exact_first).labels.tolist() == [2, 1, 1]


def test_classes_of_weights_without_names_are_matched_by_id(make_coco):
    known = [Category(k, f"class_{k}") for k in range(3)]
    assert read_annotations(make_coco(name="val"), known).labels.tolist() == [1, 2, 2]


def test_a_split_without_objects_of_known_classes_is_refused(make_coco):
    message = error_message(make_coco(name="val"), [Category(1, "cat"), Category(2, "dog")])
    assert "no object in" in message and "(cat, dog)" in message and "disc" in message


def test_merged_classes_keep_the_id_of_the_one_with_objects(make_coco):
    annotations = read_annotations(make_coco(categories={0: "ring", 1: "disc", 2: "ring", 7: "disc"}))
    assert annotations.categories == [Category(1, "disc"), Category(2, "ring")]
    assert annotations.labels.tolist() == [0, 1, 1]
    assert any("disc: ids 1, 7" in note and "ring: ids 0, 2" in note for note in annotations.notes)


def test_ids_may_be_whole_floats(make_coco):
    def use_floats(document):
        document["images"][0]["id"] = 7.0
        document["annotations"][0] |= {"image_id": 7.0, "category_id": 1.0}

    assert read_annotations(make_coco(edit=use_floats)).image_ids.tolist() == [7, 9]


@pytest.mark.parametrize("name", ["été 図 🙂.png", "sub/a.png", "sub\\a.png", "a b;'\"$.png", "\udcff.png"])
def test_any_file_name_works(make_coco, tmp_path, name):
    file = tmp_path / "train2017" / name.replace("\\", "/")

    def rename(document):
        document["images"][0]["file_name"] = name

    split = make_coco(edit=rename)
    file.parent.mkdir(exist_ok=True)
    (tmp_path / "train2017" / "0007.png").rename(file)
    annotations = read_annotations(split)
    assert annotations.path(annotations.image_ids.tolist().index(7)) == file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
def test_every_encoding_of_json_is_read(make_coco, encoding):
    split = make_coco(categories={1: "été", 2: "図"})
    split.annotations.write_text(json.dumps(json.loads(split.annotations.read_bytes()), ensure_ascii=False), encoding)
    assert [c.name for c in read_annotations(split).categories] == ["été", "図"]


# files that are refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "looks cut off"),
        (b'{"images": [1, 2}', "line 1, column 17 of 17 bytes"),
        (b'{"images": "caf\xe9 au lait noir"}', "position 15"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"images": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b"[]", "the top level is not an object"),
        (b'"text"', "the top level is not an object"),
        (b"{}", "lacks the lists `images`"),
        (b'{"images": {}}', "lacks the lists `images`"),
        (b'{"images": []}', "lacks the lists `categories`"),
        (b'{"images": [], "categories": []}', "lacks the list `annotations`"),
        (b'{"images": [], "categories": [], "annotations": null}', "lacks the list `annotations`"),
    ],
)
def test_files_that_are_not_coco_are_refused_with_the_reason(write_json, content, message):
    assert message in error_message(write_json(content))


def test_a_truncated_file_is_reported_as_cut_off(make_coco, write_json):
    content = make_coco(categories={1: "disc", 2: "a \\ b"}).annotations.read_bytes()
    for end in range(0, len(content) - 1, 5):
        assert "looks cut off" in error_message(write_json(content[:end])), content[:end][-30:]


def test_a_missing_annotation_file_is_refused(make_coco):
    split = make_coco()
    split.annotations.unlink()
    error_message(split)


@pytest.mark.parametrize(
    ("table", "key"),
    [("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name"),
     ("annotations", "image_id"), ("annotations", "category_id"), ("annotations", "bbox")],
)  # fmt: skip
def test_rows_with_missing_or_null_keys_are_listed_and_counted(make_coco, table, key):
    def remove_key(document):
        document[table] = [copy.deepcopy(document[table][0]) for _ in range(8)]
        for n, row in enumerate(document[table][1:]):
            row.pop(key) if n % 2 else row.update({key: None})

    assert f"entries of `{table}` without `{key}` (counted from 0): 1, 2, 3, 4, 5 and 2 more" in error_message(
        make_coco(edit=remove_key)
    )


def test_rows_that_are_not_json_objects_are_refused(make_coco):
    assert "entries of `images` without `id`" in error_message(make_coco(edit=lambda d: d | {"images": [1, "a", None]}))


@pytest.mark.parametrize("table", ["images", "categories"])
def test_a_duplicate_id_is_refused(make_coco, table):
    message = error_message(make_coco(edit=lambda d: d[table].append(dict(d[table][0]))))
    assert f"appear more than once in `{table}`: {7 if table == 'images' else 1}" in message


@pytest.mark.parametrize("value", ["7", 7.5, True, [7], 2**63, -(10**30), float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("table", "key"), [("images", "id"), ("annotations", "image_id"), ("annotations", "category_id")]
)
def test_an_id_that_is_not_a_whole_number_is_refused(make_coco, table, key, value):
    message = error_message(make_coco(edit=lambda d: d[table][0].update({key: value})))
    what = f"`{key}` in `{table}` that is not a whole number (entries counted from 0)"
    assert f"{what}: {value!r} in entry 0" in message


def test_unknown_image_and_category_ids_are_refused_in_one_error(make_coco):
    def add_unknown_ids(document):
        add(document, [(1, 0, 0, 9, 9)] * 7, image_id=404)
        document["annotations"][1]["category_id"] = 77

    message = error_message(make_coco(edit=add_unknown_ids))
    assert "`image_id` that is not in `images`: annotation number 3 -> 404, " in message and "and 2 more" in message
    assert "`category_id` that is not in `categories`: annotation 2 -> 77" in message


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [1, 2, 3, 4, 5], [], "1 2 3 4", ["1", 2, 3, 4], [[1, 2], [3, 4]], {"x": 1}, [True, 2, 3, 4],
            [1, 2, float("nan"), 4], [1, 2, 3, float("inf")], [float("-inf"), 2, 3, 4], [1, 2, 3, 10**400]]
)  # fmt: skip
def test_a_box_that_is_not_four_finite_numbers_is_refused(make_coco, box):
    message = error_message(make_coco(edit=lambda d: d["annotations"][1].update({"bbox": box})))
    assert f"`bbox` is not four finite numbers: annotation 2: {str(box)[:60]}" in message


@pytest.mark.parametrize(
    "name", ["../0007.png", "a/../../0007.png", "/etc/passwd", "..\\0007.png", "a\0b", "", ".", "\ud800"]
)
def test_a_file_name_outside_the_image_folder_is_refused(make_coco, name):
    message = error_message(make_coco(edit=lambda d: d["images"][1].update({"file_name": name})))
    assert f"leads out of the image folder: image 9: {name!r}" in message
    message.encode()  # fails if the message cannot be printed


def test_missing_images_are_listed_and_counted(make_coco, tmp_path):
    split = make_coco({i: [(1, 1, 1, 9, 9)] for i in range(1, 10)})
    for i in range(2, 9):
        (tmp_path / "train2017" / f"{i:04d}.png").unlink()
    message = error_message(split)
    assert (
        f"7 of 9 images are not in {tmp_path / 'train2017'}: " in message
        and "0002.png, 0003.png, 0004.png, 0005.png, 0006.png" in message
    )


def test_the_error_for_missing_images_lists_the_searched_folders(make_coco, tmp_path):
    split = make_coco()
    for file in (tmp_path / "train2017").iterdir():
        file.unlink()
    assert f"such as 0007.png, are in none of {tmp_path / 'train2017'}" in error_message(split)
    assert "none of" in error_message(
        make_coco(edit=lambda d: d["images"][0].update(file_name="x" * 5000), objects={1: []})
    )


def test_implausible_image_sizes_are_read_from_the_file(make_coco):
    assert read_annotations(make_coco(edit=lambda d: d["images"][0].update(width=10**30))).sizes[0].tolist() == [64, 48]


@pytest.mark.parametrize("box", [[5, 5, 0, 9], [5, 5, 9, -4]])
def test_many_boxes_without_size_are_refused_and_a_few_are_not_trained_on(make_coco, box):
    objects = {1: [(1, n, n, 5, 5) for n in range(38)], 2: []}
    few = read_annotations(make_coco(objects, edit=lambda d: add(d, [(1, *box)] * 2)))
    assert few.trainable().sum() == 38 and "2 of 40 boxes have no width or height" in few.notes[1]
    assert "3 of 41 boxes have no width or height" in error_message(
        make_coco(objects, edit=lambda d: add(d, [(1, *box)] * 3))
    )


def test_normalised_boxes_are_refused(make_coco):
    def normalise(document):
        for row in document["annotations"]:
            row["bbox"] = [v / side for v, side in zip(row["bbox"], (64, 48, 64, 48), strict=True)]

    assert re.search(
        r"3 of 3 boxes lie within \[0, 1\]: .*; COCO's `bbox` is in pixels", error_message(make_coco(edit=normalise))
    )


def test_boxes_given_as_corners_are_refused(make_coco):
    def to_corners(document):
        for row in document["annotations"]:
            x, y, w, h = row["bbox"]
            row["bbox"] = [x, y, x + w, y + h]

    rng = np.random.default_rng(0)
    objects = {1: [(1, *rng.integers(0, 40, 2).tolist(), 8, 8) for _ in range(20)]}
    assert "are they x0 y0 x1 y1?" in error_message(make_coco(objects, edit=to_corners))
    assert read_annotations(make_coco(objects)).notes == []


def test_junk_values_anywhere_are_read_or_refused(make_coco, write_json):
    """Each value of a valid file is replaced with each of several junk values."""
    valid = json.loads(make_coco().annotations.read_bytes())
    junk = [None, True, -1, 0, 10**25, 1e300, float("nan"), "", "x", [], [[]], {}, {"id": 1}]
    outcomes = set()
    for path in paths(valid):
        for value in junk:
            document = copy.deepcopy(valid)
            *parents, last = path
            container = document
            for key in parents:
                container = container[key]
            container[last] = value
            split = write_json(json.dumps(document).encode())
            try:
                as_coco_dict(read_annotations(split))
                outcomes.add("read")
            except DataError as error:
                assert len(str(error)) < 1000
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def paths(value, prefix=()):
    """The path of keys and indices to each value in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*prefix, key)
        yield from paths(child, (*prefix, key))
