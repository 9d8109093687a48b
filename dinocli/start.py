"""Defer Python's garbage collection at startup: it took a third of the time of commands that need PyTorch."""

import atexit
import gc
from types import FrameType

IMPORT_THRESHOLD = 1_000_000  # objects; imported modules account for up to 890,000, which are never freed anyway

_usual: tuple[int, int, int] | None = None


def defer_collection() -> None:
    """Disable garbage collection during imports, and at exit, when the process frees everything anyway."""
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(IMPORT_THRESHOLD)
    gc.callbacks.append(_first_collection)
    atexit.register(gc.freeze)


def resume_collection() -> None:
    """Freeze existing objects and restore the usual thresholds; to be called when the actual work starts."""
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        gc.callbacks.remove(_first_collection)
        _usual = None


def is_collecting(frame: FrameType | None) -> bool:
    """Whether a frame or one of its callers is the first collection."""
    while frame is not None:
        if frame.f_code is _first_collection.__code__:
            return True
        frame = frame.f_back
    return False


def _first_collection(phase: str, _: dict) -> None:
    if phase == "stop":
        resume_collection()
