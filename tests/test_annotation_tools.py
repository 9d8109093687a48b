"""Files for annotation tools. FiftyOne and Label Studio read them here, if installed."""

import json
import os
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from PIL import Image

from dinocore.data.annotations import Category
from dinocore.detections_io import FOLDERS, FORMATS, ImageResult, read_detections, write_detections

NAMES = ['red "cell" & <x>', "b"]
CATEGORIES = [Category(1, NAMES[0]), Category(5, "b"), Category(6, "b")]


def detection(label, score, box):
    return {"label": label, "category_id": 1, "score": score, "box_xyxy": box}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Two images: one with a name that needs escaping in URLs and XML and a full-size box, one without objects."""
    monkeypatch.chdir(tmp_path)
    for name in ("a & b/x é.jpg", "y.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(name)
    boxes = [detection(NAMES[0], 0.9, [0, 0, 64, 48]), detection("b", 0.4, [63.99, 12, 64, 36])]
    return [ImageResult("a & b/x é.jpg", 64, 48, boxes), ImageResult("y.jpg", 64, 48, [])]


def test_fiftyone_gets_absolute_files_and_boxes_as_fractions(results, tmp_path):
    assert write_detections(results, CATEGORIES, "fiftyone", Path("fo.json")) == [Path("fo.json")]
    content = json.loads(Path("fo.json").read_text())
    assert content["classes"] == NAMES, "each name appears once"
    first, second = content["labels"].items()
    assert (first[0], second) == (str(tmp_path / "a & b/x é.jpg"), (str(tmp_path / "y.jpg"), []))
    assert first[1][0] == {"label": NAMES[0], "bounding_box": [0, 0, 1, 1], "confidence": 0.9}
    assert first[1][1]["bounding_box"] == pytest.approx([63.99 / 64, 0.25, 0.01 / 64, 0.5], abs=1e-7)


def test_label_studio_gets_tasks_and_the_interface_that_they_belong_to(results, tmp_path):
    written = write_detections(results, CATEGORIES, "labelstudio", Path("tasks.json"))
    assert written == [Path("tasks.json"), Path("tasks.label_config.xml")]
    tasks, view = json.loads(Path("tasks.json").read_text()), ElementTree.parse(written[1])
    address = tasks[0]["data"]["image"]
    assert address.startswith("/data/local-files/?d=") and not set(" &é") & set(address.partition("=")[2])
    assert "/" + unquote(address.partition("=")[2]) == str(tmp_path / "a & b/x é.jpg")
    regions = tasks[0]["predictions"][0]["result"]
    assert regions[0]["value"] == {
        "x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0, "rectanglelabels": [NAMES[0]]
    }  # fmt: skip
    value = regions[1]["value"]
    assert [value[key] for key in ("x", "y", "width", "height")] == pytest.approx([99.984375, 25, 0.015625, 50])
    assert all((region["original_width"], region["original_height"]) == (64, 48) for region in regions)
    assert tasks[0]["predictions"][0]["score"] == 0.65 and "score" not in tasks[1]["predictions"][0]
    assert [label.get("value") for label in view.iter("Label")] == NAMES
    tags = {(tag.tag, tag.get("name"), tag.get("toName")) for tag in view.getroot()}
    assert tags == {("Image", "image", None), ("RectangleLabels", regions[0]["from_name"], regions[0]["to_name"])}


@pytest.mark.filterwarnings("default")
def test_fiftyone_itself_reads_the_file(results, tmp_path):
    data = pytest.importorskip("fiftyone.utils.data", exc_type=ImportError)
    write_detections(results, CATEGORIES, "fiftyone", Path("fo.json"))
    with data.FiftyOneImageDetectionDatasetImporter(labels_path="fo.json") as importer:
        rows = {path: [(d.label, d.confidence) for d in labels.detections] for path, _, labels in importer}
        assert importer.get_dataset_info() == {"classes": NAMES}
    assert rows == {str(tmp_path / "a & b/x é.jpg"): [(NAMES[0], 0.9), ("b", 0.4)], str(tmp_path / "y.jpg"): []}


@pytest.mark.filterwarnings("default")
def test_label_studio_itself_accepts_the_predictions(results):
    tools = pytest.importorskip("label_studio_sdk.label_interface", exc_type=ImportError)
    _, config = write_detections(results, CATEGORIES, "labelstudio", Path("tasks.json"))
    interface = tools.LabelInterface(config.read_text())
    interface.validate()
    predictions = [
        prediction for task in json.loads(Path("tasks.json").read_text()) for prediction in task["predictions"]
    ]
    assert [interface.validate_prediction(prediction, return_errors=True) for prediction in predictions] == [[], []]
    predictions[0]["result"][0]["value"]["width"] = 140
    assert interface.validate_prediction(predictions[0], return_errors=True), "the validation detects errors"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_name_that_is_not_utf8_is_written_and_read_back(results, kind):
    latin = os.fsdecode(b"caf\xe9.jpg")
    results = [results[0]._replace(file=latin), results[1]]
    out = Path("out" if kind in FOLDERS else f"out.{kind}" if kind in ("jsonl", "csv") else "out.json")
    for file in write_detections(results, CATEGORIES, kind, out):
        texts = [path.read_text("utf-8") for path in ([*file.iterdir()] if file.is_dir() else [file])]
        assert any(texts), "UTF-8, and not empty"
    if kind in ("json", "jsonl"):
        assert read_detections(out) == results
    elif kind == "coco":
        assert json.loads(out.read_bytes())["images"][0]["file_name"] == latin
