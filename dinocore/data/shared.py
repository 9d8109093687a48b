"""Annotations in memory-mapped files, so that the ranks and workers of a machine share one copy.

One rank per machine reads the dataset and writes its arrays to temporary files, which all ranks map. The system keeps
one copy of a mapped file in memory for all processes, and may drop unused pages.
"""

import atexit
import multiprocessing
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import EnvironmentFault
from ..system.processes import SingleProcess
from .annotations import Annotations
from .dataset import DataSet, open_dataset


class MappedArray(np.memmap):
    """An array stored in a file. Pickling it, to send it to a process, writes the path instead of a copy."""

    whole = False  # True for the complete array of the file, False for views

    def __reduce__(self) -> Any:
        if self.whole and os.path.exists(str(self.filename)):
            return _open_mapped, (str(self.filename),)
        return np.array(self).__reduce__()


def _open_mapped(file: str) -> MappedArray:
    array = np.load(file, mmap_mode="r").view(MappedArray)
    array.whole = True
    return array


def map_annotations(annotations: Annotations, folder: Path, name: str) -> Annotations:
    """The annotations with their arrays, (I, ...) and (M, ...), in files `name-*.npy` in a folder.

    Raises:
        OSError: they cannot be written.
    """
    mapped = {}
    for field, value in annotations._asdict().items():
        if isinstance(value, np.ndarray) and value.size:  # an empty array cannot be mapped
            file = str(folder / f"{name}-{field}.npy")
            np.save(file, value)
            mapped[field] = _open_mapped(file)
    return annotations._replace(**mapped)


def open_shared_dataset(config: DataConfig, group: SingleProcess) -> DataSet:
    """Like `open_dataset`; with several ranks, one per machine reads, and all of them map its arrays.

    Raises:
        DataError: the folder or its annotations are unusable, or there is nothing to train on.
        EnvironmentFault: the temporary folder has no space for the arrays.
    """
    if group.size == 1:
        return open_dataset(config)
    leader = leader_of(group.rank)
    read: list[DataSet] = []
    group.main_first(lambda: read.append(open_dataset(config)) if leader == group.rank else None)
    folder, content, problem = Path(), b"", ""
    if read:
        try:
            folder = Path(tempfile.mkdtemp(prefix="dino-annotations-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            data = read.pop()
            train = map_annotations(data.train, folder, "train")
            val = train if data.val is data.train else map_annotations(data.val, folder, "val")
            content = pickle.dumps(data._replace(train=train, val=val))  # paths instead of arrays
        except OSError as error:
            problem = f"cannot write annotations to {tempfile.gettempdir()}: {error.strerror or error}"
    answers = group.gather((content, problem))
    if failed := [why for _, why in answers if why]:
        raise group.on_all_ranks(EnvironmentFault(failed[0], fix="set TMPDIR to a folder with enough space"))
    data = pickle.loads(answers[leader][0])
    group.gather(None)  # wait until all ranks have opened the files
    if leader == group.rank and multiprocessing.get_start_method() == "fork":
        # forked workers inherit the mappings; removed now, the files do not stay behind if the process is killed
        shutil.rmtree(folder, ignore_errors=True)
    return data


def leader_of(rank: int) -> int:
    """The first rank on a rank's machine, with torchrun's numbering."""
    return rank - int(os.environ.get("LOCAL_RANK", 0))
