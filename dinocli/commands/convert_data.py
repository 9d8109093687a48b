from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, Overrides


def convert_data(
    folder: Annotated[Path, typer.Argument(metavar="IN", help="Data folder, in any layout that `dino train` takes.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to; it is made, and must be empty.")],
    to: Annotated[str, typer.Option("--to", metavar="coco|yolo|voc", help="The format to write.")],
    link: Annotated[
        bool, typer.Option("--link", help="Give pictures a second name on the disk instead of copying them.")
    ] = False,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Write a data set as COCO, YOLO or Pascal VOC."""
    from dinocore.errors import ConfigError
    from dinocore.presets import load_config

    from ._convert_data_work import KINDS, convert_folder

    if to not in KINDS:
        raise ConfigError(f"--to {to} is not known; choose {', '.join(KINDS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} {'is not empty' if out.is_dir() else 'is a file'}; name a folder that is new or empty"
        )
    convert_folder(folder.expanduser(), out, to, link, load_config("tiny", overrides).data, json)
