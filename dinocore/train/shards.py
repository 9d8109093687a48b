"""The optimizer's state in parts, as torch.distributed.checkpoint keeps it: a file of each process, and `.metadata`.

Its reader unpickles whatever it finds. Ours takes tensors and what describes them, and nothing that could run code.
"""

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from ..errors import CheckpointError, EnvironmentFault

INDEX = ".metadata"
HARMLESS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
}  # fmt: skip


def write_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, words: Any) -> None:
    """Each process writes its part; all of them must ask.

    Raises:
        EnvironmentFault: on all, if one cannot.
    """
    state = {"state": get_optimizer_state_dict(model, optimizer)["state"]}
    try:
        save(state, storage_writer=FileSystemWriter(folder), process_group=words)
    except (CheckpointException, OSError) as error:
        said = (str(error).strip() or "no reason given").splitlines()[-1]
        raise EnvironmentFault(f"the optimizer's state cannot be written to {folder}: {said}") from error


def move_shards(folder: Path, target: Path) -> None:
    """Put what all processes have written into a checkpoint."""
    for file in folder.iterdir():
        shutil.move(file, target / file.name)
    folder.rmdir()


def read_shards(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill an optimizer from a checkpoint of any number of processes; each takes what its part of the model needs.

    Raises:
        CheckpointError: it does not fit, or there is none.
    """
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f"{path} was written without train.sharding = fsdp2; go on with --set train.sharding=none, or start a new "
            "run from its weights: --weights RUN/best.safetensors"
        )
    found = get_optimizer_state_dict(model, optimizer)
    state = {"state": found["state"]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that each process reads for itself is the intent
            load(state, storage_reader=Reader(path), no_dist=True)
    except (CheckpointException, OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        said = (str(error).strip() or "no reason given").splitlines()[-1]
        raise CheckpointError(f"{path} does not fit this run: {said}") from error
    set_optimizer_state_dict(model, optimizer, {**state, "param_groups": found["param_groups"]})


class Reader(FileSystemReader):
    """Reads tensors, and runs nothing."""

    def read_metadata(self, *arguments: Any, **named: Any) -> Metadata:
        """The index of all tensors."""
        with (Path(self.path) / INDEX).open("rb") as file:
            metadata = Unpickler(file).load()
        if not all(isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()):
            raise pickle.UnpicklingError(f"{INDEX} names something that is no tensor")
        return metadata


class Unpickler(pickle.Unpickler):
    """Knows the classes of an index of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        """A harmless class; anything else is refused, what hangs on one too: from its attributes all is in reach."""
        if name not in HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"{INDEX} asks for {module}.{name}, which is not part of any index of tensors")
        return super().find_class(module, name)
