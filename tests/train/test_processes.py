"""`dino train` in separate processes, on one and two ranks: stopped by signals, killed and resumed."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinocore.data.synthetic.sample import write_sample_data
from dinocore.train.run.checkpoint_folder import list_checkpoints, step_of

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = [
    "model.backbone=timm/test_resnet", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2",
    "model.denoising.num_pairs=20", "model.dropout=0.1", "data.train_scales=[48,64]", "data.max_size=96",
    "data.eval_scale=64", "data.workers=0", "train.batch_size=4", "train.epochs=5", "train.ema_decay=0.9",
    "train.micro_batch_size=1", "train.amp=off", "train.trackers=off", "train.save_every_steps=3",
]  # fmt: skip
PER_EPOCH, STEPS = 9, 45
DINO = [sys.executable, "-m", "dinocli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]  # same as `torchrun`


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of the commands, with images in `data`."""
    folder = tmp_path_factory.mktemp("processes")
    write_sample_data(folder / "data", num_images=45, seed=3, size=(80, 64))
    return folder


@pytest.fixture
def launch(folder):
    """A function that starts a training command; processes left by a failed test are killed."""
    started = []

    def make(run, *arguments, launcher=DINO, new=True):
        preset = ["--preset", "r50-4scale", "--data", "data", "--output-dir", run] if new else []
        settings = [part for setting in SETTINGS for part in ("--set", setting)] if new else []
        command = [*launcher, "train", "--device", "cpu", *preset, *settings, *arguments]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield make
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def wait_for_exit(process, code, within=600.0):
    """Wait for a process, check its exit code, and return its messages."""
    _, messages = process.communicate(timeout=within)
    assert process.returncode == code, messages
    assert "Traceback" not in messages
    return " ".join(messages.split())


def wait_for_step(run, step, process):
    """Wait until a run has logged this step."""
    deadline, log = time.monotonic() + 300, run / "metrics.jsonl"
    while not log.is_file() or log.read_text().count('"loss"') < step:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.002)


def pid_of_rank(process, rank):
    """The process id of a launcher's child with this rank."""
    for entry in Path("/proc").iterdir():
        child = entry.name.isdigit() and f"PPid:\t{process.pid}\n" in _read(entry / "status")
        if child and f"\0RANK={rank}\0" in _read(entry / "environ"):
            return int(entry.name)
    raise AssertionError(f"{process.args} has no process {rank}")


def _read(file):
    try:
        return "\0" + file.read_text() + "\0"
    except OSError:
        return ""


def check_equal(outcome, uninterrupted, run):
    assert outcome(uninterrupted) == outcome(run)
    assert [row["step"] for row in outcome(run)[2] if "loss" in row] == list(range(1, STEPS + 1))


def test_a_run_resumed_after_sigterm_and_sigkill_equals_an_uninterrupted_run(launch, folder, outcome):
    wait_for_exit(launch("uninterrupted"), 0)
    process = launch("stopped")
    wait_for_step(folder / "stopped", 11, process)
    process.send_signal(signal.SIGTERM)
    assert "the state is saved; continue with: dino train --resume stopped" in wait_for_exit(process, 143)
    step = step_of(list_checkpoints(folder / "stopped" / "checkpoints")[-1])
    assert 11 <= step < 2 * PER_EPOCH, "it was stopped mid-epoch"
    process = launch("stopped", "--resume", "auto", "--output-dir", "stopped", new=False)
    wait_for_step(folder / "stopped", 30, process)
    process.kill()  # after it was resumed
    process.communicate()
    assert "was killed" in wait_for_exit(launch("stopped", "--resume", "auto", "--output-dir", "stopped", new=False), 0)
    check_equal(outcome, folder / "uninterrupted", folder / "stopped")


def test_a_second_sigint_exits_at_once(launch, folder):
    """A step takes long: 36 large images, one at a time."""
    slow_settings = ("train.batch_size=36", "data.train_scales=[480]", "data.max_size=480")
    process = launch("twice", *(part for setting in slow_settings for part in ("--set", setting)))
    while "steps" not in process.stderr.readline():  # printed just before the first step
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    while "press Ctrl-C again" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    assert process.poll() is None, "the first SIGINT waits for the step"
    start_time = time.monotonic()
    process.send_signal(signal.SIGINT)
    wait_for_exit(process, 130, within=10)
    assert time.monotonic() - start_time < 2 and not list_checkpoints(folder / "twice" / "checkpoints")


def test_two_ranks_stopped_and_resumed_equal_an_uninterrupted_run(launch, folder, outcome):
    """The uninterrupted run is started by torchrun as in the docs, the other by --gpus 2."""
    documented = re.search(r"^torchrun --nproc-per-node 8 (.*) train .*$", (DOCS / "distributed.md").read_text(), re.M)
    launcher = [*TORCHRUN, "--nproc-per-node", "2", *shlex.split(documented[1])]
    assert "2 ranks" in wait_for_exit(launch("uninterrupted2", launcher=launcher), 0)
    process = launch("stopped2", "--gpus", "2")
    wait_for_step(folder / "stopped2", 12, process)
    process.send_signal(signal.SIGUSR1)
    assert wait_for_exit(process, 143).count("the state is saved") == 1, "only rank 0 prints"
    newest = list_checkpoints(folder / "stopped2" / "checkpoints")[-1]
    assert 12 <= step_of(newest) < 2 * PER_EPOCH, "it was stopped mid-epoch"
    shutil.copytree(folder / "stopped2", folder / "alone")
    wait_for_exit(launch("stopped2", "--resume", "auto", "--output-dir", "stopped2", "--gpus", "2", new=False), 0)
    check_equal(outcome, folder / "uninterrupted2", folder / "stopped2")
    # one rank resumes a run of two
    wait_for_exit(launch("alone", "--resume", "auto", "--output-dir", "alone", new=False), 0)
    steps = [row["step"] for row in outcome(folder / "alone")[2] if "loss" in row]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    "launcher, code, reason", [("gpus", 5, "rank 1 was killed by SIGKILL"), ("torchrun", 1, "SIGKILL")]
)
def test_if_a_rank_is_killed_the_other_exits_soon_with_the_reason(launcher, code, reason, launch, folder):
    run = folder / f"killed-{launcher}"
    if launcher == "gpus":
        process = launch(run.name, "--gpus", "2")
    else:
        process = launch(run.name, launcher=[*TORCHRUN, "--nproc-per-node", "2", "-m", "dinocli"])
    wait_for_step(run, 4, process)
    other, start_time = pid_of_rank(process, 0), time.monotonic()
    os.kill(pid_of_rank(process, 1), signal.SIGKILL)
    _, messages = process.communicate(timeout=300)
    assert time.monotonic() - start_time < 60 and process.returncode == code, messages
    assert reason in messages and not Path(f"/proc/{other}").exists()
    assert list_checkpoints(run / "checkpoints"), "saved checkpoints are kept"
