"""Modules and commands work without the features that Windows lacks, which are hidden here."""

import subprocess
import sys

import pytest

from dinocore.data.synthetic.sample import write_sample_data

HIDE = """
import importlib, os, pkgutil, signal, sys
import filelock, torch.utils.data, torch.multiprocessing, torchvision  # imported before their features are hidden
import torch.distributed.elastic.agent.server.local_elastic_agent, torch.distributed.elastic.multiprocessing
import uvicorn.main, onnxruntime, openvino, av, trackers, hotcoco, pycocotools.cocoeval  # likewise
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
"""

SCRIPT = """
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
assert peak_memory_mb() == 0.0  # it calls kernel32, which exists only on Windows
print("ok")
"""


@pytest.mark.slow
def test_modules_work_without_features_that_windows_lacks():
    result = subprocess.run([sys.executable, "-c", HIDE + SCRIPT], capture_output=True, text=True)
    assert result.stdout == "ok\n", result.stderr


RUN = """
import posix
os.statvfs = posix.statvfs  # on Windows, shutil.disk_usage does not need it
from dinocli.app import main
sys.argv = ["dino", *sys.argv[1:]]
main()
"""
SMALL = [
    "model.backbone=timm/test_resnet", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=30", "model.num_encoder_layers=1", "model.num_decoder_layers=1",
    "data.train_scales=[48]", "data.max_size=96", "data.eval_scale=64", "data.workers=0", "train.trackers=off",
]  # fmt: skip


@pytest.mark.slow
def test_commands_work_without_features_that_windows_lacks(tmp_path):
    write_sample_data(tmp_path / "data", num_images=5, seed=1, size=(80, 64))
    train = ["train", "--preset", "r50-4scale", "--data", "data", "--epochs", "1", "--output-dir", "run"]
    train += [part for setting in SMALL for part in ("--set", setting)]
    predict = ["predict", "data/val2017", "--weights", "run", "--out", "boxes.json", "--threshold", "0"]
    for command in (
        ["check-data", "data", "--decode"],
        [*train, "--dry-run"],
        train,
        predict,
        ["eval", "--weights", "run"],
    ):
        result = subprocess.run(
            [sys.executable, "-c", HIDE + RUN, *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, (command, result.stderr)
    assert (tmp_path / "boxes.json").is_file() and (tmp_path / "run/report.html").is_file()
