"""`dino convert`: convert weights between codebases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from dinocore.errors import ConfigError
from dinocore.system.files import check_file

from ..completion import choices, preset_names
from ..console import print_json, say, stdout
from ..options import Json, Overrides
from ..progress import watching

if TYPE_CHECKING:
    from dinocore.weights.convert.files import Conversion


def convert(
    file: Annotated[
        str,
        typer.Argument(
            help="Weights of official DINO, detrex or mmdetection, a file or a name; with --to, dino's own."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .safetensors, or .pth with --to official.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="official, detrex or mmdet; default: recognised by the tensors' names.",
            autocompletion=choices("official", "detrex", "mmdet"),
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="dino, or official: write weights in official DINO's format.",
            autocompletion=choices("dino", "official"),
        ),
    ] = "dino",
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="The preset that the weights were trained with.", autocompletion=preset_names
        ),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="The codebase's config: base, improved, 12e or 24e.")] = None,
    classes: Annotated[
        int | None, typer.Option(help="80: drop the 11 of official DINO's 91 logits that are not classes.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Text file with one class name per line, if the classes are not COCO's.")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Use the moving average that is stored with the weights.")] = False,
    overrides: Overrides = [],
    json: Json = False,
) -> None:
    """Convert weights of other DINO codebases to ours, or ours to official DINO's; every tensor is accounted for.

    Example: dino convert checkpoint0011_4scale.pth --out dino.safetensors
    """
    request = ConvertRequest(file, out, source, to, preset, variant, classes, names, overrides, json, ema)
    if to == "official":
        convert_to_official(request)
    else:
        convert_to_ours(request)


class ConvertRequest(NamedTuple):
    """What to convert, and how."""

    file: str
    out: Path
    source: str | None
    to: str
    preset: str | None
    variant: str | None
    classes: int | None
    names: Path | None
    overrides: Sequence[str]
    json: bool
    ema: bool = False


def convert_to_ours(request: ConvertRequest) -> None:
    """Convert, check, write, and tell what became of every tensor."""
    from dinocore.weights.convert.files import ConversionRequest, convert_file
    from dinocore.weights.convert.state import CODEBASES
    from dinocore.weights.fetch.locate import original
    from dinocore.weights.file import save_weights

    if request.to != "dino":
        raise ConfigError(f"--to {request.to} is not known; choose dino or official")
    if request.source is not None and request.source not in CODEBASES:
        raise ConfigError(f"--from {request.source} is not known; choose {', '.join(CODEBASES)}")
    _check_out(request, ".safetensors")
    names = _names(request.names)
    with watching() as watch:
        found = original(request.file, watch)
    preset = request.preset or (None if request.variant else found.preset)
    conversion = ConversionRequest(
        request.source, preset, request.variant, request.classes, names, request.overrides, request.ema
    )
    done = convert_file(found.file, conversion)
    weights = done.weights
    save_weights(request.out, weights.tensors, weights.config, weights.categories, weights.facts)
    if request.json:
        print_json(_as_json(request, done))
    else:
        _show(done)
    say(f"wrote {request.out}; a test forward pass gave finite outputs")


def convert_to_official(request: ConvertRequest) -> None:
    """Write our weights as official DINO has them."""
    from dinocore.weights.convert.files import read_ours
    from dinocore.weights.convert.to_official import write_official
    from dinocore.weights.fetch.locate import locate

    _check_out(request, ".pth")
    with watching() as watch:
        weights = read_ours(locate(request.file, watch))
    options = write_official(request.out, weights)
    if request.json:
        print_json({"out": str(request.out), "options": options})
    else:
        stdout.print("official DINO's config: DINO_4scale.py" + (f", --options {' '.join(options)}" if options else ""))
    say(f"wrote {request.out}")


def _check_out(request: ConvertRequest, suffix: str) -> None:
    check_file("--out", request.out, suffix)
    if request.out.resolve() == Path(request.file).resolve():
        raise ConfigError(f"--out {request.out} is the input file; choose another name")


def _names(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--names {file} cannot be read: {error}") from None


def _as_json(request: ConvertRequest, done: Conversion) -> dict[str, Any]:
    converted = done.converted
    return {
        "file": request.file,
        "out": str(request.out),
        "source": converted.source,
        "preset": done.preset,
        "classes": len(done.weights.categories),
        "read": len(converted.renamed) + len(converted.dropped),
        "renamed": converted.renamed,
        "dropped": converted.dropped,
        "notes": done.notes,
    }


def _show(done: Conversion) -> None:
    from dinocore.weights.convert.state import CODEBASES

    converted = done.converted
    table = Table.grid(padding=(0, 3))
    table.add_row("source", f"{CODEBASES[converted.source].title}, as the preset {done.preset}")
    table.add_row("classes", f"{len(done.weights.categories)}")
    table.add_row("tensors read", f"{len(converted.renamed) + len(converted.dropped)}")
    table.add_row("renamed", f"{len(converted.renamed)}")
    for reason, count in Counter(_kind(reason) for reason in converted.dropped.values()).items():
        table.add_row("dropped", f"{count}: {reason}")
    for note in done.notes:
        table.add_row("note", note)
    stdout.print(table)


def _kind(reason: str) -> str:
    return "the same tensor under another name" if reason.startswith("the same tensor as") else reason
