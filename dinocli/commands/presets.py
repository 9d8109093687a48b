from typing import Annotated

import typer
from rich.table import Table

from ..completion import preset_names
from ..console import print_json, say, stdout
from ..options import Json, Overrides


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Print all settings of this one as TOML, each with its comment.",
            autocompletion=preset_names,
        ),
    ] = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """List the presets, or print every setting of one with its comment.

    Example: dino presets r50-4scale > mine.toml
    """
    from dinocore.presets import list_presets, load_config, preset_title, reported_ap
    from dinocore.settings import commented_toml

    if name is not None:
        config = load_config(name, overrides)
        print_json(config.model_dump(mode="json")) if json else print(commented_toml(config), end="")
        return
    if json:
        print_json({preset: preset_title(preset) for preset in list_presets()})
        return
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for column in ("preset", "backbone", "levels", "epochs", "AP"):
        table.add_column(column, justify="left" if column in ("preset", "backbone") else "right", overflow="fold")
    for preset in sorted(list_presets(), key=lambda name: (name.startswith(("detrex-", "mmdet-")), name)):
        config = load_config(preset)
        backbone = config.model.backbone.removeprefix("timm/")
        counts = str(config.model.num_levels), str(config.train.epochs)
        table.add_row(f"[bold]{preset}[/]", backbone, *counts, reported_ap(preset) or "-")
    stdout.print(table)
    say("AP is on COCO val2017, as reported by the recipe's authors; `dino presets NAME` prints all settings.")
