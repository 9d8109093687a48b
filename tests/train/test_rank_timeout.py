"""Other ranks wait for rank 0 while it works alone, for longer than ranks wait for each other."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import time
from datetime import timedelta
import torch
from dinocore.system import processes

processes.TIMEOUT = timedelta(seconds=1)
with processes.process_group(torch.device("cpu")) as group:
    assert group.on_main(lambda: time.sleep(2.5) or 5) == 5
    group.main_first(lambda: group.main and time.sleep(2.5))
    assert group.gather(group.rank) == [0, 1]
"""


@pytest.mark.slow
def test_rank_0_may_work_alone_for_longer_than_the_timeout_between_ranks(tmp_path):
    (tmp_path / "alone.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "alone.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
