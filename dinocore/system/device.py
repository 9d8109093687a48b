"""Choose device and precision."""

import functools
import importlib.util
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, EnvironmentFault

PRECISIONS = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda` (the current one), `cuda:N` or `mps`.

    Raises:
        EnvironmentFault: this machine has no such device.
    """
    name, available = str(name), ["cpu"]
    available += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    if name == "cuda" and "cuda:0" in available:  # with its number, which `torch.cuda.set_device` asks for
        name = f"cuda:{torch.cuda.current_device() if torch.cuda.is_initialized() else 0}"
    if name not in available:
        raise EnvironmentFault(f"no device `{name}` here; available: {', '.join(available)}")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """`auto`, `off`, `bf16` or `fp16` to the dtype of autocast, None for float32 throughout.

    `int8` is for inference only: what is not a product of bytes is computed as with `auto`.

    Raises:
        ConfigError: it is none of these, or the device has no fast products of bytes.
    """
    if name == INT8:
        check_int8(device)
    if name in ("auto", INT8):
        return torch.bfloat16 if _has_bf16(device) else None
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision `{name}`; choose auto, {', '.join(PRECISIONS)} or {INT8}")
    return PRECISIONS[name]


def check_int8(device: torch.device) -> None:
    """Whether products of bytes are fast and exact on a device.

    Raises:
        ConfigError: they are not. Without VNNI they take longer, and sums of two products are cut off at 16 bits.
    """
    if device.type != "cpu":
        raise ConfigError(f"int8 only works on CPUs, but this is {device}; use --device cpu, or drop int8")
    if importlib.util.find_spec("numba") is None:
        raise ConfigError("int8 needs numba, which is not installed; pip install numba, or drop int8")
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()):
        raise ConfigError("int8 needs a CPU with AVX-512 VNNI, which this one lacks; drop int8")
    if names := _against_vnni():
        raise ConfigError(
            f"int8 needs Numba to compile for this CPU; unset {' and '.join(names)} in the environment, or drop int8"
        )


def _against_vnni() -> list[str]:
    """Variables of the environment with which Numba compiles for another CPU, or not at all."""
    given = {name: os.environ.get(f"NUMBA_{name}", "") for name in ("CPU_NAME", "CPU_FEATURES", "DISABLE_JIT")}
    against = {
        "CPU_NAME": given["CPU_NAME"] not in ("", "host"),
        "CPU_FEATURES": given["CPU_FEATURES"] != "" and "+avx512vnni" not in given["CPU_FEATURES"],
        "DISABLE_JIT": given["DISABLE_JIT"] not in ("", "0"),
    }
    return [f"NUMBA_{name}" for name, found in against.items() if found]


def check_compiler(device: torch.device, name: str = "compiled=True") -> None:
    """
    Args:
        name: what a user writes to ask for it.

    Raises:
        EnvironmentFault: torch.compile would find no C++ compiler for this CPU.
    """
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        fix = f"install one, such as g++, or drop {name}"
        raise EnvironmentFault("torch.compile needs a C++ compiler, but there is none", fix=fix) from None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bf16_is_faster()


@functools.cache
def bf16_is_faster() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32, by its kind.

    A short trial would know better, and would give one command other numbers whenever the machine is busy. With AMX
    bfloat16 is faster. With AVX-512's instructions alone it is on AMD (Zen 4: 2 times, Zen 5: 4), not on Intel: a
    Sapphire Rapids without AMX takes 1.5 times as long.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and "AMD" in _vendor()


def _vendor() -> str:
    """Such as AuthenticAMD, alone or within a longer name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor()  # Windows


class _WithoutTF32:
    """The blocks that are without TF32 now, of all threads: the setting belongs to the process."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.before = threading.Lock(), 0, (False, False)

    def enter(self) -> None:
        """Switch it off; the first remembers how it was."""
        matmul, cudnn = self._settings()
        with self.lock:
            if not self.blocks:
                self.before = matmul.allow_tf32, cudnn.allow_tf32
            self.blocks += 1
            matmul.allow_tf32 = cudnn.allow_tf32 = False

    def leave(self) -> None:
        """Set it as it was, if this is the last."""
        matmul, cudnn = self._settings()
        with self.lock:
            self.blocks -= 1
            if not self.blocks:
                matmul.allow_tf32, cudnn.allow_tf32 = self.before

    @staticmethod
    def _settings() -> tuple[Any, Any]:
        return torch.backends.cuda.matmul, torch.backends.cudnn


_without_tf32 = _WithoutTF32()


@contextmanager
def float32_throughout(enabled: bool) -> Iterator[None]:
    """Within the block, no TF32 on CUDA, which cuDNN's convolutions use by default; if `enabled`.

    Where threads overlap, TF32 comes back with the end of the last block, and is off meanwhile for all.
    """
    if not enabled:
        yield
        return
    _without_tf32.enter()
    try:
        yield
    finally:
        _without_tf32.leave()


@functools.cache
def compute_alone_after_fork() -> None:
    """Let processes that are forked from this one compute with one thread each; what is called again is nothing new.

    The threads of OpenMP are not there in a child, which would wait for them for ever in its first large operation.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))
