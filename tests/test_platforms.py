"""What Windows lacks is hidden; the modules are imported and their small parts are used as there."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
import filelock, torch.utils.data, torch.multiprocessing, torchvision  # these know what they need
for name in ("SIGUSR1", "SIGHUP", "SIGKILL", "pthread_sigmask"):
    delattr(signal, name)
del os.getuid
sys.modules["resource"] = sys.modules["fcntl"] = None

import dinocli.commands.check_data, dinocli.commands.predict, dinocli.commands.train, dinocore.train.loop
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
