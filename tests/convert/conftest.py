"""Golden weights of three codebases, computed from parameter names so that they need not be stored."""

import gzip
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_weights(name: str, shape: list[int], source: str) -> Tensor:
    """The golden weights of a parameter, generated from its name."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif name.endswith("running_mean"):
        x = 0.1 * x
    elif source == "official" and "class_embed" in name and name.endswith("bias"):
        x = np.full(shape, -math.log(99), np.float32)
    elif len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    else:
        x = 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def read_keys(name: str) -> list[tuple]:
    """Rows (key, shape, dtype, canonical key); rows with the same canonical key share a tensor."""
    packed = GOLDEN / f"{name}_keys.json.gz"
    text = gzip.decompress(packed.read_bytes()) if packed.exists() else (GOLDEN / f"{name}_keys.json").read_bytes()
    return [tuple(row) for row in json.loads(text)]


@pytest.fixture(scope="session")
def state_of() -> Callable[[str], dict[str, Tensor]]:
    """The state dict of a key list, with golden weights; shared tensors are one object."""
    cache: dict[str, dict[str, Tensor]] = {}

    def state(name: str) -> dict[str, Tensor]:
        if name not in cache:
            source, tensors = name.split("_")[0], {}
            cache[name] = {}
            for key, shape, dtype, canonical in read_keys(name):
                if canonical not in tensors:
                    is_integer = dtype.startswith("int")
                    tensors[canonical] = torch.tensor(0) if is_integer else golden_weights(canonical, shape, source)
                cache[name][key] = tensors[canonical]
        return dict(cache[name])

    return state


@pytest.fixture(scope="session")
def empty_state() -> Callable[[str], dict[str, Tensor]]:
    """Like `state_of` but with zeros, which is faster; tensors of Swin models are on the meta device."""

    def state(name: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        with torch.device("meta" if "swin" in name else "cpu"):
            return {
                key: tensors.setdefault(canonical, torch.zeros(shape, dtype=getattr(torch, dtype)))
                for key, shape, dtype, canonical in read_keys(name)
            }

    return state
