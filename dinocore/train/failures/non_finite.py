"""Trace non-finite values to the image, the layer and the loss term they come from."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...config import Config
from ...data.annotations import Annotations
from ...data.batch import Batch
from ...errors import DivergedError, EnvironmentFault
from ...losses import criterion
from ...system.files import write_atomically
from ..batches import StepBatches
from ..context import RunContext
from ..state import TrainState
from ..step import forward

SHOWN = 3
FILE = "diverged.safetensors"


class Diagnosis(NamedTuple):
    """What is not finite when an image is processed alone."""

    image: str
    layer: str  # the first layer with a non-finite output, or the last with a non-finite gradient
    terms: list[str]  # loss terms that are not finite


def diverged(state: TrainState, batches: StepBatches, context: RunContext, numbers: dict[str, float]) -> DivergedError:
    """Look for the cause, save the batch, and return the error; must be called on every rank.

    Args:
        numbers: loss terms and gradient norm over all ranks; empty if matching failed.
    """
    group, annotations = context.group, context.data.train
    not_finite = [name for name, value in numbers.items() if not math.isfinite(value)] or ["matching"]
    state.optimizer.zero_grad(set_to_none=True)
    own = [
        finding
        for batch in batches.micro_batches
        for finding in _examine_batch(state.model, batch, annotations, batches.num_boxes, context.config)
    ]
    per_rank = group.gather((own, _tensors(batches.micro_batches, annotations)))
    findings = [finding for found, _ in per_rank for finding in found]
    step = state.progress.step + 1
    facts = {"step": step, "not_finite": not_finite, "numbers": {key: str(value) for key, value in numbers.items()},
             "findings": [finding._asdict() for finding in findings]}  # fmt: skip
    tensors = {f"rank{rank}/{key}": value for rank, (_, part) in enumerate(per_rank) for key, value in part.items()}
    saved = group.on_main(lambda: _save(context.folder / FILE, tensors, {"facts": json.dumps(facts)}))
    message = f"{', '.join(not_finite)} is not finite in step {step}: {_describe(findings)}"
    if state.scaler.is_enabled() and not_finite == ["grad_norm"]:
        message = f"gradients overflowed fp16 {state.progress.overflows} times in a row, up to step {step}"
    return DivergedError(
        f"{message}. That step changed no weights; the checkpoints in {context.folder} are intact, and {saved}; "
        "try a lower --lr, or --amp off"
    )


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    try:
        write_atomically(path, lambda file: save_file(tensors, file, metadata))
    except (EnvironmentFault, SafetensorError) as error:
        return f"the batch could not be saved ({error})"
    return f"the batch is saved there as {path.name}"


def _describe(findings: list[Diagnosis]) -> str:
    if not findings:
        return "no single image causes it"
    lines = [
        f"{found.image} (layer {found.layer or 'none'}, {', '.join(found.terms[:SHOWN])})" for found in findings[:SHOWN]
    ]
    more = f" and {len(findings) - SHOWN} more images" if len(findings) > SHOWN else ""
    return f"{', '.join(lines)}{more}"


def _examine_batch(
    model: nn.Module, batch: Batch, annotations: Annotations, num_boxes: float, config: Config
) -> Iterator[Diagnosis]:
    for i, index in enumerate(batch.indices):
        images, padding = batch.images[i : i + 1], batch.padding[i : i + 1]
        single = batch._replace(images=images, padding=padding, targets=[batch.targets[i]], indices=[index])
        layer, terms = _examine(model, single, num_boxes, config)
        if terms:
            yield Diagnosis(str(annotations.path(index)), layer, terms)


def _examine(model: nn.Module, single: Batch, num_boxes: float, config: Config) -> tuple[str, list[str]]:
    """The layer where non-finite values start, and the terms that are not finite, for a batch of one image."""
    if not _finite(single.images):
        return "input", ["its pixels"]
    if not _finite(single.targets[0].boxes):
        return "input", ["its boxes"]
    broken: list[str] = []
    hooks = [
        module.register_forward_hook(_record(name, broken)) for name, module in model.named_modules() if name != ""
    ]
    try:
        output, targets = forward(model, single, config)
        terms = criterion(output, targets, num_boxes, config.loss)
    except DivergedError:
        return broken[0] if broken else "", ["matching"]
    finally:
        for hook in hooks:
            hook.remove()
    if bad := [name for name, value in terms.items() if not _finite(value)]:
        return broken[0] if broken else "", bad
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    loss = torch.stack(list(terms.values())).sum()
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    bad = [name for (name, _), value in zip(named, grads, strict=True) if value is not None and not _finite(value)]
    return (bad[-1].rpartition(".")[0], ["gradient"]) if bad else ("", [])  # the last is where it starts


def _record(name: str, broken: list[str]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if not all(_finite(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
            broken.append(name)

    return hook


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _tensors(batches: list[Batch], annotations: Annotations) -> dict[str, Tensor]:
    """The batch as loaded, keyed by image name."""
    found = {}
    for batch in batches:
        for i, index in enumerate(batch.indices):
            name = annotations.path(index).name
            found[f"{name}/image"] = batch.images[i].contiguous().cpu()
            found[f"{name}/boxes"] = batch.targets[i].boxes.cpu().clone()
            found[f"{name}/labels"] = batch.targets[i].labels.cpu().clone()
    return found
