"""`dino inspect-matching`: which query took which object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from dinocore.data.annotations import Annotations
from dinocore.data.images import read_image
from dinocore.data.split import check_split
from dinocore.errors import CheckpointError, ConfigError, DataError
from dinocore.words import counted, whole

from ..annotated import open_annotated
from ..console import print_json, say, stdout, warn_of_letters
from ..options import Data, Device, Json, Split, Weights
from ..weights_option import open_detector
from .inspect_attention import Outputs

if TYPE_CHECKING:
    from dinocore.data.batch import Batch
    from dinocore.inspect.matching.matching import Matching
    from dinocore.predict import Detector


def inspect_matching(
    image: Annotated[
        str | None, typer.Argument(help="File name of an image of the data; default: the first that has objects.")
    ] = None,
    data: Data = None,
    split: Split = "val",
    weights: Weights = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A run folder: show how the matching changed over its checkpoints.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the denoising noise.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="How many objects to list.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A .png file for the figure.")] = None,
    report: Annotated[Path | None, typer.Option(help="An .html file: the figure and the full tables.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Show which query took which object at each stage, what that cost, and the denoising queries.

    Example: dino inspect-matching --data my-data --out matching.png
    """
    from .inspect_attention import Outputs

    show_matching(ImageSource(image, data, split), weights, run, seed, top, Outputs(out, report, json), device)


class ImageSource(NamedTuple):
    """Which annotated image."""

    image: str | None
    data: Path | None
    split: str


def show_matching(
    source: ImageSource,
    weights: str | None,
    run: Path | None,
    seed: int,
    top: int,
    outputs: Outputs,
    device: str,
) -> None:
    """Match one image's objects as training does; print and draw it."""
    from dinocore.inspect.matching.matching import annotated_batch, look_at_matching

    check_split(source.split)
    outputs.check()
    checkpoints = _checkpoints(run)
    detector, path = open_detector(weights or (None if run is None else str(run)), device, "off")
    annotations, index = _choose(source, detector)
    batch = annotated_batch(annotations, index, detector.config, seed)
    seen = look_at_matching(detector, batch)
    history = _history(checkpoints, batch, device, len(detector.categories))
    file = annotations.path(index)
    if outputs.json:
        facts = {"file": str(file), "weights": str(path), "seed": seed}
        print_json(facts | seen.as_dict() | ({"checkpoints": history} if run is not None else {}))
    else:
        _show(seen, file, top)
        if history:
            _show_history(history)
    if outputs.out is not None or outputs.report is not None:
        from dinocore.inspect.matching.figure import draw_matching, render_matching

        warn_of_letters(category.name for category in detector.categories)
        image = read_image(file, detector.config.data)
        figure = draw_matching(image, seen)
        outputs.write(figure, lambda: render_matching(file.name, image, figure, seen, history))
    elif not outputs.json:
        say("add --out matching.png for the figure")


def _choose(source: ImageSource, detector: Detector) -> tuple[Annotations, int]:
    """The annotations and the image's place in them."""
    annotations = open_annotated(source.data, source.split, detector)
    if source.image is not None:
        file_name = Path(source.image).name
        found = [i for i in range(len(annotations.image_ids)) if annotations.path(i).name == file_name]
        if not found:
            raise DataError(f"{annotations.file} has no image {file_name}; images are compared by file name")
        return annotations, found[0]
    usable = annotations.trainable(detector.config.data.min_box_size)
    owners = annotations.owners()[usable]
    if not len(owners):
        raise DataError(f"{annotations.file} has no object to match")
    return annotations, int(owners[0])


def _checkpoints(run: Path | None) -> list[Path]:
    from dinocore.train.run.checkpoint_folder import list_checkpoints

    if run is None:
        return []
    found = list_checkpoints(run / "checkpoints")
    if not found:
        raise CheckpointError(f"{run} has no checkpoints to compare; name the folder of a run")
    return found


def _history(checkpoints: list[Path], batch: Batch, device: str, num_classes: int) -> list[dict[str, Any]]:
    """The last layer's match at every checkpoint, compared with the one before it."""
    from dinocore.inspect.matching.matching import final_owners, instability, share_kept
    from dinocore.predict import detector_from
    from dinocore.system.device import pick_device
    from dinocore.train.run.checkpoint_folder import step_of
    from dinocore.weights.fetch.locate import locate
    from dinocore.weights.file import load_weights

    rows, before = [], None
    for path in checkpoints:
        file = locate(path)
        loaded = load_weights(file)
        if len(loaded.categories) != num_classes:
            raise ConfigError(
                f"{path} knows {counted(len(loaded.categories), 'class', 'classes')}, the weights {num_classes}"
            )
        owners = final_owners(detector_from(loaded, file, pick_device(device), "off"), batch)
        changed = (
            {} if before is None else {"kept": share_kept(before, owners), "instability": instability(before, owners)}
        )
        rows.append({"step": step_of(path), "kept": None, "instability": None} | changed)
        before = owners
    return rows


def _show(seen: Matching, file: Path, top: int) -> None:
    from dinocore.inspect.matching.matching import cost_name

    queries = counted(seen.num_queries, "query", "queries")
    stdout.print(f"[bold]{escape(file.name)}[/]: {counted(len(seen.objects), 'object')}, {queries}")
    stdout.print("matching queries, numbered from 0, that each stage gives an object")
    _show_queries(seen, top)
    parts = [cost_name(part) for part in seen.stages[0].mean_costs()]
    table = _table("stage", *parts, "cost", "IoU", "stayed", "differ")
    for stage in seen.stages:
        kept = ["", ""] if stage.kept is None else [f"{100 * stage.kept:.0f}%", str(stage.instability)]
        table.add_row(stage.name, *(f"{value:.2f}" for value in stage.means()), *kept)
    stdout.print()
    stdout.print(
        "mean of the matched pairs, weighted as in the match; stayed: objects whose query is that of the stage before;"
    )
    stdout.print("differ: queries that answer for something else than before (DN-DETR's instability)")
    stdout.print(table)
    _show_noise(seen, top)


def _show_queries(seen: Matching, top: int) -> None:
    """Which query has which object, stage by stage."""
    table = _table("object", "", *(stage.name for stage in seen.stages), "IoU")
    columns = [{answer.object: answer for answer in stage.answers} for stage in seen.stages]
    for t, thing in enumerate(seen.objects[:top]):
        cells = [str(column[t].query) if t in column else "-" for column in columns]
        table.add_row(str(t), escape(thing.label), *cells, f"{columns[-1][t].iou:.2f}" if t in columns[-1] else "-")
    stdout.print(table)
    if len(seen.objects) > top:
        stdout.print(f"{len(seen.objects) - top} more; --top {len(seen.objects)} lists all")


def _show_noise(seen: Matching, top: int) -> None:
    """Group 0 of the denoising queries."""
    rows = [noisy for noisy in seen.noisy if noisy.group == 0]
    if not rows:
        stdout.print("\nthis model trains without denoising")
        return
    groups = f"group 0 of {seen.num_groups}, --json has all groups"
    stdout.print(f"\ndenoising queries, which have numbers of their own from 0; {groups}")
    table = _table("query", "", "of object", "starts as", "at", "must answer", "answers", "IoU")
    for noisy in [*[n for n in rows if n.positive][:top], *[n for n in rows if not n.positive][:top]]:
        place = whole(noisy.start_box)
        sign = "positive" if noisy.positive else "negative"
        table.add_row(
            str(noisy.query), sign, str(noisy.object), escape(noisy.start_label), place, escape(noisy.told),
            f"{escape(seen.objects[noisy.object].label)} {noisy.probability:.2f}", f"{noisy.iou:.2f}",
        )  # fmt: skip
    stdout.print(table)


def _show_history(history: list[dict[str, Any]]) -> None:
    stdout.print("\nlast layer, checkpoint by checkpoint")
    table = _table("step", "stayed", "differ")
    for row in history:
        kept = "" if row["kept"] is None else f"{100 * row['kept']:.0f}%"
        table.add_row(str(row["step"]), kept, "" if row["instability"] is None else str(row["instability"]))
    stdout.print(table)


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in titles:
        left = title in ("", "stage", "starts as", "must answer")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    return table
