from pathlib import Path
from typing import Annotated

import typer

from dinocore.errors import ConfigError
from dinocore.system.unfinished import check_fillable, filling
from dinocore.words import counted, typed

from ..console import print_json, say
from ..options import Json


def sample_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to: new, or empty.")],
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", min=1, help="Number of images, training and validation together.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of each image in pixels.")] = "640x480",
    json: Json = False,
) -> None:
    """Draw images of blood cells under a microscope, with exact boxes, in COCO layout.

    Example: dino sample-data drawn --num-images 20
    """
    from dinocore.data.synthetic.sample import PARTS, write_sample_data

    width, cross, height = size.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise ConfigError(f"--size {size} is not a size; write it as 640x480")
    check_fillable("OUT", folder, PARTS)
    with filling(folder, PARTS):
        summary = write_sample_data(folder, num_images, seed, (int(width), int(height)))
    if json:
        print_json({"folder": str(folder), "seed": seed} | summary._asdict())
        return
    objects = ", ".join(f"{count} {name}" for name, count in summary.objects.items())
    images = f"{counted(summary.train_images, 'image')} to train on and {summary.val_images} to evaluate on"
    say(f"wrote {folder}: {images}; {objects}")
    say(f"next: dino train --data {typed(folder)}")
