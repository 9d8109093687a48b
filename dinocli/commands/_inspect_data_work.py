"""What `dino inspect-data` does."""

import math
from itertools import islice
from pathlib import Path

from dinocore.config import Config
from dinocore.data.dataset import open_dataset
from dinocore.inspect.batch import draw_grid, raw_cells, training_cells
from dinocore.system.files import write_atomically
from dinocore.words import counted

from ..console import data, print_json, say, warn, warn_of_letters


def show_pictures(config: Config, out: Path, num: int, step: int, raw: bool, json: bool) -> None:
    """Draw the first pictures of a step and those that follow, and list them."""
    found = open_dataset(config.data)
    say(f"data: {found.source}")
    for note in found.notes:
        warn(note)
    annotations = found.train
    names = [category.name for category in annotations.categories]
    warn_of_letters(names)
    make = raw_cells if raw else training_cells
    cells = list(islice(make(annotations, config, step, math.ceil(num / config.train.batch_size)), num))
    picture = draw_grid(cells, names)
    kind = "PNG" if out.suffix.lower() == ".png" else "JPEG"
    write_atomically(out, lambda temporary: picture.save(temporary, format=kind))
    if json:
        facts = {"out": str(out), "seed": config.train.seed, "step": step, "raw": raw}
        print_json(facts | {"pictures": [cell.as_dict(names) for cell in cells]})
    else:
        for cell in cells:
            height, width = cell.image.shape[:2]
            data.print(
                f"{cell.file}: {width} x {height}, {counted(len(cell.labels), 'object')}, epoch {cell.epoch}",
                markup=False,
            )
    say(f"wrote {out}; see them again with --seed {config.train.seed} --step {step}")
