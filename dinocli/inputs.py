"""From command-line arguments to image files: files, folders, globs, and `-` for standard input."""

import atexit
import glob
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dinocore.config import DataConfig
from dinocore.data.images import SUFFIXES, VIDEOS, has_several, read_header
from dinocore.data.split import is_hidden
from dinocore.errors import ConfigError, DataError, EnvironmentFault
from dinocore.words import counted, typed

from .console import warn


class Input(NamedTuple):
    """An image to read, and its name in the output."""

    path: Path
    name: str


def check_header(arguments: Sequence[str]) -> None:
    """Check that a single input file exists and has a readable header, before PyTorch is imported.

    Raises:
        DataError: the same as when it is read later.
    """
    if len(arguments) != 1 or arguments[0] == "-" or arguments[0].lower().startswith(ADDRESSES):
        return
    argument = arguments[0]
    path = Path(argument).expanduser()
    if path.is_file():
        read_header(path, DataConfig())
    elif not path.exists() and not glob.has_magic(argument):
        raise no_image(argument)


def no_image(name: str) -> DataError:
    """The error for an image that does not exist."""
    return DataError(f"no image {name}", code="DATA-IMAGE-MISSING", where=name,
                     fix="check its name and folder")  # fmt: skip


ADDRESSES = ("http://", "https://", "s3://", "gs://", "ftp://")
STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "srt://")
CAMERA = "/dev/video"


def is_video(arguments: Sequence[str]) -> bool:
    """Whether the only argument is a video, a camera or the URL of a stream.

    Raises:
        ConfigError: there are other inputs besides it.
    """
    videos = [a for a in arguments if a.lower().endswith(VIDEOS) or a.startswith((*STREAMS, CAMERA))]
    if videos and len(arguments) > 1:
        raise ConfigError(f"{videos[0]} is a video, which must be the only input; try dino predict {typed(videos[0])}")
    return bool(videos)


def expand(arguments: Sequence[str], drawn: Path | None = None) -> tuple[list[Input], int]:
    """All images given by the arguments, without duplicates; and the number of skipped non-image files in folders.

    Args:
        drawn: the folder of --save-images, whose images are skipped when an input folder contains it.

    Raises:
        DataError: there are no images.
        EnvironmentFault: an argument is a URL.
    """
    found: dict[str, Input] = {}
    skipped = 0
    for argument in arguments:
        path = Path(argument).expanduser()
        if argument.lower().startswith(ADDRESSES):
            raise EnvironmentFault(f"{argument} is an address, and dino does not download images", code="DATA-URL")
        if argument == "-":
            inputs = list(_standard_input())
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden_in(file, path))
            if drawn is not None and drawn.resolve() != path.resolve():
                files = [file for file in files if not file.resolve().is_relative_to(drawn.resolve())]
            images = [file for file in files if file.suffix.lower() in SUFFIXES]
            skipped += len(files) - len(images)
            inputs = [Input(file, str(file)) for file in images]
        elif not path.exists() and glob.has_magic(argument):
            inputs = [Input(Path(name), name) for name in sorted(glob.glob(argument, recursive=True))]
        else:
            inputs = [Input(path, argument)]  # a missing file is reported when it is read
        alone = len(arguments) == 1 and argument != "-"  # a folder or a glob has no duplicates
        for item in inputs:  # a link with another name counts as a separate image
            found.setdefault(item.name if alone else os.path.abspath(item.path), item)
    if not found:
        raise DataError(f"no images in {', '.join(arguments)}",
                        fix=f"use files with one of these suffixes: {' '.join(sorted(SUFFIXES))}")  # fmt: skip
    return list(found.values()), skipped


MULTI_IMAGE = (".gif", ".webp", ".tif", ".tiff")  # suffixes of files that may contain several images


def warn_of_several(inputs: Sequence[Input]) -> None:
    """Warn about files with several images, of which only the first is used."""
    several = [item.path for item in inputs if item.path.suffix.lower() in MULTI_IMAGE and has_several(item.path)]
    if several:
        first = several[0]
        command = f"magick {typed(first)} {typed(first.with_name(f'{first.stem}-%d.png'))}"
        holders = f"{first} holds" if len(several) == 1 else f"{counted(len(several), 'file')}, such as {first}, hold"
        warn(f"{holders} several images, and only the first is looked at; take them apart: {command}")


def _is_hidden_in(file: Path, folder: Path) -> bool:
    """Whether a file or one of its parent folders is one that datasets skip: `._a.jpg` of macOS, `@eaDir/`, ..."""
    return any(map(is_hidden, file.relative_to(folder).parts))


def _standard_input() -> Iterator[Input]:
    """Read standard input: the bytes of one image, or file names, one per line."""
    content = sys.stdin.buffer.read()
    try:
        names = [line for line in content.decode().splitlines() if line.strip()]
        looks_like_names = bool(names) and "\0" not in names[0]
    except UnicodeDecodeError:
        names, looks_like_names = [], False
    if looks_like_names:
        yield from (Input(Path(name), name) for name in names)
    elif content:
        with tempfile.NamedTemporaryFile(prefix="dino-stdin-", delete=False) as file:
            file.write(content)
        atexit.register(os.unlink, file.name)
        yield Input(Path(file.name), "-")
