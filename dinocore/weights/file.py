"""Self-describing weights files: safetensors with the config, classes and versions in the metadata."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__
from ..config import Config
from ..data.annotations import Category
from ..data.split import table_names
from ..errors import CheckpointError, ConfigError
from ..model.build import build_model
from ..model.dino import DINO
from ..presets import config_from_dict
from ..system.files import to_json, write_atomically
from ..words import typed
from .shipped import SHIPPED
from .untrusted import CHECKSUM, checksum, read_safetensors, without_prefixes

SCHEMA = 1
DEFAULT_THRESHOLD = 0.3  # score threshold of weights that were never evaluated


class Weights(NamedTuple):
    """The content of a weights file."""

    tensors: dict[str, Tensor]
    config: Config
    categories: list[Category]  # class k of the model is categories[k]
    facts: dict[str, Any]  # step, metrics, thresholds and origin

    @property
    def threshold(self) -> float | None:
        """The score threshold with the best F1 when these weights were evaluated, if stored."""
        stored = self.facts.get("thresholds")
        overall = stored.get("overall") if isinstance(stored, Mapping) else None
        return float(overall) if overall is not None and _is_score(overall) else None

    @property
    def class_thresholds(self) -> dict[str, float]:
        """The best score thresholds per class, if stored, by the names from `table_names`."""
        stored = self.facts.get("thresholds")
        classes = stored.get("classes") if isinstance(stored, Mapping) else None
        if not isinstance(classes, Mapping):
            return {}
        return {name: float(value) for name, value in classes.items() if _is_score(value)}


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def least_scores(
    categories: Sequence[Category], overall: float | None, by_class: Mapping[str, float] | None = None
) -> list[float]:
    """The lowest score shown for each class: its own threshold, else the overall one, else DEFAULT_THRESHOLD."""
    default = DEFAULT_THRESHOLD if overall is None else overall
    return [(by_class or {}).get(name, default) for name in table_names(categories)]


def save_weights(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: Config,
    categories: Sequence[Category],
    facts: Mapping[str, Any],
) -> None:
    """Save weights with everything needed to use them.

    Raises:
        EnvironmentFault: the file cannot be written; an existing file is left unchanged.
    """
    metadata = {
        "schema": str(SCHEMA),
        "dino_version": __version__,
        "torch_version": str(torch.__version__),
        "config": config.model_dump_json(),
        "categories": json.dumps([[c.id, c.name] for c in categories]),
        "facts": to_json(dict(facts)),
    }
    content = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    metadata[CHECKSUM] = checksum(content)

    def write(temporary: Path) -> None:
        try:
            save_file(content, temporary, metadata)
        except SafetensorError as error:  # raised if the disk is full
            raise OSError(str(error)) from error

    write_atomically(Path(path), write)


def load_weights(path: str | Path) -> Weights:
    """Read a file written by `save_weights`.

    Raises:
        CheckpointError: the file is missing, damaged, not ours, from a newer version, or has non-finite numbers.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    tensors = without_prefixes(tensors)
    if "config" not in metadata:
        raise CheckpointError(
            f"{path} has tensors, but not the config that `dino train` writes; if they are another codebase's, "
            f"convert them: dino convert {typed(path)} --out NEW.safetensors"
        )
    if _metadata_entry(metadata, "schema", SCHEMA, path) > SCHEMA:
        made_by = metadata.get("dino_version", "a newer version")
        raise CheckpointError(f"{path} was made by dino {made_by}, this is {__version__}; install the newer one")
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path} has non-finite numbers, in {', '.join(broken[:3])}")
    try:
        config = config_from_dict(_metadata_entry(metadata, "config", {}, path))
    except ConfigError as error:
        raise CheckpointError(f"{path} has a config that this version of dino cannot read: {error}") from error
    categories = [Category(int(i), str(name)) for i, name in _metadata_entry(metadata, "categories", [], path)]
    categories = categories or unnamed(config.model.num_classes)
    return Weights(tensors, config, categories, _metadata_entry(metadata, "facts", {}, path))


def load_facts(path: Path) -> dict[str, Any]:
    """A weights file's training facts, without its tensors.

    Raises:
        CheckpointError: the entry is damaged.
    """
    with safe_open(path, framework="pt") as file:
        return _metadata_entry(file.metadata() or {}, "facts", {}, path)


def unnamed(num_classes: int) -> list[Category]:
    """Classes for weights without class names: class_0, class_1, ..."""
    return [Category(k, f"class_{k}") for k in range(num_classes)]


def names_note(categories: Sequence[Category]) -> str:
    """A message if classes have no names; otherwise empty."""
    if list(categories) != unnamed(len(categories)):
        return ""
    names = f"class_0 to class_{len(categories) - 1}" if len(categories) > 1 else "class_0"
    return f"the file has no class names; the classes are called {names}"


def _metadata_entry(metadata: Mapping[str, str], key: str, default: Any, path: Path) -> Any:
    """An entry of the metadata, decoded from JSON; it must have the default's type."""
    try:
        value = json.loads(metadata[key]) if key in metadata else default
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its `{key}` cannot be read ({error}); copy it again") from None
    if not isinstance(value, type(default)):
        raise CheckpointError(f"{path} is damaged: its `{key}` is {str(value)[:80]}; copy it again")
    return value


def restore_model(weights: Weights, where: Path) -> DINO:
    """Build the model that the weights belong to, in float32, and load them.

    Raises:
        CheckpointError: tensors are missing, unexpected or have the wrong shape.
    """
    model = build_model(weights.config.model)
    load_exactly(model, weights.tensors, where)
    return model


def cast_note(tensors: Mapping[str, Tensor], where: Path) -> str:
    """A message about weights not in float32; empty if they are, or are bundled."""
    if where in SHIPPED.values():
        return ""
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()} - {torch.float32}
    return f"its {', '.join(sorted(str(kind)[6:] for kind in kinds))} numbers become float32" if kinds else ""


def load_exactly(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Load weights into a model whose names and shapes must match exactly; floats are cast to float32.

    Raises:
        CheckpointError: names or shapes differ, or tensors are integers where the model has floats.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    names = sorted(expected.keys() | given.keys())
    differing = [key for key in names if expected.get(key) != given.get(key)]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{where} does not fit its model: {len(differing)} of {len(names)} tensors differ, such as {key} "
            f"({given.get(key, 'missing')} in the file, {expected.get(key, 'none')} in the model)"
        )
    state = model.state_dict()
    integers = [key for key, value in tensors.items() if state[key].is_floating_point() > value.is_floating_point()]
    if integers:
        raise CheckpointError(
            f"{where} holds {str(tensors[integers[0]].dtype)[6:]} numbers in {integers[0]} where the model has floats; "
            "quantized weights are not supported; give the original ones"
        )
    model.load_state_dict(tensors)
