from pathlib import Path
from typing import Annotated

import typer

from .options import Json


def info(
    file: Annotated[Path, typer.Argument(help="A file of weights: ours, official DINO's, detrex's or mmdetection's.")],
    json: Json = False,
) -> None:
    """Say what a file of weights is."""
    from .describing import show_info

    show_info(file, json)
