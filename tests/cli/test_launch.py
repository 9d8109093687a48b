"""Messages and exit codes of `dino train --gpus N` when ranks fail."""

import signal
from types import SimpleNamespace

import pytest

from dinocli.launch import _exit_code


@pytest.mark.parametrize(
    ("codes", "expected", "message"),
    [
        ({0: 143, 1: 143}, 143, ""),
        ({0: -15, 1: 143}, 143, ""),  # rank 1 saved and exited; the agent terminated rank 0 before it could
        ({0: -15, 1: -9}, 5, "rank 1 was killed by SIGKILL"),
        ({0: 5, 1: -9}, 5, "rank 1 was killed by SIGKILL"),
        ({0: -15, 1: 6}, 6, "rank 1 exited with code 6"),
        ({0: -15, 1: -15}, 5, "rank 0 was killed by SIGTERM"),
    ],
)
def test_the_failed_rank_is_distinguished_from_ranks_terminated_afterwards(codes, expected, message, capsys):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=rank) for rank, code in codes.items()}
    assert _exit_code(failures) == expected
    printed = capsys.readouterr().err
    assert message in printed if message else printed == ""


@pytest.mark.parametrize(("forwarded", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_ranks_killed_by_a_forwarded_signal_are_reported_as_interrupted(forwarded, expected, capsys):
    terminated = {rank: SimpleNamespace(exitcode=-forwarded, timestamp=rank) for rank in range(2)}
    assert _exit_code(terminated, forwarded) == expected and "interrupted" in capsys.readouterr().err
    killed = terminated | {1: SimpleNamespace(exitcode=-9, timestamp=1)}
    assert _exit_code(killed, forwarded) == 5 and "SIGKILL" in capsys.readouterr().err
