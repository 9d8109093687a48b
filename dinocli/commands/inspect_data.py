"""`dino inspect-data`: training images as the model gets them."""

from __future__ import annotations

import math
from itertools import islice
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from dinocore.config import Config
from dinocore.data.dataset import open_dataset
from dinocore.system.files import write_atomically
from dinocore.words import counted

from ..console import print_json, say, stdout, warn, warn_of_letters
from ..options import ConfigFile, Json, Overrides, Preset


def inspect_data(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Data folder; default: images that dino draws itself.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--save", help="The image to write, .png or .jpg.")] = Path(
        "inspect-data.png"
    ),
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=100, help="How many images.")] = 9,
    step: Annotated[int, typer.Option(min=0, help="First optimizer step to show.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Images as they are on disk, not augmented.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="The seed of the training.")] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Draw training images with their boxes exactly as the model gets them.

    Example: dino inspect-data my-data --out batch.png
    """
    from dinocore.presets import load_config
    from dinocore.system.files import check_file

    check_file("--out", out, ".png", ".jpg", ".jpeg")
    flags = [] if folder is None else [f"data.path={dumps(str(folder.expanduser().absolute()))}"]
    flags += [] if seed is None else [f"train.seed={seed}"]
    settings = load_config(preset, [*overrides, *flags, "data.workers=0"], config)

    show_images(settings, out, num, step, raw, json)


def show_images(config: Config, out: Path, num: int, step: int, raw: bool, json: bool) -> None:
    """Draw the first images of a step and those that follow, and list them."""
    from dinocore.inspect.batch import draw_grid, raw_cells, training_cells

    found = open_dataset(config.data)
    say(f"data: {found.source}")
    for note in found.notes:
        warn(note)
    annotations = found.train
    names = [category.name for category in annotations.categories]
    warn_of_letters(names)
    make = raw_cells if raw else training_cells
    cells = list(islice(make(annotations, config, step, math.ceil(num / config.train.batch_size)), num))
    image = draw_grid(cells, names)
    kind = "PNG" if out.suffix.lower() == ".png" else "JPEG"
    write_atomically(out, lambda temporary: image.save(temporary, format=kind))
    if json:
        facts = {"out": str(out), "seed": config.train.seed, "step": step, "raw": raw}
        print_json(facts | {"images": [cell.as_dict(names) for cell in cells]})
    else:
        for cell in cells:
            height, width = cell.image.shape[:2]
            stdout.print(
                f"{cell.file}: {width} x {height}, {counted(len(cell.labels), 'object')}, epoch {cell.epoch}",
                markup=False,
            )
    say(f"wrote {out}; see them again with --seed {config.train.seed} --step {step}")
