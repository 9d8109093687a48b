"""`dino check-data`: find problems in a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dinocore.config import Config
from dinocore.data.annotations import survey_annotations
from dinocore.data.check.check import Checked, CheckedSplit
from dinocore.data.check.check import check_data as run_checks
from dinocore.data.check.repair import Change, Repair, likely_root
from dinocore.data.findings import Finding, Findings
from dinocore.data.formats.coco import parse_json
from dinocore.data.formats.export import coco_document
from dinocore.data.split import Split
from dinocore.errors import ConfigError, DataError
from dinocore.system.files import check_file, to_json, write_text
from dinocore.words import counted

from ..completion import preset_names
from ..console import print_json, say, stdout, warn
from ..options import ConfigFile, Json, Overrides, ValFraction
from ..progress import WorkProgress

COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
DATA_ERROR = 3
MAX_CLASSES = 20
ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "images": lambda n: str(n["images"]),
    "without objects": lambda n: str(n["empty_images"]),
    "objects": lambda n: str(n["objects"]),
    "crowds": lambda n: str(n["crowds"]),
    "objects per image": lambda n: _range(n["objects_per_image"]),
    "most objects per image": lambda n: f"{n['objects_per_image']['max']:.0f}" if n["objects_per_image"] else "-",
    "side in pixels": lambda n: _range(n["object_side_px"]),
    "width / height": lambda n: _range(n["object_aspect"]),
    "small, medium, large": lambda n: ", ".join(f"{share:.0%}" for share in n["shares"].values()),
    "image width": lambda n: _range(n["image_width"]),
    "image height": lambda n: _range(n["image_height"]),
}


def check_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder, in any layout that `dino train` takes.")],
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image fully, in parallel.")] = False,
    preset: Annotated[
        str,
        typer.Option(
            "--preset", "-p", help="The model to check the data for; see `dino presets`.", autocompletion=preset_names
        ),
    ] = "tiny",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report with images of each finding.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write a repaired copy of the annotations, and a log.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 on warnings, too.")] = False,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Follow links that lead out of the folder.")
    ] = False,
    allow_orphans: Annotated[
        bool,
        typer.Option(
            "--allow-orphans", help="Ignore objects of unknown images and classes instead of reporting errors."
        ),
    ] = False,
    val_fraction: ValFraction = None,
    config: ConfigFile = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Find problems in a dataset before you train.

    Example: dino check-data my-data --html findings.html
    """
    from dinocore.presets import load_config

    flags = {"data.follow_symlinks": follow_symlinks, "data.allow_orphans": allow_orphans}
    changes = [*overrides, *(f"{key}=true" for key, given in flags.items() if given)]
    changes += [] if val_fraction is None else [f"data.val_fraction={val_fraction}"]
    settings, folder = load_config(preset, changes, config), folder.expanduser()
    for name, out, suffix in (("--html", html, ".html"), ("--fix", fix, ".json")):
        if out is not None:
            check_file(name, out, suffix)
    checked = _check(folder, settings, decode)
    say(f"{folder}: {checked.layout.kind} layout")
    if json:
        print_json(checked.as_dict())
    else:
        _show(checked)
    if html is not None:
        from dinocore.report.data import data_page
        from dinocore.report.page import write_page

        written = write_page(html, data_page(checked))
        say(f"wrote {', '.join(map(str, written))}")
    if fix is not None:
        _fix(checked, settings, fix)
    counts = checked.counts()
    if counts["errors"] or (strict and counts["warnings"]):
        raise typer.Exit(DATA_ERROR)


def _check(folder: Path, config: Config, decode: bool) -> Checked:
    with WorkProgress() as progress:
        tasks: dict[str, Any] = {}
        for event in run_checks(folder, config, decode):
            if isinstance(event, Checked):
                return event
            if event.split not in tasks:
                what = "decoding" if decode else "looking at"
                tasks[event.split] = progress.add_task(f"{what} {event.split}", total=event.total)
            progress.update(tasks[event.split], completed=event.done)
    raise AssertionError("check_data ended without a result")


def _show(checked: Checked) -> None:
    readable = {name: part.numbers for name, part in checked.splits.items() if part.numbers}
    if readable:
        stdout.print(_numbers(readable))
        stdout.print("[dim]ranges are from the 5th to the 95th percentile[/]")
        stdout.print(_classes(readable))
    for name, finding in checked.findings():
        stdout.print(_line(name, finding), soft_wrap=True)
    stdout.print(", ".join(counted(count, level.removesuffix("s")) for level, count in checked.counts().items()))
    if not checked.decoded:
        say("only image headers were read; --decode decodes every image and looks for near-duplicates")


def _numbers(splits: dict[str, dict[str, Any]]) -> Table:
    """A table of statistics, with a column for each split."""
    table = Table("", *splits, box=None, pad_edge=False)
    for title, value in ROWS.items():
        table.add_row(title, *(value(numbers) for numbers in splits.values()))
    return table


def _classes(splits: dict[str, dict[str, Any]]) -> Table:
    """A table of the number of objects per class, in descending order."""
    names = list(next(iter(splits.values()))["classes"])

    def count(name: str) -> int:
        return sum(numbers["classes"].get(name, {"objects": 0})["objects"] for numbers in splits.values())

    names.sort(key=count, reverse=True)
    table = Table("class", "id", *splits, box=None, pad_edge=False)
    for name in names[:MAX_CLASSES]:
        rows = [numbers["classes"].get(name) for numbers in splits.values()]
        number = next(str(row["id"]) for row in rows if row)
        table.add_row(escape(name), number, *(str(row["objects"]) if row else "-" for row in rows))
    if len(names) > MAX_CLASSES:
        table.add_row(f"{len(names) - MAX_CLASSES} more; --json has all", "", *("" for _ in splits))
    return table


def _range(spread: dict[str, float] | None) -> str:
    return f"{spread['p5']:.4g} to {spread['p95']:.4g}, median {spread['median']:.4g}" if spread else "-"


def _line(name: str, finding: Finding) -> str:
    color = COLORS[finding.level]
    place = f" {name}:" if name else ""
    text = f"[{color}]{finding.level}\\[{finding.code}][/]{place} {escape(finding.text)}"
    return f"{text}\n  fix: {escape(finding.fix)}" if finding.fix else text


def _fix(checked: Checked, config: Config, out: Path) -> None:
    """Write a repaired copy of each split's annotations, and a list of the changes."""
    for n, (name, part) in enumerate(checked.splits.items()):
        copy = out if n == 0 else out.with_name(f"{out.stem}.{name}{out.suffix}")
        if copy.resolve() == part.split.annotations.resolve():
            raise ConfigError(f"--fix {copy} is the input file, which is never edited in place; choose another name")
        document, changes = _repaired(part, config)
        log = copy.with_name(f"{copy.name}.log")
        write_text(copy, to_json(document) + "\n")
        write_text(log, "".join(to_json(change._asdict()) + "\n" for change in changes))
        say(f"wrote {copy}: {counted(len(changes), 'change')} in {name}, listed in {log}")
        _print_remaining(part, copy, config)
        if part.split.format == "coco":
            say(f"to use it, replace {part.split.annotations}")
        else:
            say(f'to use it, set {copy} in a dataset.toml with format = "coco" (docs/data.md)')


def _repaired(part: CheckedSplit, config: Config) -> tuple[dict[str, Any], list[Change]]:
    split, annotations = part.split, part.annotations
    if split.format == "coco":
        document = parse_json(split.annotations)
        found = annotations.image_root if annotations and len(annotations.image_ids) else None
        root = found or likely_root(document, split.image_roots)
        root = root or next((root for root in split.image_roots if root.is_dir()), split.annotations.parent)
        return Repair(document, root, split.folder or root, config.data).run()
    if annotations is None:
        raise DataError("it cannot be read at all", code="DATA-FILE", where=split.annotations, fix="correct the file")
    left_out = [Change(f.code, -1, None, f.text) for f in part.findings.of("error")]
    return coco_document(annotations, split.format), left_out


def _print_remaining(part: CheckedSplit, copy: Path, config: Config) -> None:
    """Check the copy as training would, and print the remaining findings."""
    findings = Findings(copy)
    try:
        left = survey_annotations(
            Split(copy, part.split.image_roots, folder=part.split.folder), None, config.data, findings
        )
    except DataError as error:
        warn(f"{copy} still cannot be used: {error.what}")
        return
    for finding in findings.of("error"):
        warn(f"still in {copy}: {finding.text}")
    if not left.trainable(config.data.min_box_size).any():
        warn(f"{copy} has no objects to train on")
