from typing import Annotated

import typer

from ..options import Json


def weights(
    name: Annotated[str | None, typer.Argument(help="Show all about this one.")] = None,
    json: Json = False,
) -> None:
    """List the published checkpoints that --weights takes by name."""
    from ._weights_work import show_one, show_published

    if name is None:
        show_published(json)
    else:
        show_one(name, json)
