"""Defer Python's garbage collection at startup: it took a third of the time of commands that need PyTorch."""

import atexit
import gc
from types import FrameType

MANY = 1_000_000  # objects; a command that has imported all has 890,000, of modules, which stay anyway

_usual: tuple[int, int, int] | None = None


def put_off_collection() -> None:
    """Collect nothing while modules are imported; nor at the end, when all goes with the process."""
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(MANY)
    gc.callbacks.append(_first_collection)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """What is there now stays; look for cycles among what comes, as often as usual. Once the work itself begins."""
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        gc.callbacks.remove(_first_collection)
        _usual = None


def is_collecting(frame: FrameType | None) -> bool:
    """Whether a frame, or one that called it, is that of the first collection."""
    while frame is not None:
        if frame.f_code is _first_collection.__code__:
            return True
        frame = frame.f_back
    return False


def _first_collection(phase: str, _: dict) -> None:
    if phase == "stop":
        collect_as_usual()
