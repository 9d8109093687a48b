"""`dino convert`: convert weights between codebases."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
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
            metavar="WEIGHTS",
            help="Weights of official DINO, detrex or mmdetection, a file or a name; with --to, dino's own.",
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
    if to == "official":
        _to_official(file, out, json)
        return
    from dinocore.weights.convert.files import ConversionRequest, convert_file
    from dinocore.weights.convert.state import CODEBASES
    from dinocore.weights.fetch.locate import original
    from dinocore.weights.file import save_weights

    if to != "dino":
        raise ConfigError(f"--to {to} is not known; choose dino or official")
    if source is not None and source not in CODEBASES:
        raise ConfigError(f"--from {source} is not known; choose {', '.join(CODEBASES)}")
    _check_out(file, out, ".safetensors")
    class_names = _names(names)
    with watching() as watch:
        found = original(file, watch)
    preset = preset or (None if variant else found.preset)
    request = ConversionRequest(source, preset, variant, classes, class_names, overrides, ema)
    done = convert_file(found.file, request)
    weights = done.weights
    save_weights(out, weights.tensors, weights.config, weights.categories, weights.facts)
    if json:
        print_json({"file": file, "out": str(out)} | _as_json(done))
    else:
        _show(done)
    say(f"wrote {out}; a test forward pass gave finite outputs")


def _to_official(file: str, out: Path, json: bool) -> None:
    """Write our weights in official DINO's format."""
    from dinocore.weights.convert.files import read_ours
    from dinocore.weights.convert.to_official import write_official
    from dinocore.weights.fetch.locate import locate

    _check_out(file, out, ".pth")
    with watching() as watch:
        weights = read_ours(locate(file, watch))
    options = write_official(out, weights)
    if json:
        print_json({"out": str(out), "options": options})
    else:
        stdout.print("official DINO's config: DINO_4scale.py" + (f", --options {' '.join(options)}" if options else ""))
    say(f"wrote {out}")


def _check_out(file: str, out: Path, suffix: str) -> None:
    check_file("--out", out, suffix)
    if out.resolve() == Path(file).resolve():
        raise ConfigError(f"--out {out} is the input file; choose another name")


def _names(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--names {file} cannot be read: {error}") from None


def _as_json(done: Conversion) -> dict[str, Any]:
    converted = done.converted
    return {
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
        table.add_row("note", escape(note))
    stdout.print(table)


def _kind(reason: str) -> str:
    return "the same tensor under another name" if reason.startswith("the same tensor as") else reason
