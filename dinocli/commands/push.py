"""`dino push`: upload weights and a model card to the Hugging Face hub, or write them to a folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from dinocore.errors import ConfigError, EnvironmentFault
from dinocore.system.files import check_writable
from dinocore.words import typed

from ..console import say, warn
from ..options import Weights
from ..weights_option import find_weights, is_exported


def push(
    name: Annotated[str, typer.Argument(metavar="hf:ORG/NAME", help="Target repository on the Hugging Face hub.")],
    weights: Weights = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            metavar="FILE.json",
            help="Numbers for the card: what `dino eval --json` printed; default: those "
            "that the training stored in the weights.",
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(metavar="TEXT", help="Name of the evaluation data on the card; default: its folder.")
    ] = "",
    license: Annotated[str, typer.Option(help="License of the weights, as named on the hub, such as apache-2.0.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for a copy of the uploaded files.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files to --out and upload nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="If the repository is new, make it private.")] = False,
) -> None:
    """Publish weights on the Hugging Face hub, with a model card that lists their metrics.

    Example: dino push hf:me/cells --weights runs/mine --dry-run --out to-push
    """
    from dinocore.weights.fetch.cache import is_offline
    from dinocore.weights.fetch.hub import PREFIX, parse
    from dinocore.weights.publish import check_repository, upload

    place = parse(name) if name.startswith(PREFIX) else None
    if place is None or place.file or place.revision:
        raise ConfigError(f"{name} is not a hub repository; write hf:org/name, such as hf:me/cells")
    check_repository(place.repository)
    if dry_run and out is None:
        raise ConfigError("--dry-run writes the files to a folder; add --out to-push")
    if out is not None and out.is_file():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if not dry_run and is_offline():
        raise EnvironmentFault(
            "DINO_OFFLINE is set, so nothing can be uploaded; add --dry-run --out to-push, or unset it"
        )
    if out is not None:
        check_writable(out)
    path = find_weights(weights)
    if is_exported(path):
        raise ConfigError(f"{path} is an exported file; give the weights it was made from")
    with tempfile.TemporaryDirectory(prefix="dino-push-") as temporary:
        folder = out or Path(temporary)
        _write(folder, path, evaluation, place.repository, license, dataset)
        if dry_run:
            say(f"nothing was uploaded; look at {folder}/README.md, and try the weights: --weights {typed(folder)}")
            return
        say(f"pushed {upload(folder, place.repository, private)}")


def _write(folder: Path, path: Path, given: Path | None, repository: str, license: str, dataset: str) -> None:
    """Write the folder, and report what is missing from its card."""
    from dinocore.weights.file import load_weights, names_note
    from dinocore.weights.publish import FILES, read_evaluation, stored_evaluation, write_hub_folder

    content = load_weights(path)
    evaluation = read_evaluation(given, path) if given else stored_evaluation(content)
    if evaluation is None:
        command = f"dino eval --weights {typed(path)} --data DIR --json > eval.json"
        warn(f"the card has no metrics; to add them, run {command}, and then --eval eval.json")
    if not license:
        warn("the card has no license; add one, such as --license apache-2.0")
    if note := names_note(content.categories):
        warn(f"{path}: {note}")
    write_hub_folder(folder, content, evaluation, repository, license, dataset)
    for name in FILES:
        say(f"wrote {folder / name}")
