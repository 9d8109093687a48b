"""What hears signals while a long step is computed."""

import os
import signal
import time

import pytest

from dinocli.signals import StopRequest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_listening_ends_although_a_forked_loader_worker_still_lives():
    stop = StopRequest()
    stop.running = True
    with stop.listening():
        child = os.fork()  # as a loader worker, which inherits all that is open
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
    assert took < 10, "the listener waited for the worker"
