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
    """A program of `torch.export`, or machine code of AOTInductor. It may run its own code: open what you trust."""

    def _open(self, path: str, threads: int, providers: Sequence[str]) -> tuple[Any, str]:
        if threads:
            torch.set_num_threads(threads)
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # PyTorch doesn't look
                raise ValueError(f"the checksum of {damaged} in it is wrong")
            compiled = any("/aotinductor/" in name for name in archive.namelist())
        if compiled:
            from torch._inductor import aoti_load_package

            with quiet():  # it looks for CUDA
                program: Any = aoti_load_package(path)
            info = program.get_metadata().get(METADATA, "")
        else:
            beside = {METADATA: ""}
            try:
                with quiet():  # it logs a traceback
                    program = torch.export.load(path, extra_files=beside).module()
            except RuntimeError as error:  # which leads to that log
                raise ValueError("PyTorch cannot read the program in it") from error
            info = beside[METADATA]

        def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
            with torch.inference_mode():
                found = program(torch.from_numpy(images), torch.from_numpy(np.ascontiguousarray(sizes)))
                return [tensor.numpy() for tensor in found]

        return run, info


def open_exported(path: Path, threads: int = 0) -> ExportedDetector:
    """An exported file of any format.

    Raises:
        ValueError: it is damaged, or is not ours.
        ImportError: its runtime is not installed, or too old.
    """
    if path.suffix.lower() == ".pt2":
        return ProgramDetector(path, threads)
    with suppress(OSError):  # which the detector names
        check_checksum(path)
    return ExportedDetector(path, threads)
