"""Processes that must not outlive the one that started them."""

import ctypes
import sys


def end_with_parent(number: int) -> None:
    """Ask Linux to send this process a signal when its parent is gone, however that ended."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
