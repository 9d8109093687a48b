"""`dino weights`: list the published checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dinocore.weights.fetch.catalogue import Published, cached, catalogue, find_or_refuse

from ..console import print_facts, print_json, say, stdout
from ..options import Json


def weights(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show all details of this one.")] = None,
    json: Json = False,
) -> None:
    """List the published checkpoints that --weights takes by name.

    Example: dino weights official/r50-4scale-12e
    """
    if name is not None:
        facts = _facts(find_or_refuse(name))
        print_json(facts) if json else print_facts(facts)
        return
    known = catalogue()
    if json:
        print_json([_facts(entry) for entry in known.weights])
        return
    for codebase, publisher in known.publishers.items():
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("name", "model", "AP", ""):
            table.add_column(title, justify="right" if title == "AP" else "left", overflow="fold")
        for entry in (entry for entry in known.weights if entry.codebase == codebase):
            table.add_row(entry.name, entry.about, f"{entry.ap:.1f}", _state(entry))
        stdout.print(f"[bold]{escape(publisher.title)}[/], AP on COCO val2017 as in {escape(publisher.reported)}")
        stdout.print(table)
        stdout.print()
    say("dino predict img.jpg --weights NAME downloads one, and dino weights NAME shows where it comes from")
    say("by hand: its publisher has it in a folder without an address, which dino weights NAME names with what to type")


def _facts(entry: Published) -> dict[str, Any]:
    publisher, file = catalogue().publishers[entry.codebase], cached(entry)
    command = f"dino convert {entry.file or 'FILE'} --preset {entry.preset} --out X.safetensors"
    facts = {
        "name": entry.name,
        "codebase": entry.codebase,
        "publisher": publisher.title,
        "model": entry.about,
        "preset": entry.preset,
        "AP": entry.ap,
        "reported_in": publisher.reported,
        "address": entry.address,
        "sha256_begins_with": entry.sha256,
        "by_hand_from": "" if entry.address else publisher.folder,
        "original_sha256": entry.original_sha256,
        "file": entry.file,
        "then": "" if entry.address else command,
        "cached": str(file) if file else "",
    }
    return {key: value or None for key, value in facts.items()}


def _state(entry: Published) -> str:
    if not entry.address:
        return "by hand"
    return "[green]cached[/]" if cached(entry) else ""
