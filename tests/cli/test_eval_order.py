"""`dino eval --compare` gets both sources' detections before the analysis; detections keep their category ids."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinocli.commands.evaluate import evaluate
from dinocore.config import Config
from dinocore.data.split import Category
from dinocore.stream.slices import Slicing
from dinocore.system.processes import SingleProcess


class AnalysisStarted(Exception):
    """Raised to end the comparison when the analysis starts."""


def test_detections_of_both_sources_are_computed_before_the_analysis(monkeypatch):
    request = evaluate.EvalRequest(None, "val", None, None, 10, "cpu", "off", [], False)
    order = []

    def start_analysis(*_):
        order.append("analysis")
        raise AnalysisStarted

    monkeypatch.setattr(evaluate, "_file", lambda path, _: path.stem)
    monkeypatch.setattr(evaluate, "_truth", lambda *_: "annotations")
    monkeypatch.setattr(evaluate, "_detections", lambda source, *_: order.append(source) or ([], []))
    monkeypatch.setattr("dinocore.evaluate.analysis.analyse", start_analysis)
    with pytest.raises(AnalysisStarted):
        evaluate.compare_two(request, ("a.json", "b.json"), SingleProcess())
    assert order == ["a", "b", "analysis"]


@pytest.mark.parametrize("data_categories", [[(1, "cell"), (2, "cell")], [(2, "cell"), (1, "cell")]])
def test_two_classes_with_the_same_name_keep_their_own_detections(data_categories, monkeypatch):
    rows = [{"image_id": 1, "category_id": k, "bbox": [0, 0, 1, 1], "score": 0.5} for k in (1, 2)]
    monkeypatch.setattr("dinocore.evaluate.coco.detect_on_ranks", lambda *args: iter([(rows, [])]))
    detector: Any = SimpleNamespace(categories=[Category(1, "cell"), Category(2, "cell")])
    annotations: Any = SimpleNamespace(categories=[Category(*row) for row in data_categories], image_ids=[1])
    source = evaluate.DetectionSource(Path("w"), detector, Config(), Slicing(64, 0.2))
    assert evaluate._detections(source, annotations, SingleProcess()) == (rows, [])
