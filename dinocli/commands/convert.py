from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, Overrides


def convert(
    file: Annotated[
        str, typer.Argument(help="Weights of official DINO, detrex or mmdetection, a file or a name; ours with --to.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .safetensors, or .pth with --to official.")],
    source: Annotated[
        str | None, typer.Option("--from", help="official, detrex or mmdet; default: told by the tensors' names.")
    ] = None,
    to: Annotated[str, typer.Option(help="dino, or official: writes our weights as official DINO has them.")] = "dino",
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="The config that it was trained with.")] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which of a codebase's configs: base, improved, 12e, 24e.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="80: without the 11 logits of official's 91 that are no class.")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="Text file with a class name a line, for other than COCO.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the moving average that stands beside the weights.")] = False,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Make weights of other DINO codebases ours, or ours official's; every tensor is accounted for."""
    from ._convert_work import Wanted, convert_to_official, convert_to_ours

    wanted = Wanted(file, out, source, to, preset, variant, classes, names, overrides, json, ema)
    if to == "official":
        convert_to_official(wanted)
    else:
        convert_to_ours(wanted)
