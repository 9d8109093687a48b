from pathlib import Path
from typing import Annotated

import typer

from ..options import Amp, Data, Device, Json, Out, Overrides, Weights


def evaluate(
    weights: Weights = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    results: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Judge COCO results of any detector; with --data.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two weights or files of results, side by side.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write everything as one page.")] = None,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", min=0, help="Samples of pictures for the 95 % intervals; 0: none.")
    ] = 1000,
    out: Out = None,
    slice: Annotated[
        str | None,
        typer.Option("--slice", metavar="PIXELS", help="Cut large images into slices of this side; or auto."),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Of neighbouring slices, as a fraction of their side.")] = 0.2,
    device: Device = "auto",
    amp: Amp = "auto",
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Measure average precision, and see where it is lost; default: the newest run on the data it was trained with."""
    from ._evaluate_work import Asked, compare_two, evaluate_one

    asked = Asked(data, split, out, report, bootstrap, device, amp, overrides, json, slice, overlap)
    if compare is None:
        evaluate_one(asked, weights, results)
    else:
        compare_two(asked, compare, weights, results)
