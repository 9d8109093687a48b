"""Trackers in `train.trackers`: offline, resumed, missing, broken and slow."""

import importlib.util
import json
import struct
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from dinocore import load_config
from dinocore.errors import ConfigError, EnvironmentFault
from dinocore.system.extras import install_line
from dinocore.train.events import Started
from dinocore.train.run.metrics_log import MetricsLog, MetricsLogger
from dinocore.train.run.sinks import BackgroundWriter, check_trackers, sinks
from dinocore.train.state import Progress

pytestmark = pytest.mark.filterwarnings("ignore")  # from the trackers' dependencies

STEPS = [{"step": step, "epoch": 1, "loss": 4.0 - step, "matching/box": 0.5, "layer": "neck"} for step in (1, 2, 3)]
EVALUATION = {"step": 3, "epoch": 1, "AP": 0.25, "backend": "pycocotools"}


def log_all(run, tracker, rows, step=0, completed=True):
    """Log rows to one tracker, like a run that starts after `step`, and return the messages."""
    writers = sinks(run, load_config("tiny", [f"train.trackers={tracker}"]), step)
    logger = MetricsLogger(MetricsLog(run, Progress()), writers)
    messages = [text for row in rows for text in logger.add(row)]
    logger.close(completed)
    return messages + list(logger.problems())


@pytest.fixture(params=["folder", pytest.param("sqlite", marks=pytest.mark.slow)])
def mlflow_client(request, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uris = {"folder": (tmp_path / "mlruns").as_uri(), "sqlite": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uris[request.param])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(None)  # forget an earlier test's URI
    return mlflow.MlflowClient()


def mlflow_runs(client):
    (experiment,) = [entry for entry in client.search_experiments() if entry.name == "dino"]
    return client.search_runs([experiment.experiment_id])


def test_mlflow_gets_settings_steps_and_evaluations(tmp_path, mlflow_client):
    run = tmp_path / "mine"
    run.mkdir()
    assert log_all(run, "mlflow", [*STEPS, EVALUATION]) == []
    (mlflow_run,) = mlflow_runs(mlflow_client)
    assert mlflow_run.info.run_name == "mine" and mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["model.num_queries"] == str(load_config("tiny").model.num_queries)
    losses = mlflow_client.get_metric_history(mlflow_run.info.run_id, "train/loss")
    assert [(entry.step, entry.value) for entry in losses] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert mlflow_run.data.metrics["eval/AP"] == 0.25 and mlflow_run.data.metrics["train/matching/box"] == 0.5


def test_a_resumed_training_continues_its_mlflow_run_and_a_new_one_does_not(tmp_path, mlflow_client):
    assert log_all(tmp_path, "mlflow", STEPS[:1], completed=False) == []
    assert [mlflow_run.info.status for mlflow_run in mlflow_runs(mlflow_client)] == ["KILLED"]
    assert log_all(tmp_path, "mlflow", STEPS[1:], step=1) == []
    (mlflow_run,) = mlflow_runs(mlflow_client)
    assert len(mlflow_client.get_metric_history(mlflow_run.info.run_id, "train/loss")) == 3
    assert log_all(tmp_path, "mlflow", STEPS) == []
    assert len(mlflow_runs(mlflow_client)) == 2


def wandb_records(file):
    """The records of a W&B session, stored for upload: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, position, fragments = file.read_bytes(), 7, b""
    while position < len(content):
        if 32768 - position % 32768 < 7:  # the end of a block, too short for a header
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        fragments += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # complete, or the last fragment
            record = wandb_internal_pb2.Record()
            record.ParseFromString(fragments)
            yield record
            fragments = b""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    module = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    module.teardown()  # makes W&B read the environment again
    yield module
    module.teardown()


def test_wandb_offline_stores_settings_and_rows_in_the_folder_of_the_run(tmp_path, wandb, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "mine"
    run.mkdir()
    assert log_all(run, "wandb", [*STEPS, EVALUATION]) == []
    assert "URL not available" not in capfd.readouterr().err
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    deadline, records = time.monotonic() + 30, list(wandb_records(file))
    while not any(record.WhichOneof("record_type") == "exit" for record in records) and time.monotonic() < deadline:
        time.sleep(0.1)  # W&B's own process writes the file
        records = list(wandb_records(file))
    (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (started.display_name, started.project) == ("mine", "dino")
    assert "model" in [item.key for item in started.config.update]
    lines = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    values = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in line.item} for line in lines
    ]
    assert [(line["step"], line["train/loss"]) for line in values[:3]] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert values[3]["eval/AP"] == 0.25 and "train/layer" not in values[0]
    name = (run / "wandb" / "run-id").read_text()
    assert started.run_id == name


def test_trackers_may_be_given_in_any_common_list_syntax():
    def trackers(text):
        return load_config("tiny", [f"train.trackers={text}"]).train.trackers

    assert trackers("wandb") == trackers('"wandb"') == trackers('["wandb"]') == ("wandb",)
    assert trackers("wandb, mlflow") == ("wandb", "mlflow") and trackers("off") == trackers("[]") == ()
    with pytest.raises(ConfigError, match=r"train.trackers\[0\]` = 'neptune' cannot be used; it must be 'auto'"):
        trackers("neptune")
    with pytest.warns(FutureWarning, match=r"train\.tensorboard is now called train\.trackers"):
        assert load_config("tiny", ["train.tensorboard=off"]).train.trackers == ()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_reported_before_any_work(name, dino, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    result = dino("train", "--set", f"train.trackers={name}", "--output-dir", tmp_path / "run")
    assert result.code == 5 and not (tmp_path / "run").exists()
    assert install_line(name).replace(" ", "") in "".join(result.err.split())
    assert sinks(tmp_path, load_config("tiny", ["train.trackers=off"]), 0) == []


def test_wandb_without_a_login_is_reported_before_any_work_without_a_prompt(wandb, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(EnvironmentFault, match="you are not logged in to W&B; wandb login, or WANDB_MODE=offline"):
        check_trackers(load_config("tiny", ["train.trackers=wandb"]).train)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("WANDB_API_KEY", "short", "API key must have"), ("WANDB_MODE", "ofline", "Input should be 'online', 'offline'")],
)
def test_wandbs_own_errors_are_reported_in_one_line_before_any_work(wandb, monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    with pytest.raises(EnvironmentFault) as caught:
        check_trackers(load_config("tiny", ["train.trackers=wandb"]).train)
    message = str(caught.value)
    assert expected in message and "\n" not in message and "errors.pydantic.dev" not in message
    assert caught.value.fix.startswith("wandb login --relogin, or WANDB_MODE=offline")


@pytest.fixture
def broken_tensorboard(tmp_path, monkeypatch):
    """An installed TensorBoard whose import fails because of a dependency."""
    (tmp_path / "site/tensorboard").mkdir(parents=True)
    (tmp_path / "site/tensorboard/__init__.py").write_text("raise TypeError('descriptors cannot be created directly')")
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")


def test_a_requested_tracker_that_cannot_be_imported_is_reported_before_any_work(broken_tensorboard, dino, tmp_path):
    result = dino("train", "--set", "train.trackers=tensorboard", "--output-dir", tmp_path / "run")
    assert result.code == 5 and not (tmp_path / "run").exists()
    assert "`tensorboard` cannot be imported (TypeError: descriptors cannot" in " ".join(result.err.split())


def test_an_automatic_tracker_that_cannot_be_imported_only_causes_a_warning(broken_tensorboard, tmp_path):
    (message,) = log_all(tmp_path, "auto", STEPS)
    assert message.startswith("TensorBoard failed (TypeError: descriptors cannot be created directly)")


def test_a_tracker_that_never_connected_is_reported_as_such(tmp_path):
    never_set = threading.Event()
    writer = BackgroundWriter("Far", lambda: never_set.wait(60), patience=0.2)
    logger = MetricsLogger(MetricsLog(tmp_path, Progress()), [writer])
    assert list(logger.add(STEPS[0])) == []
    logger.close()
    assert list(logger.problems()) == ["Far has not connected after 0 s; it may miss this run's lines"]
    never_set.set()


def test_a_tracker_that_does_not_finish_is_abandoned_and_reported():
    never_set = threading.Event()
    sink = SimpleNamespace(place="http://far", write=lambda row: None, close=lambda completed: never_set.wait(60))
    writer = BackgroundWriter("Far", lambda: sink, patience=0.2)
    assert writer.started.wait(5) and str(writer) == "Far (http://far)"
    writer.add({"step": 1})
    writer.close()
    assert writer.problem() == "Far did not finish after 0 s; it may miss the last lines"
    never_set.set()


def test_a_tracker_that_cannot_connect_is_reported_before_the_first_step(small_config, start, monkeypatch):
    pytest.importorskip("mlflow")
    from dinocore.train.loop import train

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://server")
    events = train(*start(small_config("train.trackers=mlflow", "train.epochs=1")))
    started, warned = next(events), next(events)
    events.close()
    assert isinstance(started, Started) and started.facts["trackers"] == "MLflow (not there)"
    assert warned.message.startswith("MLflow failed (") and warned.message.endswith("the run continues")


def test_auto_is_tensorboard_if_it_is_installed(tmp_path):
    names = [writer.name for writer in sinks(tmp_path, load_config("tiny"), 0)]
    assert names == (["TensorBoard"] if importlib.util.find_spec("tensorboard") else [])
