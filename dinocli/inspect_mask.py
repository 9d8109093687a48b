import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigFile, Json, ModelOf, Overrides

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


def inspect_mask(
    preset: Annotated[str, typer.Option("--preset", "-p", help="See `dino presets`.")] = "r50-4scale",
    weights: ModelOf = None,
    dn_groups: Annotated[
        int | None, typer.Option("--dn-groups", min=0, help="Denoising groups; default: as the preset says.")
    ] = None,
    num_gt: Annotated[
        list[int], typer.Option("--num-gt", min=0, help="Annotated objects of one image; repeat it for a batch.")
    ] = [3],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A .png file for a picture of the mask.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Show who may attend to whom in the decoder during training."""
    if out is not None:
        _check_picture(out)
    model = _model_config(preset, weights, dn_groups, num_gt, config, overrides)
    from dinocore.view.mask import mask_of, notes, to_json

    from .console import print_json, say, warn

    view = mask_of(model, num_gt)
    for note in notes(view, model):
        warn(note)
    if json:
        print_json(({"weights": weights} if weights else {"preset": preset}) | to_json(view))
    else:
        _show(view)
    if out is not None:
        from dinocore.files import write_atomically
        from dinocore.view.mask_image import draw_image

        picture = draw_image(view)
        write_atomically(out, lambda temporary: picture.save(temporary, format="PNG"))
        say(f"wrote {out} ({picture.width} x {picture.height} pixels)")


def _model_config(preset, weights, dn_groups, num_gt, file, overrides):
    """The model's settings with --dn-groups, of which an absurd number is refused with the size it would need."""
    from dinocore.presets import load_config
    from dinocore.view.mask import check_size

    source = preset
    if weights is not None:
        from .detector import model_of

        source, _ = model_of(weights)
    model = load_config(source, overrides, file).model
    if dn_groups is None:
        return model
    denoising = model.denoising.model_copy(update={"num_groups": dn_groups})
    check_size(model.model_copy(update={"denoising": denoising}), num_gt)
    return load_config(source, [*overrides, f"model.denoising.num_groups={dn_groups}"], file).model


def _check_picture(out: Path) -> None:
    from dinocore.errors import ConfigError

    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it, such as {out / 'mask.png'}")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the picture is written as .png only; try --out {out.with_suffix('.png')}")


def _show(view) -> None:
    from rich.text import Text

    from dinocore.view.mask_text import ASCII, UNICODE, draw_text

    from .console import data

    glyphs = ASCII if _only_ascii("".join(UNICODE)) else UNICODE
    for line in draw_text(view, glyphs, data.width):
        data.print(Text.assemble(*((span.text, STYLES.get(span.role, "")) for span in line)))


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
