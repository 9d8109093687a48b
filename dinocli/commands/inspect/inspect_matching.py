"""`dino inspect-matching`: show which query is matched to which object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from dinocore.data.annotations import Annotations
from dinocore.data.images import read_image
from dinocore.data.split import check_split
from dinocore.errors import CheckpointError, ConfigError, DataError
from dinocore.words import counted, whole

from ...annotated import open_annotated
from ...console import print_json, say, stdout, warn_of_letters
from ...options import Data, Device, Json, Split, Weights
from ...outputs import Figure, Report, check_outputs, print_table, write_outputs
from ...weights_option import open_detector

if TYPE_CHECKING:
    from dinocore.data.batch import Batch
    from dinocore.inspect.matching.matching import Matching


def inspect_matching(
    image: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE", help="File name of an image in the data; default: the first one with objects."),
    ] = None,
    data: Data = None,
    split: Split = "val",
    weights: Weights = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A run folder; show how the matching changed over its checkpoints.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the denoising noise.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Number of objects to list.")] = 20,
    out: Figure = None,
    report: Report = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Show which query is matched to which object at each stage, at what cost, and the denoising queries.

    Example: dino inspect-matching --data my-data --out matching.png
    """
    check_split(split)
    check_outputs(out, report)
    from dinocore.inspect.matching.matching import annotated_batch, look_at_matching
    from dinocore.train.run.checkpoint_folder import list_checkpoints

    checkpoints = [] if run is None else list_checkpoints(run / "checkpoints")
    if run is not None and not checkpoints:
        raise CheckpointError(f"{run} has no checkpoints to compare; give a run folder")
    detector, path = open_detector(weights or (None if run is None else str(run)), device, "off")
    annotations = open_annotated(data, split, detector)
    index = _choose(annotations, image, detector.config.data.min_box_size)
    batch = annotated_batch(annotations, index, detector.config, seed)
    seen = look_at_matching(detector, batch)
    history = _history(checkpoints, batch, device, len(detector.categories))
    file = annotations.path(index)
    if json:
        facts = {"file": str(file), "weights": str(path), "seed": seed}
        print_json(facts | seen.as_dict() | ({"checkpoints": history} if run is not None else {}))
    else:
        _show(seen, file, top)
        if history:
            stdout.print("\nlast layer, checkpoint by checkpoint")
            rows = [[row["step"], _percent(row["kept"]), row["instability"]] for row in history]
            print_table(("step", "stayed", "differ"), rows)
    if out or report:
        from dinocore.inspect.matching.figure import draw_matching, render_matching

        warn_of_letters(category.name for category in detector.categories)
        pixels = read_image(file, detector.config.data)
        figure = draw_matching(pixels, seen)
        write_outputs(out, report, figure, lambda: render_matching(file.name, pixels, figure, seen, history))
    elif not json:
        say("add --out matching.png for the figure")


def _choose(annotations: Annotations, image: str | None, min_size: float) -> int:
    """The index of the image with this name, or of the first image with an object."""
    if image is not None:
        name = Path(image).name
        found = [i for i in range(len(annotations.image_ids)) if annotations.path(i).name == name]
        if not found:
            raise DataError(f"{annotations.file} has no image {name}; images are matched by file name")
        return found[0]
    owners = annotations.owners()[annotations.trainable(min_size)]
    if not len(owners):
        raise DataError(f"{annotations.file} has no objects to match")
    return int(owners[0])


def _history(checkpoints: list[Path], batch: Batch, device: str, num_classes: int) -> list[dict[str, Any]]:
    """The last layer's matching at each checkpoint, compared with the previous checkpoint."""
    from dinocore.inspect.matching.matching import changes, final_objects
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
            known = counted(len(loaded.categories), "class", "classes")
            raise ConfigError(f"{path} has {known}, the weights {num_classes}")
        owners = final_objects(detector_from(loaded, file, pick_device(device), "off"), batch)
        rows.append({"step": step_of(path)} | changes(before, owners))
        before = owners
    return rows


def _show(seen: Matching, file: Path, top: int) -> None:
    queries = counted(seen.num_queries, "query", "queries")
    stdout.print(f"[bold]{escape(file.name)}[/]: {counted(len(seen.objects), 'object')}, {queries}")
    stdout.print("matching query (numbered from 0) of each object at each stage")
    rows = [["-" if cell is None else cell for cell in row[:-1]] for row in seen.object_rows()[:top]]
    print_table(["object", "", *(stage.name for stage in seen.stages), "IoU"], rows, left=("",))
    if len(seen.objects) > top:
        stdout.print(f"{len(seen.objects) - top} more; --top {len(seen.objects)} lists all")
    stdout.print(
        "\nmean over matched pairs, weighted as in matching; "
        "stayed: objects that keep the query of the previous stage;\n"
        "differ: queries matched to a different object, or none (DN-DETR's instability)"
    )
    rows = [[*row, _percent(kept), changed] for *row, kept, changed in seen.stage_rows()]
    print_table(["stage", *seen.cost_names, "cost", "IoU", "stayed", "differ"], rows, left=("stage",))
    if not seen.noisy:
        stdout.print("\nthis model trains without denoising")
        return
    groups = f"group 0 of {seen.num_groups}, --json has all groups"
    stdout.print(f"\ndenoising queries, numbered separately from 0; {groups}")
    group = [noisy for noisy in seen.noisy if noisy.group == 0]
    rows = [
        [noisy.query, sign, noisy.object, noisy.start_label, whole(noisy.start_box), noisy.target_label,
         f"{seen.objects[noisy.object].label} {noisy.probability:.2f}", noisy.iou]
        for sign in ("positive", "negative")
        for noisy in [noisy for noisy in group if noisy.positive == (sign == "positive")][:top]
    ]  # fmt: skip
    titles = ("query", "", "of object", "starts as", "at", "must answer", "answers", "IoU")
    print_table(titles, rows, left=("", "starts as", "must answer"))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f}%"
