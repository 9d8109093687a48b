"""The DINO object detector (arXiv 2203.03605): model, loss, data, training, evaluation and inspection.

The names listed in `__all__` stay stable. They are imported when first used, so that `import dinocore` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "Target",
    "build_model",
    "convert_state_dict",
    "criterion",
    "load_config",
    "load_detector",
]

if TYPE_CHECKING:
    from .losses import criterion
    from .model.build import build_model
    from .predict import load_detector
    from .presets import load_config
    from .structures import Target
    from .weights.convert import convert_state_dict

_HOMES = {
    "Target": "structures",
    "build_model": "model.build",
    "convert_state_dict": "weights.convert",
    "criterion": "losses",
    "load_config": "presets",
    "load_detector": "predict",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `dinocore` has no attribute `{name}`")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
