"""`dino predict --out boxes.jsonl`: write each line as soon as its image is done, in constant memory.

If the command is killed, the file has all lines written so far, and perhaps an incomplete one, which --resume drops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dinocore.detections_io import ImageResult, json_lines, output_stems, read_detections, write_detections
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
    """A JSON lines file that starts with earlier results; it is created when the first line is written."""

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
                write_detections(self.before, [], "jsonl", self.path)
                self.file = self.path.open("a", encoding="utf-8", errors=ESCAPED)
            self.file.write(json_lines([result]))
            if time.monotonic() - self.flushed > FLUSH_EVERY:
                self.file.flush()
                self.flushed = time.monotonic()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Flush the file to disk and close it.

        Raises:
            EnvironmentFault: as for `add`.
        """
        try:
            if self.file is not None:
                self.file.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> EnvironmentFault:
        return EnvironmentFault(f"{self.path} cannot be written: {error.strerror or error}")


def predict_to_lines(work: Work, inputs: Sequence[Input], before: Sequence[ImageResult]) -> None:
    """Process all images except those in `before`, and write all results to --out in the order of the inputs.

    Raises:
        DataError: no image can be read.
        EnvironmentFault: the file cannot be written.
        Interrupted: by a signal; the results so far are written.
        typer.Exit: with code 7 if some images could not be read.
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
        found = {item.file: item for item in read_detections(out)}  # images failed, or the earlier results had others
        write_detections([found[item.name] for item in inputs if item.name in found], [], "jsonl", out)
    if not images:
        raise none_left(len(inputs), failed[0])
    remember(work, missing=bool(failed))
    say(f"wrote {out}: {counted(detections, 'detection')} in {counted(images, 'image')}")
    end_with_failures(len(failed), len(inputs))
