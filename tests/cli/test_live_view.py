"""Training progress in the terminal and in log.txt."""

import json
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from dinocli.commands.train.view import LiveView, TrainingView, in_a_line, loss_table
from dinocore.evaluate.coco import Metrics
from dinocore.train.events import Evaluated, Evaluating, Started, Step

METRICS = {"loss": 1234.5678, "images": 4.0, "seconds": 2.0, "data_seconds": 0.5, "memory_mb": 12345.0}
METRICS |= {f"{group}/{term}": 123.45678 for group in ("matching", "proposals") for term in ("label", "box", "giou")}


def rendered_lines(width: int) -> list[str]:
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    view = LiveView(console)
    view.add_task("epoch 1234/1234", total=99_999_999, completed=88_888_888)
    view.mean, view.ap = METRICS, "0.1234, best 0.1234 in epoch 1234"
    with console.capture() as capture:
        for part in view.get_renderables():
            console.print(part)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 160])
def test_the_live_view_has_five_lines_that_fit_the_terminal(width):
    lines = rendered_lines(width)
    assert len(lines) == 5 and all(len(line.rstrip()) <= width for line in lines)
    assert lines[1].split() == ["class", "box", "GIoU", "loss", "1234.568"]
    assert lines[2].split() == ["matching", *["123.457"] * 3, "AP", "0.1234,", "best", "0.1234", "in", "epoch", "1234"]
    assert lines[3].split()[:7] == ["first", "stage", *["123.457"] * 3, "speed", "2.0"]
    assert lines[3].rstrip().endswith("img/s, 25% waiting for data")
    assert lines[4].split() == ["memory", "12,345", "MB"]  # no denoising row, because there are no denoising losses


def test_a_log_line_has_the_same_metrics():
    line = "loss 1234.57 · matching 123.46/123.46/123.46 · first stage 123.46/123.46/123.46"
    assert in_a_line(METRICS) == f"{line} · 2.0 img/s · data 25% · 12345 MB"
    assert in_a_line({}) == ""  # a resumed run may evaluate before its first step


def test_new_loss_terms_and_stages_are_shown_by_name():
    metrics = METRICS | {"matching/size": 1.0, "extra/box": 2.0}
    assert "matching 123.46/123.46/123.46/1.00 · first stage 123.46/123.46/123.46 · extra 2.00" in in_a_line(metrics)
    console = Console(file=StringIO(), width=80)
    with console.capture() as capture:
        console.print(loss_table(metrics))
    head, *rows = (line.split() for line in capture.get().splitlines())
    assert head == ["class", "box", "GIoU", "size"]
    assert rows[0] == ["matching", *["123.457"] * 3, "1.000"] and rows[-1] == ["extra", "2.000"]


def test_a_resumed_run_shows_the_best_ap_so_far(tmp_path):
    rows = [{"step": n, "epoch": n, "AP": ap} for n, ap in ((1, 0.25), (2, 0.5), (3, None), (4, 0.375))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SimpleNamespace(notes=[])
    view = TrainingView(SimpleNamespace(folder=tmp_path, data=data))  # pyright: ignore[reportArgumentType]
    assert view.progress.ap == "none yet"
    view.show(Started(tmp_path, {}, None))
    assert view.progress.ap == "0.3750, best 0.5000 in epoch 2"


@pytest.fixture
def view(tmp_path):
    config = SimpleNamespace(train=SimpleNamespace(epochs=3))
    return TrainingView(SimpleNamespace(folder=tmp_path, config=config))  # pyright: ignore[reportArgumentType]


def test_a_long_evaluation_logs_a_line_every_30_seconds(view, tmp_path, capsys, monkeypatch):
    now = [view.began]
    monkeypatch.setattr("dinocli.commands.train.view.time.monotonic", lambda: now[0])
    for done in range(1, 8):
        now[0] += 16
        view.show(Evaluating(done, 9))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["evaluating 2/9", "evaluating 4/9", "evaluating 6/9"]
    assert [line.split(maxsplit=2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == lines


def test_training_logs_a_line_every_50_steps_or_30_seconds(view, tmp_path, capsys, monkeypatch):
    now = [view.began]
    monkeypatch.setattr("dinocli.commands.train.view.time.monotonic", lambda: now[0])
    for step in range(7, 131):  # resumed after step 6
        now[0] += 31 if step in (20, 30) else 0.1
        view.show(Step(step, 2, 300, METRICS | {"lr": 2e-4}))
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["20", "30", "80", "130"]
    assert "epoch 2/3" in lines[0] and "img/s" in lines[0] and "rate 0.0002 · ETA " in lines[0]
    assert [line.split(maxsplit=2)[2] for line in lines] == capsys.readouterr().err.splitlines()


def test_the_log_and_the_curves_are_written_if_the_terminal_is_closed(view, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("dinocli.commands.train.view.stderr.print", fail)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "AP": 0.25, "AP50": 0.5, "AP75": 0.125}\n')
    summary = {"AP": 0.25, "AP50": 0.5, "AP75": 0.125}
    view.show(Evaluated(1, 1, 3, Metrics(summary, {}, 2, ""), True))
    assert "AP 0.2500" in (tmp_path / "log.txt").read_text() and (tmp_path / "curves.png").is_file()
