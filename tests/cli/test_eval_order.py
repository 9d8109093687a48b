"""Of several ranks, rank 0 compares two evaluations only when no other rank waits for its part of the second."""

import pytest

from dinocli.commands.evaluate import evaluate
from dinocore.system.processes import SingleProcess


class Judged(Exception):
    """Where this test has seen enough."""


def test_both_are_detected_before_rank_0_judges_alone(monkeypatch):
    request = evaluate.EvalRequest(None, "val", None, None, 10, "cpu", "off", [], False)
    order = []

    def analysed(*_):
        order.append("judged")
        raise Judged

    monkeypatch.setattr(evaluate, "_file", lambda path, _: path.stem)
    monkeypatch.setattr(evaluate, "_truth", lambda *_: "annotations")
    monkeypatch.setattr(evaluate, "_detections", lambda source, *_: order.append(source) or ([], []))
    monkeypatch.setattr("dinocore.evaluate.analysis.analyse", analysed)
    with pytest.raises(Judged):
        evaluate.compare_two(request, ("a.json", "b.json"), SingleProcess())
    assert order == ["a", "b", "judged"]
