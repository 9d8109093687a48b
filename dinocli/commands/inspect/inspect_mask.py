"""`dino inspect-mask`: show which query may attend to which in training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dinocore.config import Config, ModelConfig
from dinocore.data.dataset import open_dataset
from dinocore.errors import ConfigError
from dinocore.presets import load_config
from dinocore.system.files import write_text

from ... import console
from ...annotated import settings_of
from ...console import print_json, say, warn
from ...options import ConfigFile, Json, ModelOf, Overrides, check_data, preset_option
from ...outputs import check_outputs, write_image

if TYPE_CHECKING:
    from dinocore.inspect.mask.mask import MaskView

PRESET = "r50-4scale"
STYLES = {
    "blocked": "bright_black",
    "partly": "magenta",
    "positive": "blue",
    "negative": "yellow",
    "both": "magenta",
    "matching": "cyan",
    "object": "green",
    "padding": "bright_black",
}
DEFAULT_OBJECTS = [3]  # number of objects in each image of the default batch


def inspect_mask(
    preset: Annotated[str | None, preset_option(PRESET)] = None,
    weights: ModelOf = None,
    dn_groups: Annotated[
        int | None, typer.Option("--dn-groups", min=0, help="Denoising groups; default: the preset's.")
    ] = None,
    num_gt: Annotated[
        list[int], typer.Option("--num-gt", min=0, help="Annotated objects of one image; repeat it for a batch.")
    ] = [],
    data: Annotated[
        Path | None,
        typer.Option("--data", callback=check_data, help="A data folder; show the mask of the first training batch."),
    ] = None,
    images: Annotated[
        list[str], typer.Option("--images", help="An image of --data, by its file name; repeat it for a batch.")
    ] = [],
    query: Annotated[
        int | None,
        typer.Option("--query", help="Explain one row: what the query is, and what it may attend to."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .png, .svg or .html file; SVG and HTML explain each row.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Show which query may attend to which in the decoder during training.

    Example: dino inspect-mask --dn-groups 5 --num-gt 3 --out mask.png
    """
    if data is not None and num_gt:
        raise ConfigError("--num-gt and --data cannot be used together; the number of objects comes from one of them")
    check_outputs(out, None, ".png", ".svg", ".html")
    from dinocore.inspect.mask.explain import explain, to_lines
    from dinocore.inspect.mask.explain import to_json as query_json
    from dinocore.inspect.mask.mask import notes, to_json

    source = preset or PRESET
    if weights is not None:
        from ...weights_option import model_of

        source, _ = model_of(weights, preset)
    if images and data is None:  # the images that the weights were trained on
        if not isinstance(source, Config) or not source.data.path:
            raise ConfigError("--images needs --data, the folder with the annotations of these images")
        data = Path(source.data.path)
    settings, view = _view(load_config(source, overrides, config), dn_groups, num_gt, data, images)
    for note in notes(view, settings):
        warn(note)
    found = None if query is None else explain(view, query)
    if json:
        model = {"weights": weights} if weights else {"preset": preset or PRESET}
        print_json(model | to_json(view) | ({} if found is None else {"query": query_json(found)}))
    elif found is not None:
        for line in to_lines(found):
            console.stdout.print(Text(line), soft_wrap=not console.stdout.is_terminal)
    else:
        _show(view)
    if out is not None:
        _write(view, out)


def _view(
    config: Config, dn_groups: int | None, num_gt: list[int], data: Path | None, images: list[str]
) -> tuple[ModelConfig, MaskView]:
    """The mask of a batch for these settings; a --dn-groups that would need far too much memory is rejected."""
    from dinocore.inspect.batch import first_batch, named_batch
    from dinocore.inspect.mask.mask import batch_mask, check_size, mask_of

    objects, num_objects = None, num_gt or DEFAULT_OBJECTS
    if data is not None:
        settings = settings_of(config.data, data)
        found = open_dataset(settings)
        say(f"data: {found.source}")
        model = config.model.model_copy(update={"num_classes": len(found.train.categories)})
        config = config.model_copy(update={"data": settings, "model": model})
        splits = [found.train, found.val]
        objects = named_batch(splits, images, config) if images else first_batch(found.train, config)
        num_objects = [len(target.labels) for target in objects.targets]
    if dn_groups is not None:
        denoising = config.model.denoising.model_copy(update={"num_groups": dn_groups})
        check_size(config.model.model_copy(update={"denoising": denoising}), num_objects)
        config = load_config(config, [f"model.denoising.num_groups={dn_groups}"])
    return config.model, batch_mask(config.model, objects) if objects else mask_of(config.model, num_objects)


def _write(view: MaskView, out: Path) -> None:
    from dinocore.inspect.mask.figure import draw_image, draw_svg, render_mask

    if out.suffix.lower() == ".png":
        image = draw_image(view)
        write_image(out, image)
        say(f"wrote {out} ({image.width} x {image.height} pixels)")
        return
    write_text(out, draw_svg(view) if out.suffix.lower() == ".svg" else render_mask(view))
    say(f"wrote {out}; open it in a browser and point at a row, or select one with the Tab key")


def _show(view: MaskView) -> None:
    from dinocore.inspect.mask.text import ASCII, UNICODE, draw_text

    glyphs = ASCII if _only_ascii("".join(UNICODE)) else UNICODE
    for line in draw_text(view, glyphs, console.stdout.width):
        console.stdout.print(Text.assemble(*((span.text, STYLES.get(span.role, "")) for span in line)))


def _only_ascii(characters: str) -> bool:
    """Whether stdout cannot encode these characters, or the locale is ASCII-only.

    Under LANG=C, Python sets LC_CTYPE to C.UTF-8 and still writes UTF-8, so checking the encoding is not enough.
    """
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE", "").replace("C.UTF-8", "")
    if (locale or os.environ.get("LANG")) in ("C", "POSIX"):
        return True
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False
