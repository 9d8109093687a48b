"""Signals during a training step, in worker processes, and while a command starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinocli.signals import StopRequest, ending_early

NEEDS_SIGHUP = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_listening_ends_while_a_forked_loader_worker_is_running():
    stop = StopRequest()
    stop.running = True
    with stop.listening():
        child = os.fork()  # like a loader worker, it inherits all open file descriptors
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
    elapsed = time.monotonic() - started
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert stop() == 143
    assert elapsed < 10, "listening() waited for the child to exit"


@NEEDS_SIGHUP
def test_sighup_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_early() as exit_code:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not exit_code()
        with StopRequest().listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@NEEDS_SIGHUP
@pytest.mark.parametrize(("number", "code"), [("SIGHUP", 129), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_ending_early_gives_the_exit_code_of_each_signal(number, code):
    number = getattr(signal, number)
    before = signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    try:
        with ending_early() as exit_code:
            os.kill(os.getpid(), number)
            assert exit_code() == code
    finally:
        signal.signal(number, before)


FAILING_SCRIPT = """
from torch.utils.data import DataLoader
from dinocore.data.loaders import start_workers
from dinocore.system.parent import leave_signals_to_the_parent
batches = start_workers(DataLoader(range(10**6), num_workers=1, worker_init_fn=leave_signals_to_the_parent))
next(batches), next(batches)  # two batches of the only worker
raise RuntimeError("a fault")
"""


@pytest.mark.slow
def test_a_program_with_running_loader_workers_exits_after_an_error():
    result = subprocess.run(
        [sys.executable, "-i", "-c", FAILING_SCRIPT],  # -i keeps the traceback alive, and thus the loader
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "a fault" in result.stderr


LOST_PARENT_SCRIPT = """
import socket, time
from multiprocessing import resource_sharer
from dinocore.system.parent import leave_signals_to_the_parent
leave_signals_to_the_parent()
resource_sharer.DupFd(0)
for _ in range(3):
    parent = socket.socket(socket.AF_UNIX)
    parent.connect(resource_sharer._resource_sharer._address)
    time.sleep(0.1)  # the worker has sent its challenge
    parent.close()
time.sleep(0.3)
print("quiet so far")
raise RuntimeError("a fault of its own")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs Unix domain sockets")
def test_a_worker_whose_parent_was_killed_prints_no_connection_errors():
    command = [sys.executable, "-c", LOST_PARENT_SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.stdout == "quiet so far\n" and "Connection" not in result.stderr
    assert "a fault of its own" in result.stderr, "other exceptions are still printed"


KILLED_SCRIPT = """
import os, signal
import torch
from torch.utils.data import DataLoader
from dinocore.data.loaders import start_workers
from dinocore.system.parent import leave_signals_to_the_parent
images = [torch.zeros(3, 9, 9) for _ in range(10**4)]
batches = start_workers(DataLoader(images, num_workers=2, worker_init_fn=leave_signals_to_the_parent))
next(batches), next(batches)  # one batch of each worker
print(*(worker.pid for worker in batches._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid: str) -> bool:
    """Whether a process exists and is not a zombie; in a container, there may be no init process that reaps orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent death signal of Linux")
def test_the_workers_of_a_killed_program_exit_silently():
    command = [sys.executable, "-c", KILLED_SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    workers = result.stdout.split()
    assert result.returncode == -signal.SIGKILL and len(workers) == 2 and result.stderr == ""
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


CLOSED_TERMINAL_SCRIPT = """
import os, pty, signal, sys
from pathlib import Path
log, *command = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    os.execv(command[0], command)
while not Path(log).is_file() or not Path(log).stat().st_size:
    os.read(terminal, 65536)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@NEEDS_SIGHUP
@pytest.mark.slow
def test_training_saves_its_state_and_exits_when_its_terminal_is_closed(image_folder, settings, tmp_path):
    train = ["-m", "dinocli", "train", "--preset", "r50-4scale", "--data", image_folder, "--epochs", "50"]
    train += ["--output-dir", tmp_path / "run", *settings, "--set", "data.workers=1"]
    log = tmp_path / "run/metrics.jsonl"
    result = subprocess.run(
        [sys.executable, "-c", CLOSED_TERMINAL_SCRIPT, log, sys.executable, *map(str, train)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.stdout.strip() == "129", result.stderr
    assert "the state is saved" in (tmp_path / "run/log.txt").read_text().splitlines()[-1]
    assert list(Path(tmp_path / "run/checkpoints").iterdir())


@pytest.mark.parametrize(("number", "message"), [("SIGINT", "press Ctrl-C again to"), ("SIGTERM", "press Ctrl-C to")])
def test_only_sigint_suggests_pressing_ctrl_c_again(number, message, monkeypatch):
    warned = []
    monkeypatch.setattr("dinocli.signals._warn", warned.append)
    stop = StopRequest()
    stop.running = True
    stop._request_stop(getattr(signal, number))
    assert len(warned) == 1 and message in warned[0]


SLEEPING_SCRIPT = """
import sys, tempfile, time
from dinocli import app
from dinocli.commands import presets

folder, sys.argv[1:] = sys.argv[1], ["presets"]

def work():
    with tempfile.TemporaryDirectory(dir=folder):
        print("started", flush=True)
        try:
            time.sleep(60)
        except Exception:  # like code that falls back to another kernel after an error
            time.sleep(60)

presets.presets = work
app.console()
"""


def start_script(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "started\n"
    return process


@NEEDS_SIGHUP
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_ended_by_a_signal_removes_its_temporary_files(tmp_path, number, code):
    process = start_script(SLEEPING_SCRIPT, tmp_path)
    process.send_signal(getattr(signal, number))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code and errors == "error[INTERRUPTED]: interrupted\n"
    assert not list(tmp_path.iterdir())


IMPORT_SCRIPT = """
import signal, sys
from dinocli.__main__ import main

class SendSignal:
    def find_spec(self, name, *rest):
        if name == "{module}":
            sys.meta_path.remove(self)
            for _ in range({times}):
                signal.raise_signal(signal.{number})

sys.meta_path.insert(0, SendSignal())
sys.argv = ["dino", "presets"]
main()
"""


def interrupt_import(module: str, number: str, times: int = 1) -> tuple[int, str]:
    script = IMPORT_SCRIPT.format(module=module, number=number, times=times)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert result.stdout == ""
    return result.returncode, result.stderr


@NEEDS_SIGHUP
@pytest.mark.parametrize("module", ["typer", "rich.table"])
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_during_an_import_ends_the_command_with_a_message(module, number, code):
    assert interrupt_import(module, number) == (code, "error[INTERRUPTED]: interrupted\n")
    assert interrupt_import("typer", number, times=2) == (code, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_is_killed_silently_by_a_signal():
    script = "import os, time\nfrom dinocli.app import hear_signals\nhear_signals()\n"
    script += "read_end, write_end = os.pipe()\nchild = os.fork()\n"
    script += "if child == 0: os.write(write_end, b'.'); time.sleep(60)\n"
    script += "os.read(read_end, 1)\nos.kill(child, 15)\n"
    script += "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (result.stdout, result.stderr) == ("-15\n", "")


COLLECTION_SCRIPT = """
import gc, os, signal, time
from dinocli import app, start
start.resume_collection = lambda: os.kill(os.getpid(), signal.SIGTERM)
app.hear_signals()
start.defer_collection()
try:
    gc.collect()
    time.sleep(30)
except KeyboardInterrupt as signalled:
    print(signalled.args[0], flush=True)
    os._exit(0)
"""


@NEEDS_SIGHUP  # on Windows, os.kill terminates the process at once
def test_a_signal_during_the_first_garbage_collection_is_not_lost():
    result = subprocess.run([sys.executable, "-c", COLLECTION_SCRIPT], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("143\n", "")
