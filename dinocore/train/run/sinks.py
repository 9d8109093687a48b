"""Where else metrics go, each in a thread of its own: slow, blocked or failing, it costs the training nothing."""

import importlib.util
import queue
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ...config import TrainConfig

MAX_WAITING = 1000  # lines that may wait for a slow sink
PATIENCE = 1.0  # seconds that the end of a run waits for it


class Sink(Protocol):
    """Where lines go; may be slow and may raise anything."""

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class BackgroundWriter:
    """A sink in a thread of its own. After its first failure it gets nothing more."""

    def __init__(self, name: str, make: Callable[[], Sink]):
        self.name = name
        self.rows: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self.message = ""
        self.failed = False
        self.thread = threading.Thread(target=self._work, args=(make,), daemon=True, name=name)
        self.thread.start()

    def add(self, row: dict[str, Any]) -> None:
        """Never waits; while the sink is that slow, lines are lost."""
        if self.failed:
            return
        try:
            self.rows.put_nowait(row)
        except queue.Full:
            self.message = f"{self.name} is too slow; it misses lines that metrics.jsonl has"

    def problem(self) -> str:
        """What went wrong since it was last asked."""
        message, self.message = self.message, ""
        return message

    def close(self) -> None:
        """Let it finish, if it can do so soon."""
        if not self.failed:
            try:
                self.rows.put_nowait(None)
            except queue.Full:
                return
            self.thread.join(PATIENCE)

    def _work(self, make: Callable[[], Sink]) -> None:
        try:
            sink = make()
            while (row := self.rows.get()) is not None:
                sink.write(row)
            sink.close()
        except Exception as error:  # of whatever kind: it is not ours
            self.failed = True
            self.message = f"{self.name} failed ({type(error).__name__}: {error}) and gets no more lines"


class TensorBoard:
    """Event files in RUN/tensorboard, as scalars `train/…` and `eval/…`."""

    def __init__(self, writer_class: Any, folder: Path, step: int):
        """
        Args:
            step: what earlier files hold of later steps is void.
        """
        self.writer = writer_class(str(folder), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        kind = "train" if "loss" in row else "eval"
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(f"{kind}/{name}", value, row["step"])

    def close(self) -> None:
        """Write the rest."""
        self.writer.close()


def sinks(run: Path, config: TrainConfig, step: int) -> list[BackgroundWriter]:
    """Those that are configured and installed."""
    if config.tensorboard == "off" or importlib.util.find_spec("tensorboard") is None:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        from torch.utils.tensorboard.writer import SummaryWriter  # here: a fork while a thread imports may hang
    return [BackgroundWriter("TensorBoard", lambda: TensorBoard(SummaryWriter, run / "tensorboard", step))]
