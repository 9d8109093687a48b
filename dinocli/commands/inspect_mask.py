"""`dino inspect-mask`: who may attend to whom in training."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.text import Text

from dinocore.config import Config, ModelConfig
from dinocore.data.dataset import open_dataset
from dinocore.errors import ConfigError
from dinocore.presets import load_config
from dinocore.system.files import check_file, write_atomically, write_text

from .. import console
from ..console import print_json, say, warn
from ..options import ConfigFile, Json, ModelOf, Overrides, preset_option

if TYPE_CHECKING:
    from dinocore.inspect.mask.explain import Explanation
    from dinocore.inspect.mask.mask import MaskBatch, MaskView

PRESET = "r50-4scale"


def inspect_mask(
    preset: Annotated[str | None, preset_option(PRESET)] = None,
    weights: ModelOf = None,
    dn_groups: Annotated[
        int | None, typer.Option("--dn-groups", min=0, help="Denoising groups; default: as the preset says.")
    ] = None,
    num_gt: Annotated[
        list[int], typer.Option("--num-gt", min=0, help="Annotated objects of one image; repeat it for a batch.")
    ] = [],
    data: Annotated[
        Path | None, typer.Option("--data", help="A data folder: the mask of the first batch that is trained on.")
    ] = None,
    images: Annotated[
        list[str], typer.Option("--images", help="An image of --data, by its file name; repeat it for a batch.")
    ] = [],
    query: Annotated[
        int | None,
        typer.Option("--query", help="Explain one row in words: what the query is, and what it may attend to."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .png, .svg or .html file; the last two explain each row.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Show which query may attend to which in the decoder during training.

    Example: dino inspect-mask --dn-groups 5 --num-gt 3 --out mask.png
    """
    show_mask(preset, weights, dn_groups, MaskImages(num_gt, data, images), query, out, config, overrides, json)


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
USUAL = [3]  # objects of the one image that is shown where nobody says otherwise


class MaskImages(NamedTuple):
    """Which images the mask is for."""

    num_gt: Sequence[int]
    data: Path | None
    images: Sequence[str]


def show_mask(
    preset: str | None, weights: str | None, dn_groups: int | None, batch: MaskImages, query: int | None,
    out: Path | None, file: Path | None, overrides: list[str], json: bool,
) -> None:  # fmt: skip
    """Run the model's denoiser on a batch, or on so many objects, and draw its mask wherever it is asked for."""
    from dinocore.inspect.mask.explain import explain
    from dinocore.inspect.mask.explain import to_json as query_json
    from dinocore.inspect.mask.mask import notes, to_json

    _check(batch, out)
    source = preset or PRESET
    if weights is not None:
        from ..weights_option import model_of

        source, _ = model_of(weights, preset)
    if batch.images and batch.data is None:
        batch = batch._replace(data=_own_data(source))
    config, view = _view(source, dn_groups, batch, overrides, file)
    for note in notes(view, config):
        warn(note)
    found = None if query is None else explain(view, query)
    if json:
        model = {"weights": weights} if weights else {"preset": preset or PRESET}
        print_json(model | to_json(view) | ({} if found is None else {"query": query_json(found)}))
    elif found is not None:
        _show_query(found)
    else:
        _show(view)
    if out is not None:
        _write(view, out)


def _check(batch: MaskImages, out: Path | None) -> None:
    if batch.data is not None and batch.num_gt:
        raise ConfigError("--num-gt and --data exclude each other: the objects are either made up or those of the data")
    if out is not None:
        check_file("--out", out, ".png", ".svg", ".html")


def _own_data(source: str | Config) -> Path:
    """The data that weights were trained with."""
    if isinstance(source, Config) and source.data.path:
        return Path(source.data.path)
    raise ConfigError("--images needs --data, the folder whose annotations say how many objects these images have")


def _view(
    source: str | Config, dn_groups: int | None, batch: MaskImages, overrides: list[str], file: Path | None
) -> tuple[ModelConfig, MaskView]:
    """The model's settings, and its mask of the batch; an absurd --dn-groups is refused with the size it would need."""
    from dinocore.inspect.mask.mask import batch_mask, check_size, mask_of

    settings = load_config(source, overrides, file)
    objects, settings = _objects(batch, settings)
    num_objects = [len(t.labels) for t in objects.targets] if objects else batch.num_gt or USUAL
    if dn_groups is not None:
        denoising = settings.model.denoising.model_copy(update={"num_groups": dn_groups})
        check_size(settings.model.model_copy(update={"denoising": denoising}), num_objects)
        checked = load_config(source, [*overrides, f"model.denoising.num_groups={dn_groups}"], file).model.denoising
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"denoising": checked})})
    view = batch_mask(settings.model, objects) if objects else mask_of(settings.model, num_objects)
    return settings.model, view


def _objects(batch: MaskImages, config: Config) -> tuple[MaskBatch | None, Config]:
    """Those of the data, if there is some, and the settings with as many classes as it has."""
    from dinocore.inspect.batch import first_batch, named_batch

    if batch.data is None:
        return None, config
    path = str(batch.data.expanduser().absolute())
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": path})})
    found = open_dataset(config.data)
    say(f"data: {found.source}")
    model = config.model.model_copy(update={"num_classes": len(found.train.categories)})
    config = config.model_copy(update={"model": model})
    if batch.images:
        return named_batch([found.train, found.val], batch.images, config), config
    return first_batch(found.train, config), config


def _write(view: MaskView, out: Path) -> None:
    from dinocore.inspect.mask.figure import draw_image, draw_svg, render_mask

    kind = out.suffix.lower()
    if kind == ".png":
        image = draw_image(view)
        write_atomically(out, lambda temporary: image.save(temporary, format="PNG"))
        say(f"wrote {out} ({image.width} x {image.height} pixels)")
        return
    write_text(out, draw_svg(view) if kind == ".svg" else render_mask(view))
    say(f"wrote {out}; open it in a browser and point at a row, or reach it with the Tab key")


def _show_query(found: Explanation) -> None:
    from dinocore.inspect.mask.explain import words

    for line in words(found):
        console.stdout.print(Text(line), soft_wrap=not console.stdout.is_terminal)


def _show(view: MaskView) -> None:
    from dinocore.inspect.mask.text import ASCII, UNICODE, draw_text

    glyphs = ASCII if _only_ascii("".join(UNICODE)) else UNICODE
    for line in draw_text(view, glyphs, console.stdout.width):
        console.stdout.print(Text.assemble(*((span.text, STYLES.get(span.role, "")) for span in line)))


def _only_ascii(characters: str) -> bool:
    """Whether stdout cannot show these, or the locale asks for plain characters.

    Under LANG=C Python sets LC_CTYPE to C.UTF-8 and writes UTF-8 all the same, so the encoding alone doesn't tell.
    """
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE", "").replace("C.UTF-8", "")
    if (locale or os.environ.get("LANG")) in ("C", "POSIX"):
        return True
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False
