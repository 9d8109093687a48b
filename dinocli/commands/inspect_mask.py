from pathlib import Path
from typing import Annotated

import typer

from ..options import ConfigFile, Json, ModelOf, Overrides


def inspect_mask(
    preset: Annotated[str, typer.Option("--preset", "-p", help="See `dino presets`.")] = "r50-4scale",
    weights: ModelOf = None,
    dn_groups: Annotated[
        int | None, typer.Option("--dn-groups", min=0, help="Denoising groups; default: as the preset says.")
    ] = None,
    num_gt: Annotated[
        list[int], typer.Option("--num-gt", min=0, help="Annotated objects of one image; repeat it for a batch.")
    ] = [],  # noqa: B006
    data: Annotated[
        Path | None, typer.Option("--data", help="A data folder: the mask of the first batch that is trained on.")
    ] = None,
    images: Annotated[
        list[str], typer.Option("--images", help="A picture of --data, by its file name; repeat it for a batch.")
    ] = [],  # noqa: B006
    query: Annotated[
        int | None, typer.Option("--query", help="Explain one row in words: what the query is, whom it may see.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .png, .svg or .html file; the last two explain each row.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Show who may attend to whom in the decoder during training."""
    from ._inspect_mask_work import Batch, show_mask

    show_mask(preset, weights, dn_groups, Batch(num_gt, data, images), query, out, config, overrides, json)
