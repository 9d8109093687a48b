from pathlib import Path
from typing import Annotated

import typer

from ..options import Amp, Data, Device, Json, Out, Weights


def inspect_proposals(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures; default: all of the split of --data, or of the weights' own data."),
    ] = None,
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="How many proposals to show and draw.")] = 30,
    view: Annotated[
        str, typer.Option(help="What --out draws: boxes, scores of all tokens, or what the decoder's layers did.")
    ] = "boxes",
    color: Annotated[str, typer.Option(help="Of the boxes: level or score.")] = "level",
    out: Out = None,
    report: Annotated[Path | None, typer.Option(help="An HTML file with all views, of at most 20 pictures.")] = None,
    data: Data = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO file with the objects of these pictures.")] = None,
    split: Annotated[str, typer.Option(help="Of --data: val or train.")] = "val",
    device: Device = "auto",
    amp: Amp = "auto",
    json: Json = False,
) -> None:
    """Show the first stage's scores and boxes, where the decoder moved them, and, with annotations, what they cover."""
    from ._inspect_proposals_work import Drawing, Truth, inspect_files

    drawing = Drawing(view, top, color, out, report)
    inspect_files(files or [], weights, Truth(data, annotations, split), drawing, device, amp, json)
