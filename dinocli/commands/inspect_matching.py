from pathlib import Path
from typing import Annotated

import typer

from ..options import Data, Device, Json, Weights


def inspect_matching(
    picture: Annotated[
        str | None, typer.Argument(help="File name of a picture of the data; default: the first that has objects.")
    ] = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="Of --data: val or train.")] = "val",
    weights: Weights = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A run's folder: how the match changed over its checkpoints.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the denoising noise.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="How many objects to list.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A .png file for the figure.")] = None,
    report: Annotated[Path | None, typer.Option(help="An .html file: the same with the whole tables.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Show which query took which object at each stage, what that cost, and the denoising queries."""
    from ._inspect_attention_work import Outputs
    from ._inspect_matching_work import Source, show_matching

    show_matching(Source(picture, data, split), weights, run, seed, top, Outputs(out, report, json), device)
