"""Weights files detect changes to their tensors."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dinocore import load_config
from dinocore.data.annotations import Category
from dinocore.errors import CheckpointError
from dinocore.weights.file import load_weights, save_weights
from dinocore.weights.untrusted import CHECKSUM


@pytest.fixture
def tensors():
    numbers = torch.arange(600.0).reshape(20, 30)
    return {
        "a": numbers, "b": numbers.T[:7], "c.half": numbers[0].bfloat16(), "d.count": torch.tensor(3),
        "e.none": torch.empty(0, 4), "f.flags": torch.tensor([True, False]),
    }  # fmt: skip


@pytest.fixture
def path(tmp_path, tensors):
    file = tmp_path / "w.safetensors"
    save_weights(file, tensors, load_config("tiny"), [Category(1, "cell")], {"step": 7})
    return file


def test_a_written_file_can_be_read_by_us_and_by_safetensors(path, tensors):
    for loaded in (load_weights(path).tensors, load_file(path)):
        assert loaded.keys() == tensors.keys()
        assert all(
            torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in tensors.items()
        )


def test_a_flipped_bit_anywhere_in_the_tensors_is_detected(path):
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in np.linspace(start, len(content) - 1, 9).astype(int):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="is damaged: its tensors have changed since they were written; copy"):
            load_weights(path)


def test_edited_weights_are_accepted_if_the_checksum_is_removed(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    changed = {key: value + 1 for key, value in load_file(path).items() if value.dtype != torch.bool}
    save_file(changed, path, metadata)
    with pytest.raises(CheckpointError, match=f"if you changed them yourself, drop `{CHECKSUM}` from its metadata"):
        load_weights(path)
    save_file(changed, path, {key: value for key, value in metadata.items() if key != CHECKSUM})
    assert int(load_weights(path).tensors["d.count"]) == 4
