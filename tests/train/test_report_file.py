"""`report.html` in the folder of a run."""

import json
import re

import pytest

from dinocore.train.events import Finished, Warned
from dinocore.train.run import report
from dinocore.train.run.report import EXAMPLES


def stored_examples(run):
    return json.loads((run / EXAMPLES).read_text())


def test_a_run_writes_a_report_with_its_metrics_and_images_of_the_best_weights(
    start, run_to_end, small_config, monkeypatch
):
    monkeypatch.setattr(report, "MIN_SCORE", 0.0)  # scores are low after two epochs
    context, state = start(small_config())
    events = run_to_end(context, state)
    assert not [event for event in events if isinstance(event, Warned)]
    rows = [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
    scores, steps = [row for row in rows if "AP" in row], [row for row in rows if "loss" in row]
    html = (context.folder / "report.html").read_text()
    best = max(reversed(scores), key=lambda row: row["AP"])  # while AP is 0, the newest weights are the best
    assert (
        f"Best AP {best['AP']:.4f} after epoch {best['epoch']}." in html
        and stored_examples(context.folder)["epoch"] == best["epoch"]
    )
    charts = {}
    for text in re.findall(r'<script type="application/json">(.*?)</script>', html):
        data = json.loads(text)
        charts[data.get("title", "gallery")] = data
    losses = {line["name"]: line["y"] for line in charts["By stage"]["lines"]}
    assert losses["all"] == [float(f"{row['loss']:.6g}") for row in steps]
    parts = [name for name in losses if name != "all"]
    assert all(abs(sum(losses[name][k] for name in parts) - total) < 1e-3 for k, total in enumerate(losses["all"]))
    names = [image["title"] for image in charts["gallery"]["images"]]
    assert names == [name.decode() for name in context.data.val.file_names]
    marks = [mark for image in charts["gallery"]["images"] for mark in image["marks"]]
    kinds = charts["gallery"]["kinds"]
    objects = [mark for mark in marks if kinds[mark[5]] in ("truth", "missed")]
    assert len(objects) == len(context.data.val.boxes), "every annotated object, found or missed"
    assert len(marks) - len(objects) == len(stored_examples(context.folder)["results"]) > 0


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_reported_once_and_the_run_continues(start, run_to_end, small_config):
    context, state = start(small_config())
    (context.folder / "report.html").mkdir()
    events = run_to_end(context, state)
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1 and "report.html cannot be written" in warnings[0] and isinstance(events[-1], Finished)
    assert (context.folder / "best.safetensors").is_file()
