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
def test_the_rank_that_failed_is_distinguished_from_those_that_were_ended_for_it(codes, expected, message, capsys):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=rank) for rank, code in codes.items()}
    assert _exit_code(failures) == expected
    printed = capsys.readouterr().err
    assert message in printed if message else printed == ""


@pytest.mark.parametrize(("passed_on", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_ranks_that_end_by_a_signal_of_the_user_before_they_hear_it_are_interrupted(passed_on, expected, capsys):
    ended = {rank: SimpleNamespace(exitcode=-passed_on, timestamp=rank) for rank in range(2)}
    assert _exit_code(ended, passed_on) == expected and "interrupted" in capsys.readouterr().err
    killed = ended | {1: SimpleNamespace(exitcode=-9, timestamp=1)}
    assert _exit_code(killed, passed_on) == 5 and "SIGKILL" in capsys.readouterr().err
