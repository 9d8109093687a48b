from pathlib import Path
from typing import Annotated

import typer

from ..options import ConfigFile, Json, Overrides


def inspect_data(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Data folder; default: pictures that dino draws itself.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--save", help="The picture to write, .png or .jpg.")] = Path(
        "inspect-data.png"
    ),
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=100, help="How many pictures.")] = 9,
    step: Annotated[int, typer.Option(min=0, help="Optimizer step from which on.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="As they are on disk instead of augmented.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="The seed of the training.")] = None,
    preset: Annotated[str, typer.Option("--preset", "-p", help="See `dino presets`.")] = "tiny",
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Draw training pictures with their boxes exactly as the model gets them."""
    from dinocore.errors import ConfigError
    from dinocore.presets import load_config

    if out.is_dir() or out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--out {out} is no name of a picture; give a file that ends in .png or .jpg")
    flags = [] if folder is None else [f"data.path={str(folder.expanduser().absolute())!r}"]
    flags += [] if seed is None else [f"train.seed={seed}"]
    settings = load_config(preset, [*overrides, *flags, "data.workers=0"], config)

    from ._inspect_data_work import show_pictures

    show_pictures(settings, out, num, step, raw, json)
