"""`dino inspect-data`: draw training images as the model sees them."""

from __future__ import annotations

import math
from itertools import islice
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from dinocore.data.dataset import open_dataset
from dinocore.presets import load_config
from dinocore.words import counted

from ...console import print_json, say, stdout, warn, warn_of_letters
from ...options import ConfigFile, Json, Overrides, Preset, check_data
from ...outputs import check_outputs, write_image


def inspect_data(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", callback=check_data, help="Data folder; default: images that dino draws itself."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", "--save", help="The image to write, .png or .jpg.")] = Path(
        "inspect-data.png"
    ),
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=100, help="Number of images.")] = 9,
    step: Annotated[int, typer.Option(min=0, help="First optimizer step to show.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Show images as stored, without augmentation.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="The training seed.")] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Draw training images with their boxes exactly as the model sees them.

    Example: dino inspect-data my-data --out batch.png
    """
    check_outputs(out, None, ".png", ".jpg", ".jpeg")
    flags = [] if folder is None else [f"data.path={dumps(str(folder.expanduser().absolute()))}"]
    flags += [] if seed is None else [f"train.seed={seed}"]
    settings = load_config(preset, [*overrides, *flags, "data.workers=0"], config)
    from dinocore.inspect.batch import draw_grid, raw_cells, training_cells

    found = open_dataset(settings.data)
    say(f"data: {found.source}")
    for note in found.notes:
        warn(note)
    names = [category.name for category in found.train.categories]
    warn_of_letters(names)
    make = raw_cells if raw else training_cells
    cells = list(islice(make(found.train, settings, step, math.ceil(num / settings.train.batch_size)), num))
    write_image(out, draw_grid(cells, names))
    if json:
        facts = {"out": str(out), "seed": settings.train.seed, "step": step, "raw": raw}
        print_json(facts | {"images": [cell.as_dict(names) for cell in cells]})
    else:
        for cell in cells:
            height, width = cell.image.shape[:2]
            objects = counted(len(cell.labels), "object")
            stdout.print(f"{cell.file}: {width} x {height}, {objects}, epoch {cell.epoch}", markup=False)
    say(f"wrote {out}; reproduce them with --seed {settings.train.seed} --step {step}")
