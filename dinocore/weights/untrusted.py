"""Read untrusted tensor files: no code in them runs, and only plain tensors are accepted."""

import argparse
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, EnvironmentFault
from ..system.files import is_stream
from ..words import typed


class Ignored:
    """A placeholder for an irrelevant object in a checkpoint; it stores nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Ignored":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""


# mmengine's loss history, with the numpy objects in it; from checkpoints of mmengine 0.10.7
IGNORED = [
    "mmengine.logging.history_buffer.HistoryBuffer", "mmengine.logging.message_hub.MessageHub",
    "builtins.getattr", "__builtin__.getattr",
    "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer",
]  # fmt: skip
CHECKSUM = "dino_crc32"  # metadata entry of our own files, since 0.2
PREFIXES = ("module.", "_orig_mod.", "model.")
# scalars stored with a moving average
COUNTERS = {"steps", "step", "updates", "num_updates", "n_averaged", "decay", "momentum", "warmups"}
# the package of an object in a pickle -> the type of the file
MAKERS = {
    "ultralytics": "a complete YOLO model saved by Ultralytics",
    "models.yolo": "a complete YOLOv5 or YOLOv7 model",
    "models.common": "a complete YOLOv5 or YOLOv7 model",
    "transformers": "a model or training state of Hugging Face transformers",
    "pytorch_lightning": "a PyTorch Lightning checkpoint with Python objects",
    "lightning": "a PyTorch Lightning checkpoint with Python objects",
    "torch.nn": "a complete PyTorch module; save its state_dict() instead",
    "torchvision.models": "a complete torchvision model; save its state_dict() instead",
}
# a file in a zip archive -> the type of the archive
ARCHIVES = {
    "constants.pkl": "a model saved by TorchScript",
    "archive_format": "a graph of torch.export, or one compiled by AOTInductor",
}
ALLOWED = [argparse.Namespace, *((Ignored, name) for name in IGNORED)]  # Namespace: official DINO's arguments


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content and metadata of a safetensors or PyTorch file, detected by its first bytes; only the former has any.

    Raises:
        CheckpointError: the file is missing, damaged, not a weights file, or would run code.
    """
    return (read_pickle(path), {}) if _is_pickle(_start(path)) else read_safetensors(path)


def holds_config(path: Path) -> bool:
    """Whether this is a safetensors file with a config, like our own.

    Raises:
        CheckpointError: the file does not exist or is empty.
    """
    return not _is_pickle(_start(path)) and "config" in (_metadata(path) or {})


def is_foreign(path: Path) -> bool:
    """Whether this is another tool's tensor file: a PyTorch file, or complete safetensors without a config.

    Raises:
        CheckpointError: the file does not exist or is empty.
    """
    if _start(path)[:2] in (b"PK", b"\x80\x02"):
        return True
    metadata = _metadata(path)
    return metadata is not None and "config" not in metadata


def _metadata(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: the file is missing, empty, truncated, of another type, or does not match its checksum.
    """
    if _start(path)[:2] in (b"PK", b"\x80\x02"):
        command = f"dino convert {typed(path)} --out NEW.safetensors"
        raise CheckpointError(f"{path} is a PyTorch file; convert it first: {command}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        if exported := _exported(path):
            raise CheckpointError(exported) from None
        if _start(path)[8:9] != b"{":
            raise CheckpointError(
                f"{path} ({size} bytes) is not a weights file (safetensors or PyTorch); `dino weights` "
                "lists what can be used"
            ) from None
        raise CheckpointError(
            f"{path} ({size} bytes) is not a complete safetensors file: {error}; was it truncated while copying?"
        ) from None
    if CHECKSUM in metadata and checksum(tensors) != metadata[CHECKSUM]:
        raise CheckpointError(
            f"{path} is damaged: its tensors have changed since they were written; copy it again, or, if you changed "
            f"them yourself, drop `{CHECKSUM}` from its metadata"
        )
    return tensors, metadata


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of all tensors, in the order of their names; 190 MB take 0.06 s."""
    value = 0
    for key in sorted(tensors):
        value = zlib.crc32(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def read_pickle(path: Path) -> dict[str, Any]:
    """The content of a `torch.save` file; only tensors, numbers, strings and official DINO's arguments are accepted.

    Raises:
        CheckpointError: the file is missing, empty, truncated, a web page, a graph, or has other objects.
    """
    if _start(path)[:2] == b"PK":
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(_short_message(path, error)) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} contains a {type(content).__name__} instead of a state dict")
    return dict(content)


def is_counter(name: str, value: Any) -> bool:
    """Whether this is a scalar that a moving average stores with its tensors, such as a step counter."""
    return name in COUNTERS and (isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1))


def without_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Strip the prefixes that training tools add to names, and drop a moving average's counters.

    The prefixes come from DistributedDataParallel, torch.compile, Lightning, and PyTorch's and mmengine's averages.
    """
    state = {str(key): value for key, value in state.items() if not is_counter(str(key), value)}
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def check_tensor(name: str, value: Tensor, where: Path) -> None:
    """Check that a tensor can be a layer's weights.

    Raises:
        CheckpointError: it is sparse, quantised, nested, complex, larger than its storage, or not finite.
    """
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise CheckpointError(f"{where}: {name} is a {_kind(value)} tensor; only plain tensors are supported")
    if value.device.type != "cpu" or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{where}: {name} claims {tuple(value.shape)} numbers, but the file has fewer")
    if value.is_complex():
        raise CheckpointError(f"{where}: {name} has complex numbers")
    if value.is_floating_point() and not value.isfinite().all():
        raise CheckpointError(f"{where}: {name} has non-finite numbers")


def _start(path: Path) -> bytes:
    """The first bytes of a file, which must be readable and not empty."""
    if is_stream(path):
        raise CheckpointError(f"the weights {path}: this is not a regular file; check what it is: ls -l {typed(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"the weights {path}: this file does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(f"the weights {path}: this file is a folder") from None
    except OSError as error:
        raise EnvironmentFault(f"the weights {path} cannot be read: {error.strerror}") from None
    if not start:
        raise CheckpointError(f"the weights {path}: this file is empty; copy it again")
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a weights file; open its download link to see why")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself; get it with git lfs pull")
    return start


def _check_archive(path: Path) -> None:
    """Check that torch.save wrote an archive: it does not compress, and writes no graph or code."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # torch reports the problem
    if kind := next((kind for name, kind in ARCHIVES.items() if name in names), None):
        raise CheckpointError(f"{path} is {kind}, not a state dict; convert the weights file it was made from")
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path} is a zip archive that torch.save did not write; unpack it if it contains weights"
        )
    if claimed > path.stat().st_size:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) claims to hold {claimed} bytes, which torch.save never writes; it "
            "was not opened"
        )


def _is_pickle(start: bytes) -> bool:
    return start[8:9] != b"{" or start[:2] == b"PK"


def _short_message(path: Path, error: Exception) -> str:
    """Condense torch's long message to one line."""
    text, size, start = str(error), path.stat().st_size, _start(path)
    if opcode := re.search(r"GLOBAL `?([\w.]+)", text):
        made_by = next((kind for maker, kind in MAKERS.items() if f"{opcode[1]}.".startswith(f"{maker}.")), None)
        if made_by:
            return (
                f"{path} is {made_by}. Opening it could run code (it asks for `{opcode[1]}`), so it is refused and "
                "nothing was run; `dino weights` lists what can be used"
            )
        return (
            f"{path} asks for `{opcode[1]}` when it is opened, which could run code; it is refused and nothing was run"
        )
    if start[:2] == b"PK" or isinstance(error, EOFError):
        return f"{path} ({size} bytes) is not a complete PyTorch file; was it truncated while copying?"
    if start[:1] == b"\x80":
        return f"{path} ({size} bytes) is a pickle that torch.save did not write, or part of one; it was not opened"
    return _exported(path) or f"{path} ({size} bytes) is not a weights file"


def _exported(path: Path) -> str | None:
    """A message for a file that cannot be read as weights, if it is named like an exported one."""
    kind = path.suffix.lower()
    if kind in (".onnx", ".xml", ".unverified") or (kind == ".bin" and path.with_suffix(".xml").is_file()):
        return (
            f"{path} is an exported file, or part of one, not weights; give the weights it was made from "
            "(dino predict, dino eval and dino benchmark take .onnx, .xml and .pt2 files)"
        )
    return None


def _kind(value: Tensor) -> str:
    if value.is_quantized:
        return "quantised"
    return "nested" if value.is_nested else str(value.layout).removeprefix("torch.").replace("_", " ")
