"""Every command rejects a bad weights file with one error line, runs no code from it and leaves no output."""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from dinocore.weights.shipped import BUNDLED
from dinocore.weights.untrusted import read_safetensors

COMMANDS = {
    "predict": ["predict", "IMAGE", "--save-images", "new", "--weights", "FILE"],
    "train": ["train", "--data", "FOLDER", "--output-dir", "new", "--weights", "FILE"],
    "info": ["info", "FILE"],
    "convert": ["convert", "FILE", "--out", "new/x.safetensors"],
}


class Evil:
    """Creates a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


def bundled(change=lambda tensors, metadata: None) -> bytes:
    tensors, metadata = read_safetensors(BUNDLED)
    change(tensors, metadata)
    return save(tensors, metadata)


def pickled(content, old=False) -> bytes:
    file = Path("made.tmp")
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    data = file.read_bytes()
    file.unlink()
    return data


def header(text: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + rest


def archive(*names: str) -> bytes:
    """A zip archive with empty files of these names."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return content.getvalue()


def compressed_checkpoint() -> bytes:
    """A compressed checkpoint of about a kilobyte, with a megabyte of zeros."""
    uncompressed, file = pickled({"model": {"x": torch.zeros(250_000)}}), Path("packed.tmp")
    Path("made.tmp").write_bytes(uncompressed)
    with zipfile.ZipFile("made.tmp") as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    content = file.read_bytes()
    file.unlink()
    Path("made.tmp").unlink()
    return content


def first_vector(tensors):
    return next(key for key, value in tensors.items() if value.dim() == 1 and len(value) > 4)


def entry(shape, offsets):
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


BAD = {
    "truncated": lambda: bundled()[:-100],
    "truncated in the header": lambda: bundled()[:50],
    "empty": lambda: b"",
    "a web page": lambda: b"\n<!DOCTYPE html><html>Sign in</html>",
    "text": lambda: b"404: Not Found",
    "a Git LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
    "a TorchScript model": lambda: archive("model/data.pkl", "model/constants.pkl", "model/code/__torch__.py"),
    "a graph of torch.export": lambda: archive("m/archive_format", "m/models/model.json"),
    "another zip archive": lambda: archive("weights/model.safetensors"),
    "a header length of exabytes": lambda: struct.pack("<Q", 2**60) + b"{" + b" " * 100,
    "a header that is not JSON": lambda: header(b"{nonsense!}"),
    "tensors that overlap": lambda: header(
        json.dumps({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}).encode(), b"\0" * 12
    ),
    "a tensor beyond the end": lambda: header(json.dumps({"a": entry([2**40], [0, 2**42])}).encode(), b"\0" * 12),
    "tensors without a config": lambda: save({"a": torch.zeros(2)}),
    "a newer schema": lambda: bundled(lambda tensors, metadata: metadata.update(schema="99", dino_version="9.9")),
    "a config that is not JSON": lambda: bundled(lambda tensors, metadata: metadata.update(config="{")),
    "an unknown setting": lambda: bundled(lambda t, metadata: metadata.update(config='{"model": {"wings": 2}}')),
    "not finite": lambda: bundled(lambda tensors, metadata: tensors[first_vector(tensors)].fill_(float("inf"))),
    "a wrong shape": lambda: bundled(lambda tensors, m: tensors.update({first_vector(tensors): torch.zeros(3)})),
    "a missing tensor": lambda: bundled(lambda tensors, metadata: tensors.pop(first_vector(tensors))),
    "code": lambda: pickled({"model": {"x": torch.zeros(1)}, "args": Evil()}),
    "code, old format": lambda: pickled({"model": {"x": torch.zeros(1)}, "args": Evil()}, old=True),
    "a class of another tool, like YOLO's": lambda: pickled({"model": Evil, "epoch": 3}),
    "a ResNet": lambda: pickled({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 512)}),
    "a YOLO": lambda: pickled(
        {"model.0.conv.weight": torch.zeros(16, 3, 3, 3), "model.22.dfl.conv.weight": torch.zeros(1)}
    ),
    "a compressed checkpoint": compressed_checkpoint,
    "a truncated pickle": lambda: pickled({"model": {"x": torch.zeros(1000)}})[:1000],
    "sparse": lambda: pickled({"model": {"transformer.level_embeds": torch.zeros(4, 256).to_sparse()}}),
    "complex": lambda: pickled({"model": {"transformer.level_embeds": torch.zeros(4, 256, dtype=torch.complex64)}}),
}
READABLE_BY_INFO = {"not finite", "a wrong shape", "a missing tensor"}  # their metadata is valid


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_by_every_command(kind, dino, image_folder, tmp_path):
    content = BAD[kind]()
    (tmp_path / "bad.file").write_bytes(content)
    image_file = next((image_folder / "val2017").iterdir())
    replacements = {"FILE": "bad.file", "IMAGE": str(image_file), "FOLDER": str(image_folder)}
    for name, command in COMMANDS.items():
        if name == "info" and kind in READABLE_BY_INFO:
            continue
        result = dino(*[replacements.get(part, part) for part in command])
        assert result.code == 4, (name, result)
        assert result.err.count("\n") == 1 and "bad.file" in result.err and result.out == "", (name, result)
        assert os.listdir(tmp_path) == ["bad.file"], name
    assert (tmp_path / "bad.file").read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "description"),
    [
        ("a Git LFS pointer", "a Git LFS pointer, not the file itself; get it with git lfs pull"),
        ("a TorchScript model", "a model saved by TorchScript"),
        ("a graph of torch.export", "a graph of torch.export"),
        ("another zip archive", "a zip archive that torch.save did not write"),
        ("a ResNet", "the tensor names are not those of official DINO, detrex or mmdetection: conv1.weight, fc.weight"),
    ],
)
def test_a_file_without_weights_is_identified_in_the_message(kind, description, dino, tmp_path):
    (tmp_path / "bad.file").write_bytes(BAD[kind]())
    assert description in dino("info", "bad.file").err


@pytest.mark.parametrize("name", COMMANDS)
def test_folders_missing_files_and_unreadable_files_are_refused(name, dino, image_folder, tmp_path, monkeypatch):
    replacements = {"IMAGE": str(next((image_folder / "val2017").iterdir())), "FOLDER": str(image_folder)}
    command = [replacements.get(part, part) for part in COMMANDS[name]]
    (tmp_path / "folder").mkdir()
    for file in ("folder", "none.safetensors", "folder/none.pth"):
        result = dino(*[file if part == "FILE" else part for part in command])
        assert result.code == 4 and result.err.count("\n") == 1 and file in result.err, result
    (tmp_path / "locked").write_bytes(b"x")
    original_open = Path.open

    def open_unless_locked(self, *arguments, **options):
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        return original_open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_unless_locked)
    result = dino(*["locked" if part == "FILE" else part for part in command])
    message = "error[ENVIRONMENT]: the weights locked cannot be read: Permission denied\n"
    assert result.code == 5 and result.err == message
    assert sorted(os.listdir(tmp_path)) == ["folder", "locked"]
