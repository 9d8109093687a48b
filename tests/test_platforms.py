"""What Windows lacks is hidden; the modules are imported and their small parts are used as there."""

import subprocess
import sys

import pytest

SCRIPT = """
import importlib, os, pkgutil, signal, sys
import filelock, torch.utils.data, torch.multiprocessing, torchvision  # these know what they need
import torch.distributed.elastic.agent.server.local_elastic_agent, torch.distributed.elastic.multiprocessing
import uvicorn.main, onnxruntime, openvino, av, trackers, hotcoco, pycocotools.cocoeval  # as do these
for name in (
    "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGSTOP", "SIGCONT",
    "pthread_sigmask", "pthread_kill", "sigwait", "alarm", "setitimer",
):
    delattr(signal, name)
for name in (
    "getuid", "geteuid", "getpgid", "killpg", "fork", "register_at_fork", "sched_getaffinity", "mkfifo", "statvfs",
):
    delattr(os, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None

import dinocli, dinocore
names = [m.name for p in (dinocli, dinocore) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
for name in names:
    if name not in ("dinocli.__main__", "dinocore.model.ops.triton"):  # runs the app; there is no Triton on a CPU
        importlib.import_module(name)
assert len(names) > 150
from dinocli.signals import EXIT_CODES, StopRequest
from dinocore.data.dataset import open_dataset
from dinocore.data.loaders import start_workers
from dinocore.system.memory import peak_memory_mb
from dinocore.system.parent import leave_signals_to_the_parent

assert sorted(EXIT_CODES.values()) == [130, 143]
with StopRequest().listening():
    assert next(iter(start_workers(torch.utils.data.DataLoader([1])))) == 1
leave_signals_to_the_parent()
assert peak_memory_mb() == 0.0  # it asks kernel32, which is not here
print("all right")
"""


@pytest.mark.slow
def test_training_prediction_and_checks_do_without_what_windows_lacks():
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ended.stdout == "all right\n", ended.stderr
