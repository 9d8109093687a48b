"""Choose the device and the numerical precision."""

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
    """The device with a name: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda` (the current one), `cuda:N` or `mps`.

    Raises:
        EnvironmentFault: this machine has no such device.
    """
    name, available = str(name), ["cpu"]
    available += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    if name == "cuda" and "cuda:0" in available:  # add the index, which `torch.cuda.set_device` needs
        name = f"cuda:{torch.cuda.current_device() if torch.cuda.is_initialized() else 0}"
    if name not in available:
        raise EnvironmentFault(f"no device `{name}` here; available: {', '.join(available)}")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype for `auto`, `off`, `bf16`, `fp16` or `int8`; None means float32 throughout.

    `int8` is for inference only; layers that are not quantized run as with `auto`.

    Raises:
        ConfigError: it is none of these, or the device does not support int8.
    """
    if name == INT8:
        check_int8(device)
    if name in ("auto", INT8):
        return torch.bfloat16 if _has_bf16(device) else None
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision `{name}`; choose auto, {', '.join(PRECISIONS)} or {INT8}")
    return PRECISIONS[name]


def check_int8(device: torch.device) -> None:
    """Check that int8 products are fast and exact on a device.

    Raises:
        ConfigError: they are not. Without VNNI they are slower, and sums of two products saturate at 16 bits.
    """
    if device.type != "cpu":
        raise ConfigError(f"int8 only works on CPUs, but this is {device}; use --device cpu, or drop int8")
    if importlib.util.find_spec("numba") is None:
        raise ConfigError("int8 needs numba, which is not installed; pip install numba, or drop int8")
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()):
        raise ConfigError("int8 needs a CPU with AVX-512 VNNI, which this one lacks; drop int8")
    if names := _variables_against_vnni():
        raise ConfigError(
            f"int8 needs Numba to compile for this CPU; unset {' and '.join(names)} in the environment, or drop int8"
        )


def _variables_against_vnni() -> list[str]:
    """Environment variables that make Numba compile for another CPU, or not at all."""
    values = {name: os.environ.get(f"NUMBA_{name}", "") for name in ("CPU_NAME", "CPU_FEATURES", "DISABLE_JIT")}
    conflicts = {
        "CPU_NAME": values["CPU_NAME"] not in ("", "host"),
        "CPU_FEATURES": values["CPU_FEATURES"] != "" and "+avx512vnni" not in values["CPU_FEATURES"],
        "DISABLE_JIT": values["DISABLE_JIT"] not in ("", "0"),
    }
    return [f"NUMBA_{name}" for name, conflicting in conflicts.items() if conflicting]


def check_compiler(device: torch.device, name: str = "compiled=True") -> None:
    """Check that torch.compile finds a C++ compiler, if the device is a CPU.

    Args:
        name: the option or argument, for the message.

    Raises:
        EnvironmentFault: there is no C++ compiler.
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
    """Whether this type of CPU multiplies matrices faster in bfloat16 than in float32.

    A short benchmark would be more accurate, but the choice, and with it the results, would depend on the machine's
    load. With AMX, bfloat16 is faster. With only AVX-512 BF16 it is faster on AMD (Zen 4: 2 times, Zen 5: 4 times) but
    not on Intel, where a Sapphire Rapids without AMX takes 1.5 times as long.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and "AMD" in _vendor()


def _vendor() -> str:
    """A text that contains the CPU's vendor id, such as AuthenticAMD; empty if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor()  # Windows


class _WithoutTF32:
    """Counts the active blocks without TF32 over all threads, because the setting applies to the whole process."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.before = threading.Lock(), 0, (False, False)

    def enter(self) -> None:
        """Switch TF32 off; the first block saves the previous settings."""
        matmul, cudnn = self._settings()
        with self.lock:
            if not self.blocks:
                self.before = matmul.allow_tf32, cudnn.allow_tf32
            self.blocks += 1
            matmul.allow_tf32 = cudnn.allow_tf32 = False

    def leave(self) -> None:
        """Restore the previous settings at the end of the last block."""
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
    """Disable TF32 on CUDA within the block, if `enabled`. cuDNN's convolutions use it by default.

    If blocks of several threads overlap, TF32 is off for all threads until the last block ends.
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
def use_one_thread_after_fork() -> None:
    """Limit PyTorch to one thread in processes forked from this one. Further calls have no effect.

    A forked child has no OpenMP threads, and would wait for them forever in its first large operation.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))
