from typing import Annotated

import typer

from ..options import Json


def info(
    file: Annotated[
        str,
        typer.Argument(
            help="Weights of ours, official DINO, detrex or mmdetection: a file, a run, a name, an address."
        ),
    ],
    json: Json = False,
) -> None:
    """Say what a file of weights is."""
    from ._info_work import show_info

    show_info(file, json)
