"""`dino inspect-attention`: show where deformable attention samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinocore.data.images import read_image
from dinocore.errors import ConfigError
from dinocore.words import whole

from ...annotated import open_annotated, warn_of_whole_images
from ...console import print_json, say, stdout, warn_of_letters
from ...inputs import check_header
from ...options import Device, Json, Weights
from ...outputs import Figure, Report, check_outputs, print_table, write_outputs
from ...weights_option import open_detector

if TYPE_CHECKING:
    from dinocore.inspect.attention import Attention


def inspect_attention(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="An image; default: the first one in the weights' own data, or one that dino draws."
        ),
    ] = None,
    query: Annotated[
        int | None,
        typer.Option("--query", min=0, help="Decoder query; default: the one of the most confident detection."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="X,Y", help="A pixel; show the encoder token there instead of a query."),
    ] = None,
    level: Annotated[int, typer.Option(min=0, help="With --at: the token's feature level; 0 is the finest.")] = 0,
    layer: Annotated[int, typer.Option(help="Layer, from 0; -1 is the last.")] = -1,
    head: Annotated[str, typer.Option(help="all, or the number of one head.")] = "all",
    weights: Weights = None,
    out: Figure = None,
    report: Report = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Show where deformable attention samples: points and weights per head and level.

    Example: dino inspect-attention img.jpg --at 120,80 --out attention.png
    """
    pixel = _pixel(at, query, level)
    check_outputs(out, report)
    if file is not None:
        check_header([str(file)])
    from dinocore.inspect.attention import attention_at, attention_of_query

    detector, path = open_detector(weights, device, "off")
    file = file or open_annotated(None, "val", detector, "an image: dino inspect-attention img.jpg").path(0)
    image = read_image(file, detector.config.data)
    warn_of_whole_images([(image.height, image.width)], lambda _: file.name, detector.config.data)
    batch = detector.batch(image)
    if pixel is None:
        seen = attention_of_query(detector, batch, layer, query)
    else:
        seen = attention_at(detector, batch, pixel, layer, level)
    chosen = _head(head, len(seen.weights))
    if json:
        print_json({"file": str(file), "weights": str(path)} | seen.as_dict())
    else:
        _show(seen, chosen)
    if out or report:
        from dinocore.inspect.attention import draw_attention, render_attention

        warn_of_letters([seen.label])
        figure = draw_attention(image, seen, chosen)
        write_outputs(out, report, figure, lambda: render_attention(file.name, image, figure, seen))
    elif not json:
        say("add --out attention.png for the figure")


def _pixel(at: str | None, query: int | None, level: int) -> tuple[float, float] | None:
    if at is None:
        if level != 0:
            raise ConfigError("--level is the level of a token at a pixel; give --at X,Y, too")
        return None
    if query is not None:
        raise ConfigError("--query selects a decoder query and --at an encoder token; give only one of them")
    try:
        x, y = map(float, at.split(","))
    except ValueError:
        raise ConfigError(f"--at {at} is not a pixel; write it as --at 120,80") from None
    return x, y


def _head(name: str, count: int) -> int | None:
    if name == "all":
        return None
    if not name.isdigit() or int(name) >= count:
        raise ConfigError(f"--head {name} is not known; choose all or a number from 0 to {count - 1}")
    return int(name)


def _show(seen: Attention, head: int | None) -> None:
    if seen.box is None:
        where = f"token {seen.index}: level {seen.level}, centre {whole(seen.center)}"
    else:
        where = f"query {seen.index}: {seen.label} {seen.score:.2f}, box {whole(seen.box)}"
    stdout.print(f"{seen.part} layer {seen.layer}, {where}", markup=False)
    levels = [f"level {n}" for n in range(seen.weights.shape[1])]
    heads = range(len(seen.weights)) if head is None else [head]
    center, size = seen.points.new_tensor(seen.center), seen.points.new_tensor(seen.size[::-1])
    away = (seen.points - center).norm(dim=-1)  # (M, L, P)
    outside = ((seen.points < 0) | (seen.points > size)).any(-1)  # (M, L, P)
    rows = []
    for m in heads:
        weights = seen.weights[m]  # (L, P)
        x, y = seen.points[m].flatten(0, 1)[weights.argmax()].tolist()
        fractions = [*weights.sum(-1).tolist(), float(weights[outside[m]].sum())]
        *by_level, off = (f"{100 * fraction:.0f}%" for fraction in fractions)
        distance = f"{float((away[m] * weights).sum()):.0f} px"
        rows.append([m, *by_level, distance, off, f"{float(weights.max()):.2f} at {x:.0f}, {y:.0f}"])
    print_table(["head", *levels, "distance", "outside", "heaviest point"], rows)
    stdout.print("level: fraction of the weight; distance: weighted mean from the centre; outside: off the image")
    stdout.print(f"the points and weights reproduce the layer's output to within {seen.error:.1e} of its largest value")
