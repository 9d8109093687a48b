"""Training that is killed at random times, many times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_kills_at_random_times_lose_no_progress(tmp_path):
    output = tmp_path / "report.json"
    script = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--kills", "12", "--json", str(output)]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=600)
    report = json.loads(output.read_text())
    assert result.returncode == 0, report
    assert report["kills"] == 12
    assert report["finished"] >= 1  # finished runs are compared with an uninterrupted one
    assert not any(report[fault] for fault in ("unreadable", "lost_best", "repeated_steps", "unlike"))
