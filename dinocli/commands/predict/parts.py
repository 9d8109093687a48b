"""`dino predict` with several ranks: each part of the images is written to its own file; rank 0 merges them.

    OUT.parts/<key>/00000.jsonl ...   one line per image: its detections or an error; the last line has the best score

Rank r of R processes parts r, r + R, r + 2 R, ... Parts are written atomically when they are finished, and existing
parts are not processed again, so a killed command can be continued with any number of ranks. The key is a hash of
the images, weights and options; if any of these changes, the parts are new. Ranks don't communicate; they share a file
system.

After the merge, rank 0 leaves `.OUT.merged`, so that a late rank (slow or restarted) does not process its parts again.
The file applies only to the same command; a later command starts afresh.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from dinocore.detections_io import ImageResult, json_lines, output_stems, write_detections
from dinocore.errors import ConfigError, DataError, Interrupted
from dinocore.system.files import ESCAPED, write_atomically, write_text
from dinocore.system.processes import rank_number, world_size
from dinocore.words import counted

from ...console import fail, print_json, say
from ...inputs import Input
from ...signals import ending_early
from ...weights_option import find_weights
from .predict import Tally, detect_files, end_with_failures
from .request import PredictRequest, Work, none_left, open_work, parts_folder
from .resume import RESUMABLE, answer_settings, earlier_results, file_state, image_states, remember

IMAGES_PER_PART = 256
POLL = 0.2  # seconds between checks whether the other ranks have finished
MAX_ERRORS = 20  # images that could not be read and are reported by name
RUN_IDS = ("SLURM_JOB_ID", "SLURM_STEP_ID")  # equal on all ranks of a command; DINO_RUN_ID takes precedence


def predict_in_parts(
    inputs: Sequence[Input], request: PredictRequest, weights: str | None, device: str, amp: str
) -> None:
    """Process this rank's parts; rank 0 also merges all parts into --out.

    Raises:
        ConfigError: --out is missing.
        Interrupted: by a signal; finished parts are kept.
    """
    if request.out is None:
        raise ConfigError("several ranks need an output file; give --out boxes.json")
    rank = rank_number()
    path = find_weights(weights)
    settings = answer_settings(request, path, amp)
    key = _key(inputs, request, settings)
    folder = parts_folder(request.out) / key
    starts = range(0, len(inputs), _part_size(len(inputs)))
    parts = {folder / f"{number:05d}.jsonl": inputs[start : start + starts.step] for number, start in enumerate(starts)}
    done = sum(part.exists() for part in parts)
    if done and rank == 0:
        say(f"{folder} has {done} of {counted(len(parts), 'part')}; only the others are processed")
    stems = output_stems([item.name for item in inputs], request.format)
    states = image_states(request, inputs)
    before = {item.file: item for item in earlier_results(request, inputs, settings, states)}
    work = None
    with ending_early() as ended:
        for part in list(parts)[rank :: world_size()]:
            if not part.exists():
                if (failed := _merged_before(request, key)) is not None:
                    say(f"{request.out} was merged before this rank started; nothing left to do")
                    return end_with_failures(failed if rank == 0 else 0, len(inputs))
                work = work or open_work(request, str(path), device, amp, states)
                _process(part, {item: stems[item.name] for item in parts[part]}, work, ended, before)
            if ended():
                raise Interrupted(
                    "interrupted; finished parts are kept, and the same command processes the rest", ended()
                )
        if rank == 0 and (failed := _wait_for(list(parts), ended, lambda: _merged_before(request, key))) is not None:
            say(f"{request.out} was merged by another rank 0; nothing left to do")
            return end_with_failures(failed, len(inputs))
    if rank == 0:
        work = work or open_work(request, str(path), device, amp, states)
        failed = _merge(list(parts), work, stems)
        mark = {"key": key, "run": _run_id(), "unreadable": failed}
        write_text(_mark(request.out), json.dumps(mark) + "\n")
        shutil.rmtree(folder.parent, ignore_errors=True)
        end_with_failures(failed, len(inputs))
    return None


def _mark(out: Path) -> Path:
    return out.with_name(f".{out.name}.merged")


def _run_id() -> str:
    """An id shared by all ranks of a command, even if one is restarted; empty if the environment has none."""
    named = os.environ.get("DINO_RUN_ID")
    return named or ".".join(filter(None, (os.environ.get(name) for name in RUN_IDS)))


def _merged_before(request: PredictRequest, key: str) -> int | None:
    """The number of unreadable images if rank 0 of this command has already merged all parts; otherwise None.

    It is the same command if the run ids are equal, or if this rank started before the merge.
    """
    assert request.out is not None
    try:
        merged = _mark(request.out).stat().st_mtime
        mark = json.loads(_mark(request.out).read_text(encoding="utf-8"))
        same = mark["key"] == key and (request.begun < merged or (mark["run"] == _run_id() != ""))
        return int(mark["unreadable"]) if same and request.out.exists() else None
    except (OSError, ValueError, KeyError, TypeError):  # it does not exist, or is another file
        return None


def _part_size(images: int) -> int:
    """Images per part: few enough that every rank has work, at most `IMAGES_PER_PART`.

    It depends only on the number of images, so that a command can be continued with another number of ranks.
    """
    return max(1, min(IMAGES_PER_PART, images // 64))


def _key(inputs: Sequence[Input], request: PredictRequest, settings: dict[str, Any]) -> str:
    """A hash of everything that affects the results: images (name, size, time), settings, and the weights file."""
    drawn = str(request.save_images) if request.save_images else None
    digest = hashlib.sha256(json.dumps([settings, drawn]).encode())
    for item in inputs:
        digest.update(f"{item.name}\0{_state(item)}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _state(item: Input) -> str:
    """Size and modification time of an image; for standard input only the size, since each rank has a copy."""
    state = file_state(item.path)
    return state.partition(" ")[0] if item.name == "-" else state


def _process(part: Path, inputs: dict[Input, str], work: Work, ended: Any, before: dict[str, ImageResult]) -> None:
    """Process a part and write it, unless a signal arrives first.

    Args:
        before: earlier results by file; these images are not processed again.
    """
    lines = {i.name: json_lines([before[i.name]]) for i in inputs if i.name in before}
    tally = Tally()
    todo = {item: stem for item, stem in inputs.items() if item.name not in before}
    for item, result in zip(todo, detect_files(work, todo, ended, tally), strict=False):
        if isinstance(result, DataError):
            lines[item.name] = json.dumps({"file": item.name, "error": result.as_dict()}, ensure_ascii=False) + "\n"
        else:
            lines[item.name] = json_lines([result])
    if all(item.name in lines for item in inputs):
        write_text(part, "".join([*(lines[i.name] for i in inputs), json.dumps({"best": tally.best}) + "\n"]))


def _wait_for(parts: Sequence[Path], ended: Any, merged: Callable[[], int | None]) -> int | None:
    """Wait until the other ranks have written all parts; if one fails, the launcher stops this rank.

    Returns:
        None, or the result of `merged` if another rank 0 has merged the parts first, such as one that outlived the
        launcher of an earlier command.
    """
    for part in parts:
        while not part.exists():
            if (failed := merged()) is not None:
                return failed
            time.sleep(POLL)
            if ended():
                raise Interrupted(
                    "interrupted; finished parts are kept, and the same command processes the rest", ended()
                )
    return None


def _merge(parts: Sequence[Path], work: Work, stems: dict[str, str]) -> int:
    """Write --out from the parts; for JSON and JSON lines, only one image is in memory at a time.

    Returns:
        the number of images that could not be read.
    """
    request, out = work.request, work.request.out
    assert out is not None
    failed, tally, found = [], Tally(), 0
    for row in _rows(parts):
        if "error" in row:
            failed.append(row)
        elif "best" in row:  # the best score in a part
            tally.best = max(tally.best, row["best"])
        else:
            found += 1
            tally.add(work, row["file"], (row["height"], row["width"]), len(row["detections"]), -1.0)
    errors = [_error(row["error"]) for row in failed[: MAX_ERRORS + 1]]
    if len(stems) > 1:
        _name(errors, len(failed))
    if not found:
        raise none_left(len(failed), errors[0])
    if request.format in RESUMABLE:
        remember(work, missing=bool(failed))
        write_atomically(out, lambda temporary: _stream(parts, request.format, temporary))
    else:
        for path in write_detections(list(_found(parts)), work.detector.categories, request.format, out, stems)[1:]:
            say(f"wrote {path}")
    tally.say(work.least)
    say(f"wrote {out}: {counted(tally.passed, 'detection')} in {counted(found, 'image')}")
    if request.save_images is not None:
        say(f"wrote images with boxes to {request.save_images}")
    if request.json:
        print_json([item._asdict() for item in _found(parts)])
    return len(failed)


def _error(row: dict[str, Any]) -> DataError:
    return DataError(row["what"], code=row["code"], where=row["where"] or "", fix=row["fix"] or "")


def _name(errors: Sequence[DataError], count: int) -> None:
    """Report on stderr which images could not be read, and why; if there are many, only the first ones."""
    for error in errors[:MAX_ERRORS]:
        fail(error)
    if count > MAX_ERRORS:
        fail(f"{count - MAX_ERRORS} more images could not be read")


def _stream(parts: Sequence[Path], kind: str, path: Path) -> None:
    with path.open("w", encoding="utf-8", errors=ESCAPED) as file:
        for number, found in zip(count(), _found(parts), strict=False):
            if kind == "json":
                file.write("[\n" if number == 0 else ",\n")
            file.write(json_lines([found]).rstrip("\n") + ("" if kind == "json" else "\n"))
        file.write("\n]\n" if kind == "json" else "")


def _rows(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with part.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _found(parts: Sequence[Path]) -> Iterator[ImageResult]:
    return (ImageResult(**row) for row in _rows(parts) if "file" in row and "error" not in row)
