from pathlib import Path
from typing import Annotated

import typer

from ..options import ConfigFile, Json, Overrides


def check_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder, in any layout that `dino train` takes.")],
    decode: Annotated[
        bool, typer.Option("--decode", help="Read every picture to its last pixel, in parallel.")
    ] = False,
    preset: Annotated[
        str, typer.Option("--preset", "-p", help="The model that the data is for; see `dino presets`.")
    ] = "tiny",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report with pictures of each finding.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write a repaired copy of the annotations and a log.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 for warnings too.")] = False,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Open pictures that links keep outside of the folder.")
    ] = False,
    allow_orphans: Annotated[
        bool, typer.Option("--allow-orphans", help="Objects of unknown pictures and classes are no errors.")
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Find what is wrong with a data set before a training does."""
    from dinocore.presets import load_config

    from ._check_data_work import check_folder

    flags = {"data.follow_symlinks": follow_symlinks, "data.allow_orphans": allow_orphans}
    changes = [*overrides, *(f"{key}=true" for key, wanted in flags.items() if wanted)]
    check_folder(folder.expanduser(), load_config(preset, changes, config), decode, html, fix, strict, json)
