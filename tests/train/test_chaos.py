"""Training that is killed at random times, many times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_kills_at_random_times_lose_nothing(tmp_path):
    output = tmp_path / "found.json"
    script = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--kills", "12", "--json", str(output)]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=600)
    found = json.loads(output.read_text())
    assert ended.returncode == 0, found
    assert found["kills"] == 12
    assert found["finished"] >= 1  # finished runs are compared with an uninterrupted one
    assert not any(found[fault] for fault in ("unreadable", "lost_best", "repeated_steps", "unlike"))
