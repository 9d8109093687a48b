"""Run a .pt2 file of `dino export` in PyTorch, as `ExportedDetector` runs ONNX and OpenVINO files."""

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checksum import check_checksum
from .onnx_graph import quiet
from .runtime import ExportedDetector

METADATA = "dino"  # the key of a file's own metadata


class ProgramDetector(ExportedDetector):
    """A `torch.export` program, or AOTInductor's machine code. It can run arbitrary code: open only trusted files."""

    def _open(self, path: str, threads: int, providers: Sequence[str]) -> tuple[Any, str]:
        if threads:
            torch.set_num_threads(threads)
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # PyTorch doesn't check
                raise ValueError(f"the checksum of {damaged} in it is wrong")
            compiled = any("/aotinductor/" in name for name in archive.namelist())
        if compiled:
            from torch._inductor import aoti_load_package

            with quiet():  # it warns if there is no CUDA
                program: Any = aoti_load_package(path)
            info = program.get_metadata().get(METADATA, "")
        else:
            extra_files = {METADATA: ""}
            try:
                with quiet():  # it logs a traceback
                    program = torch.export.load(path, extra_files=extra_files).module()
            except RuntimeError as error:  # already logged in detail
                raise ValueError("PyTorch cannot read the program in it") from error
            info = extra_files[METADATA]

        def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
            with torch.inference_mode():
                found = program(torch.from_numpy(images), torch.from_numpy(np.ascontiguousarray(sizes)))
                return [tensor.numpy() for tensor in found]

        return run, info


def open_exported(path: Path, threads: int = 0) -> ExportedDetector:
    """Open an exported file of any format.

    Raises:
        ValueError: it is damaged, or was not written by `dino export`.
        ImportError: its runtime is not installed, or too old.
    """
    if path.suffix.lower() == ".pt2":
        return ProgramDetector(path, threads)
    with suppress(OSError):  # which the detector names
        check_checksum(path)
    return ExportedDetector(path, threads)
