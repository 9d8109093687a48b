"""`dino info`: describe a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dinocore.errors import CheckpointError, EnvironmentFault
from dinocore.weights.fetch.catalogue import cached, find

from ..console import print_facts, print_json, say
from ..options import Json, check_weights
from ..progress import watching
from ..weights_option import check_not_refused, is_exported


def info(
    file: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS",
            callback=check_weights,
            help="Weights of any supported codebase (a file, a run, a name or an address), or an exported file.",
        ),
    ],
    json: Json = False,
) -> None:
    """Describe a weights file or an exported file.

    Example: dino info dino.safetensors
    """
    path = Path(file).expanduser()
    check_not_refused(file)
    if is_exported(path) and path.is_file():
        _show_exported(path, json)
        return
    from dinocore.weights.convert.info import describe

    facts = describe(_file(file))
    if json:
        print_json(facts)
        return
    print_facts(_lines(facts))


HIDDEN = ("classes", "facts", "title", "preset_choices")  # entries that are not shown as they are
LABELS = {"numbers": "parameters", "median_short_side": "image side (px)", "object_side": "object side (px)"}
HIDDEN_OF_EXPORTED = ("schema", "data", "names", "ids")  # of an exported file


def _show_exported(path: Path, json: bool) -> None:
    """Print the metadata of an exported file."""
    facts = {"file": str(path), "bytes": path.stat().st_size} | _exported_info(path)
    if json:
        print_json(facts)
        return
    lines = {key: _format(value) for key, value in facts.items() if key not in HIDDEN_OF_EXPORTED and value is not None}
    sides = [" x ".join(map(str, facts[key])) for key in ("least", "canvas")]
    lines |= {"bytes": f"{facts['bytes']:,}", "least": sides[0], "canvas": sides[1], "classes": _few(facts["names"])}
    if facts["thresholds"]:
        lines["thresholds"] = _format(dict(zip(facts["names"], facts["thresholds"], strict=True)))
    print_facts(lines)


def _exported_info(path: Path) -> dict[str, Any]:
    from dinocore.export.detector import FileDetector

    try:
        return FileDetector(path).runtime.info
    except CheckpointError:
        from dinocore.export.plugin import plugin_info

        if info := plugin_info(path):
            say(f"{path} was exported with --tensorrt-plugin, so it runs in TensorRT only")
            return info
        raise


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _file(name: str) -> Path:
    from dinocore.weights.fetch.locate import locate, original

    entry = None if Path(name).exists() else find(name)
    if entry is not None and not cached(entry):
        raise EnvironmentFault(
            f"{name} has not been downloaded; `dino weights {name}` describes it, and --weights {name} downloads it"
        )
    with watching() as watch:
        return locate(name, watch) if entry else original(name, watch).file


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    lines = {key: _format(value) for key, value in facts.items() if key not in HIDDEN}
    lines["bytes"] = f"{facts['bytes']:,}"
    lines["numbers"] = f"{facts['numbers']:,}"
    lines["metrics"] = _metrics(facts["metrics"])
    lines["codebase"] = facts.get("title", facts["codebase"])
    choices = facts.get("preset_choices", [])
    lines["preset"] = facts["preset"] or " or ".join(choices) or "none that comes with dino"
    names = [c["name"] if isinstance(c, dict) else c for c in facts["classes"]]
    lines["classes"] = _few(names)
    lines |= {key: _format(value) for key, value in facts.get("facts", {}).items()}
    return {LABELS.get(key, key): value for key, value in lines.items()}


def _metrics(metrics: dict[str, Any]) -> str:
    """As `dino eval` shows them: a dash where there are no objects, which COCO writes as -1."""
    return _format({name: "-" if value == -1 else value for name, value in metrics.items()})


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format(entry)}" for key, entry in value.items() if entry not in (None, ""))
    if isinstance(value, list):
        return ", ".join(_format(entry) for entry in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
