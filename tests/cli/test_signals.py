"""Signals during a training step, in worker processes, and while a command starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinocli.signals import StopRequest, ending_early

HANGUP = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_listening_ends_although_a_forked_loader_worker_still_lives():
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
    took = time.monotonic() - started
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert stop() == 143
    assert took < 10, "listening() waited for the child to exit"


@HANGUP
def test_a_hangup_that_nohup_ignores_ends_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_early() as ended:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not ended()
        with StopRequest().listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@HANGUP
@pytest.mark.parametrize(("number", "code"), [("SIGHUP", 129), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_work_that_can_end_early_hears_every_signal(number, code):
    number = getattr(signal, number)
    before = signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    try:
        with ending_early() as ended:
            os.kill(os.getpid(), number)
            assert ended() == code
    finally:
        signal.signal(number, before)


FAILS_WHILE_WORKERS_READ = """
from torch.utils.data import DataLoader
from dinocore.data.loaders import start_workers
from dinocore.system.parent import leave_signals_to_the_parent
batches = start_workers(DataLoader(range(10**6), num_workers=1, worker_init_fn=leave_signals_to_the_parent))
next(batches), next(batches)  # one of each worker
raise RuntimeError("a fault")
"""


@pytest.mark.slow
def test_a_program_that_fails_while_loader_workers_read_ends():
    done = subprocess.run(
        [sys.executable, "-i", "-c", FAILS_WHILE_WORKERS_READ],  # -i keeps the traceback alive, and thus the loader
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "a fault" in done.stderr


HANDS_AN_IMAGE_TO_A_PARENT_THAT_IS_GONE = """
import socket, time
from multiprocessing import resource_sharer
from dinocore.system.parent import leave_signals_to_the_parent
leave_signals_to_the_parent()
resource_sharer.DupFd(0)
for _ in range(3):
    parent = socket.socket(socket.AF_UNIX)
    parent.connect(resource_sharer._resource_sharer._address)
    time.sleep(0.1)  # it has sent its challenge
    parent.close()
time.sleep(0.3)
print("quiet so far")
raise RuntimeError("a fault of its own")
"""


@pytest.mark.skipif(os.name == "nt", reason="no sockets in files here")
def test_a_worker_whose_parent_was_killed_prints_nothing_of_the_lost_connection():
    command = [sys.executable, "-c", HANDS_AN_IMAGE_TO_A_PARENT_THAT_IS_GONE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == "quiet so far\n" and "Connection" not in done.stderr
    assert "a fault of its own" in done.stderr, "other exceptions are still printed"


IS_KILLED_WHILE_WORKERS_READ = """
import os, signal
import torch
from torch.utils.data import DataLoader
from dinocore.data.loaders import start_workers
from dinocore.system.parent import leave_signals_to_the_parent
images = [torch.zeros(3, 9, 9) for _ in range(10**4)]
batches = start_workers(DataLoader(images, num_workers=2, worker_init_fn=leave_signals_to_the_parent))
next(batches), next(batches)  # one of each worker
print(*(worker.pid for worker in batches._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid: str) -> bool:
    """Whether a process exists and is not a zombie; in a container, there may be no init process that reaps orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only there a worker learns that its parent is gone")
def test_the_workers_of_a_killed_program_end_without_a_word():
    command = [sys.executable, "-c", IS_KILLED_WHILE_WORKERS_READ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    workers = done.stdout.split()
    assert done.returncode == -signal.SIGKILL and len(workers) == 2 and done.stderr == ""
    end = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


IN_A_TERMINAL_THAT_GOES = """
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


@HANGUP
@pytest.mark.slow
def test_a_training_whose_terminal_goes_away_saves_says_so_in_its_log_and_ends(image_folder, settings, tmp_path):
    train = ["-m", "dinocli", "train", "--preset", "r50-4scale", "--data", image_folder, "--epochs", "50"]
    train += ["--output-dir", tmp_path / "run", *settings, "--set", "data.workers=1"]
    log = tmp_path / "run/metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", IN_A_TERMINAL_THAT_GOES, log, sys.executable, *map(str, train)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "129", done.stderr
    assert "the state is saved" in (tmp_path / "run/log.txt").read_text().splitlines()[-1]
    assert list(Path(tmp_path / "run/checkpoints").iterdir())


@pytest.mark.parametrize(("number", "message"), [("SIGINT", "press Ctrl-C again to"), ("SIGTERM", "press Ctrl-C to")])
def test_only_a_user_who_pressed_ctrl_c_is_asked_to_press_it_again(number, message, monkeypatch):
    warned = []
    monkeypatch.setattr("dinocli.signals._warn", warned.append)
    stop = StopRequest()
    stop.running = True
    stop._request_stop(getattr(signal, number))
    assert len(warned) == 1 and message in warned[0]


SCRIPT = """
import sys, tempfile, time
from dinocli import app
from dinocli.commands import presets

folder, sys.argv[1:] = sys.argv[1], ["presets"]

def work():
    with tempfile.TemporaryDirectory(dir=folder):
        print("begun", flush=True)
        try:
            time.sleep(60)
        except Exception:  # as code that goes on without a kernel that fails
            time.sleep(60)

presets.presets = work
app.console()
"""


def begun(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "begun\n"
    return process


@HANGUP
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_any_command_removes_what_is_unfinished_when_a_signal_ends_it(tmp_path, number, code):
    process = begun(SCRIPT, tmp_path)
    process.send_signal(getattr(signal, number))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code and errors == "error[INTERRUPTED]: interrupted\n"
    assert not list(tmp_path.iterdir())


SIGNAL_WHILE_IMPORTING = """
import signal, sys
from dinocli.__main__ import main

class Sends:
    def find_spec(self, name, *rest):
        if name == "{module}":
            sys.meta_path.remove(self)
            for _ in range({times}):
                signal.raise_signal(signal.{number})

sys.meta_path.insert(0, Sends())
sys.argv = ["dino", "presets"]
main()
"""


def interrupted_while_importing(module: str, number: str, times: int = 1) -> tuple[int, str]:
    script = SIGNAL_WHILE_IMPORTING.format(module=module, number=number, times=times)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == ""
    return done.returncode, done.stderr


@HANGUP
@pytest.mark.parametrize("module", ["typer", "rich.table"])
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_while_a_command_is_imported_ends_it_with_a_message(module, number, code):
    assert interrupted_while_importing(module, number) == (code, "error[INTERRUPTED]: interrupted\n")
    assert interrupted_while_importing("typer", number, times=2) == (code, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_dies_of_the_signal_without_a_word():
    script = "import os, time\nfrom dinocli.app import hear_signals\nhear_signals()\n"
    script += "ready, tell = os.pipe()\nchild = os.fork()\n"
    script += "if child == 0: os.write(tell, b'.'); time.sleep(60)\n"
    script += "os.read(ready, 1)\nos.kill(child, 15)\n"
    script += "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("-15\n", "")


SIGNAL_IN_THE_FIRST_COLLECTION = """
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


@HANGUP  # on Windows, os.kill terminates the process at once
def test_a_signal_while_python_collects_for_the_first_time_is_not_lost():
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_IN_THE_FIRST_COLLECTION], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("143\n", "")
