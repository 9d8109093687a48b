from pathlib import Path
from typing import Annotated

import typer

from ..options import Device, Json, Weights


def inspect_attention(
    file: Annotated[
        Path | None,
        typer.Argument(help="A picture; default: the first of the weights' own data, or one that dino draws."),
    ] = None,
    query: Annotated[
        int | None, typer.Option("--query", help="Decoder query; default: that of the most confident detection.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="X,Y", help="A pixel: show the encoder's token there instead.")
    ] = None,
    level: Annotated[int, typer.Option(help="With --at: the token's feature level, 0 is the finest.")] = 0,
    layer: Annotated[int, typer.Option(help="From 0; -1 is the last.")] = -1,
    head: Annotated[str, typer.Option(help="all, or the number of one.")] = "all",
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A .png file for the figure.")] = None,
    report: Annotated[Path | None, typer.Option(help="An .html file: the same with the whole tables.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Show where deformable attention looks: sampling points and weights per head and level."""
    from ._inspect_attention_work import Outputs, Wanted, show_attention

    show_attention(file, Wanted(query, at, level, layer, head), weights, Outputs(out, report, json), device)
