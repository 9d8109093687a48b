"""`dino predict --out boxes.jsonl`: write each line when its image is done, with constant memory.

After a kill the file has every line that was written, and perhaps a piece of one, which --resume drops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dinocore.detections_io import ImageResult, json_lines, output_stems, read_found, write_found
from dinocore.errors import DataError, EnvironmentFault, Interrupted
from dinocore.system.files import ESCAPED
from dinocore.words import counted

from ...console import say
from ...inputs import Input
from ...signals import ending_early
from .predict import detect_files, end_with_failures
from .request import kept_so_far, none_left, so_far
from .resume import remember

if TYPE_CHECKING:
    from .request import Work

FLUSH_EVERY = 1  # seconds


class LineFile:
    """A file of JSON lines that begins with what an earlier command found; made with the first line."""

    def __init__(self, path: Path, before: Sequence[ImageResult]):
        self.path, self.before = path, before
        self.file: TextIO | None = None
        self.flushed = 0.0

    def add(self, result: ImageResult) -> None:
        """Write a line.

        Raises:
            EnvironmentFault: the disk is full, or the file cannot be written.
        """
        try:
            if self.file is None:
                write_found(self.before, [], "jsonl", self.path)
                self.file = self.path.open("a", encoding="utf-8", errors=ESCAPED)
            self.file.write(json_lines([result]))
            if time.monotonic() - self.flushed > FLUSH_EVERY:
                self.file.flush()
                self.flushed = time.monotonic()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let all of it reach the disk.

        Raises:
            EnvironmentFault: as `add`.
        """
        try:
            if self.file is not None:
                self.file.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> EnvironmentFault:
        return EnvironmentFault(f"{self.path} cannot be written: {error.strerror or error}")


def predict_to_lines(work: Work, inputs: Sequence[Input], before: Sequence[ImageResult]) -> None:
    """Detect in all images but those of `before`, and write all into --out in the order of the inputs.

    Raises:
        DataError: no image can be read.
        EnvironmentFault: the file cannot be written.
        Interrupted: a signal came; what was found so far is written.
        typer.Exit: with code 7 if only some could be read.
    """
    out = work.request.out
    assert out is not None
    done = {item.file for item in before}
    stems = output_stems([item.name for item in inputs], work.request.format)
    images, detections, failed = len(before), sum(len(item.detections) for item in before), []
    lines = LineFile(out, before)
    try:
        with ending_early() as ended:
            for result in detect_files(work, {i: stems[i.name] for i in inputs if i.name not in done}, ended):
                if isinstance(result, DataError):
                    failed.append(result)
                    continue
                if lines.file is None:
                    remember(work)
                lines.add(result)
                images += 1
                detections += len(result.detections)
            if ended():
                raise Interrupted(so_far(images, len(inputs), work.request), ended())
    except Exception as error:
        lines.close()
        if lines.file and not isinstance(error, Interrupted):
            say(kept_so_far(images, len(inputs), work.request))
        raise
    finally:
        lines.close()
    if lines.file and [item.file for item in before] != [item.name for item in inputs[: len(before)]]:
        found = {item.file: item for item in read_found(out)}  # images failed, or there are others than before
        write_found([found[item.name] for item in inputs if item.name in found], [], "jsonl", out)
    if not images:
        raise none_left(len(inputs), failed[0])
    remember(work, missing=bool(failed))
    say(f"wrote {out}: {counted(detections, 'detection')} in {counted(images, 'image')}")
    end_with_failures(len(failed), len(inputs))
