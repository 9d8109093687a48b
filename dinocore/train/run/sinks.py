"""Experiment trackers, each written to in its own thread, so that slow or failing ones do not affect training."""

import importlib
import importlib.util
import logging
import os
import queue
import re
import secrets
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...config import Config, TrainConfig
from ...errors import EnvironmentFault
from ...settings import flat_settings
from ...system.extras import install_line
from ...system.files import write_text

MAX_WAITING = 1000  # rows that may be queued for a slow sink
PATIENCE = 1.0  # seconds to wait for a sink at the end of a run
PATIENCE_FOR_UPLOADS = 30.0  # the same for sinks that upload
TIME_TO_START = 10.0  # seconds to wait for trackers to connect before the first step


class Sink(Protocol):
    """A destination for rows; it may be slow and raise any exception."""

    place: str  # a folder or URL, to show to the user

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self, completed: bool) -> None: ...


class RowWriter(ABC):
    """Receives every row of the log."""

    message = ""  # of a failure that has not been reported yet

    @abstractmethod
    def add(self, row: dict[str, Any]) -> None:
        """Write one row."""

    def problem(self) -> str:
        """The message of a failure since the last call; empty if there was none."""
        message, self.message = self.message, ""
        return message

    @abstractmethod
    def close(self, completed: bool = True) -> None:
        """End the run; `completed` is False if an error or a signal ended it."""


class BackgroundWriter(RowWriter):
    """Runs a sink in its own thread. After its first failure the sink receives no more rows."""

    def __init__(self, name: str, make: Callable[[], Sink], patience: float = PATIENCE):
        """
        Args:
            patience: seconds to wait for the sink to finish at the end of the run.
        """
        self.name, self.patience = name, patience
        self.rows: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self.place = ""
        self.failed = self.completed = False
        self.started = threading.Event()  # set when the sink has started or failed
        self.thread = threading.Thread(target=self._work, args=(make,), daemon=True, name=name)
        self.thread.start()

    def add(self, row: dict[str, Any]) -> None:
        """Queue a row without blocking; if the queue is full, the row is lost."""
        if self.failed:
            return
        try:
            self.rows.put_nowait(row)
        except queue.Full:
            self.message = f"{self.name} is too slow and misses lines of metrics.jsonl"

    def close(self, completed: bool = True) -> None:
        """Wait for the sink to finish, at most `patience` seconds."""
        if self.failed:
            return
        self.completed = completed
        try:
            self.rows.put_nowait(None)
        except queue.Full:
            return
        self.thread.join(self.patience)
        if self.thread.is_alive():
            what = "did not finish" if self.started.is_set() else "has not connected"
            missing = "may miss the last lines" if self.started.is_set() else "may miss this run's lines"
            self.message = f"{self.name} {what} after {self.patience:.0f} s; it {missing}"

    def __str__(self) -> str:
        state = self.place or ("not there" if self.failed else "connecting")
        return f"{self.name} ({state})"

    def _work(self, make: Callable[[], Sink]) -> None:
        try:
            sink = make()
            self.place = sink.place
            self.started.set()
            while (row := self.rows.get()) is not None:
                sink.write(row)
            sink.close(self.completed)
        except Exception as error:  # of any kind: it is other people's code
            self.failed = True
            self.message = f"{self.name} failed ({_reason(error)}) and is switched off"
            self.started.set()


class TensorBoard:
    """Writes scalars `train/…` and `eval/…` to event files in RUN/tensorboard."""

    def __init__(self, writer_class: Any, folder: Path, step: int):
        """
        Args:
            step: later steps in existing event files are discarded.
        """
        self.place = str(folder)
        self.writer = writer_class(str(folder), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Log one row of metrics.jsonl."""
        for name, value in _numbers(row).items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self, completed: bool) -> None:
        """Flush and close the event file."""
        self.writer.close()


class WandB:
    """A Weights & Biases run, resumed along with the training; W&B's environment variables set project and mode."""

    def __init__(self, wandb: Any, run: Path, config: Config, resumed: bool):
        """
        Args:
            wandb: the module.
            resumed: continue the W&B run whose id is in the run folder.
        """
        file = run / "wandb" / "run-id"
        name = file.read_text(encoding="utf-8") if resumed and file.is_file() else secrets.token_hex(4)
        write_text(file, name)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.resolve().name),
            id=name,
            resume="allow",
            dir=str(run),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),  # keep the terminal for our own output
        )
        local = "switched off" if self.run.disabled else f"offline, in {run / 'wandb'}"
        self.place = local if self.run.offline or self.run.disabled else self.run.url or "online"
        self.run.define_metric("*", step_metric="step")  # a resumed run logs some steps again

    def write(self, row: dict[str, Any]) -> None:
        """Log one row of metrics.jsonl."""
        self.run.log({"step": row["step"], **_numbers(row)})

    def close(self, completed: bool) -> None:
        """Wait until everything is saved or uploaded."""
        self.run.finish(exit_code=0 if completed else 1)


class MLflow:
    """An MLflow run, resumed along with the training; MLflow's environment variables set server and experiment."""

    def __init__(self, mlflow: Any, run: Path, config: Config, resumed: bool):
        """
        Args:
            mlflow: the module.
            resumed: continue the MLflow run whose id is in the run folder.
        """
        self.entities = mlflow.entities
        self.client = mlflow.MlflowClient()
        self.place = mlflow.get_tracking_uri()
        file = run / "mlflow" / "run-id"
        if resumed and file.is_file():
            self.id = file.read_text(encoding="utf-8")
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(self._experiment(), run_name=run.resolve().name).info.run_id
        write_text(file, self.id)
        values = flat_settings(config.model_dump(mode="json"))
        settings = [mlflow.entities.Param(key, str(value)[:500]) for key, value in values]
        for start in range(0, len(settings), 100):  # the maximum per request
            self.client.log_batch(self.id, params=settings[start : start + 100])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def write(self, row: dict[str, Any]) -> None:
        """Log one row of metrics.jsonl."""
        now, metric = round(time.time() * 1000), self.entities.Metric
        # replace characters that MLflow does not allow in names
        values = [
            metric(re.sub(r"[^\w\-. /]", "_", key), value, now, row["step"]) for key, value in _numbers(row).items()
        ]
        self.client.log_batch(self.id, metrics=values)

    def close(self, completed: bool) -> None:
        """Set the run's final status."""
        self.client.set_terminated(self.id, "FINISHED" if completed else "KILLED")


class Tracker(NamedTuple):
    """A tracker that can be used in `train.trackers`."""

    title: str
    package: str  # also the name of the extra that installs it
    module: str  # to import
    patience: float = PATIENCE


TRACKERS = {
    "tensorboard": Tracker("TensorBoard", "tensorboard", "torch.utils.tensorboard.writer"),
    "wandb": Tracker("W&B", "wandb", "wandb", PATIENCE_FOR_UPLOADS),
    "mlflow": Tracker("MLflow", "mlflow", "mlflow", PATIENCE_FOR_UPLOADS),
}
FOLDERS = tuple(TRACKERS)  # each tracker's folder inside the run folder
PROJECT = "dino"  # the project in W&B, the experiment in MLflow


def check_trackers(config: TrainConfig) -> None:
    """Check before any work that the requested trackers can be used.

    Raises:
        EnvironmentFault: a package is not installed or cannot be imported, or the user is not logged in to W&B.
    """
    for key in config.trackers:
        tracker = TRACKERS.get(key)
        if tracker and importlib.util.find_spec(tracker.package) is None:
            raise EnvironmentFault(
                f"train.trackers has {key}, but the package `{tracker.package}` is not installed",
                fix=f"{install_line(key)}, or --set train.trackers=auto",
            )
        if tracker:
            try:
                _imported(tracker.module)
            except Exception as error:  # of any kind, such as from an incompatible dependency
                raise EnvironmentFault(
                    f"train.trackers has {key}, but `{tracker.package}` cannot be imported ({_reason(error)})",
                    fix=f"pip install --upgrade {tracker.package}, or --set train.trackers=off",
                ) from error
    if "wandb" in config.trackers:
        _check_login(_imported("wandb"))


def _check_login(wandb: Any) -> None:
    offline = "WANDB_MODE=offline to keep the run in its folder and `wandb sync` it later"
    try:
        online = wandb.setup().settings.mode in ("online", "shared")
        logged_in = not online or wandb.login(prompt=False, verify=False)
    except Exception as error:  # of any kind: it is other people's code
        message = f"train.trackers has wandb, but W&B cannot start ({_reason(error)})"
        raise EnvironmentFault(message, fix=f"wandb login --relogin, or {offline}") from error
    if not logged_in:
        message = "train.trackers has wandb, but you are not logged in to W&B"
        raise EnvironmentFault(message, fix=f"wandb login, or {offline}")


def sinks(run: Path, config: Config, step: int) -> list[BackgroundWriter]:
    """Start the trackers in `train.trackers`; `auto` is TensorBoard if it is installed.

    Args:
        run: the run folder.
        step: number of steps done so far.

    Raises:
        EnvironmentFault: as for `check_trackers`.
    """
    check_trackers(config.train)
    names = list(dict.fromkeys(_named(config.train.trackers)))
    with _quiet():  # import in this thread: a fork while another thread imports may hang
        makers = [(TRACKERS[name], _maker(name, run, config, step)) for name in names]
    writers = [BackgroundWriter(tracker.title, make, tracker.patience) for tracker, make in makers]
    end = time.monotonic() + TIME_TO_START
    for writer in writers:  # wait, for the same reason: they import more when they connect
        writer.started.wait(max(0.0, end - time.monotonic()))
    return writers


def _named(trackers: tuple[str, ...]) -> Iterator[str]:
    for key in trackers:
        if key != "auto":
            yield key
        elif importlib.util.find_spec("tensorboard") is not None:
            yield "tensorboard"


def _maker(name: str, run: Path, config: Config, step: int) -> Callable[[], Sink]:
    try:
        module = _imported(TRACKERS[name].module)
    except Exception as error:  # only for `auto`: `check_trackers` has checked those given by name
        return partial(_raise, error)
    if name == "tensorboard":
        return lambda: TensorBoard(module.SummaryWriter, run / "tensorboard", step)
    if name == "mlflow" and "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # keep the terminal for our own output
    kind = {"wandb": WandB, "mlflow": MLflow}[name]
    return lambda: kind(module, run, config, step > 0)


def _raise(error: Exception) -> Sink:
    raise error


def _imported(name: str) -> Any:
    with _quiet():
        return importlib.import_module(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings from the trackers' dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception) -> str:
    """A one-line message for another package's error; for pydantic's, without the value and the URL."""
    return f"{type(error).__name__}: {' '.join(str(error).partition(' [type=')[0].split())[:300]}"


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a row of metrics.jsonl, with names such as `train/loss` and `eval/AP`."""
    kind = "eval" if "AP" in row else "train"
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    return {f"{kind}/{name}": float(value) for name, value in numbers.items()}
