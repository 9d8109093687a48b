"""Numbers that are not finite: which picture, which layer and which term of the loss they come from."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...data.batch import Batch
from ...errors import DivergedError, EnvironmentFault
from ...system.files import write_atomically
from ..forward import loss_terms
from ..job import Job
from ..state import TrainState

SHOWN = 3
FILE = "diverged.safetensors"


class Finding(NamedTuple):
    """What is wrong with one picture when it is tried alone."""

    picture: str
    layer: str  # the first one whose output, or the one whose gradient, is not finite
    terms: list[str]  # of the loss


def diverged(
    state: TrainState, batches: list[Batch], job: Job, num_boxes: float, bad: list[str], numbers: dict[str, float]
) -> DivergedError:
    """Look for the cause, write the batch down, and word the error; every process must ask for it.

    Args:
        bad: names of logged numbers that are not finite.
        numbers: all of them, if it got that far.
    """
    state.optimizer.zero_grad(set_to_none=True)
    model = state.parallel.whole(state.model)
    mine = [found for batch in batches for found in _examine_all(model, batch, job, num_boxes)]
    everybody = job.group.gather((mine, _tensors(batches, job)))
    findings = [found for part, _ in everybody for found in part]
    step = state.progress["step"] + 1
    facts = {"step": step, "not_finite": bad, "numbers": {key: str(value) for key, value in numbers.items()},
             "findings": [found._asdict() for found in findings]}  # fmt: skip
    tensors = {f"rank{rank}/{key}": value for rank, (_, part) in enumerate(everybody) for key, value in part.items()}
    kept = job.group.on_main(lambda: _keep(job.run / FILE, tensors, {"facts": json.dumps(facts)}))
    said = f"{', '.join(bad)} is not finite in step {step}: {_worded(findings)}"
    if state.scaler.is_enabled() and bad == ["grad_norm"]:
        said = f"gradients overflowed fp16 {state.progress['overflows']} times in a row, up to step {step}"
    return DivergedError(
        f"{said}. No step was taken with it; checkpoints of {job.run} are as they were, and {kept}; "
        "try a lower --lr, or --amp off"
    )


def _keep(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    try:
        write_atomically(path, lambda file: save_file(tensors, file, metadata))
    except (EnvironmentFault, SafetensorError) as error:
        return f"the batch could not be kept ({error})"
    return f"the batch is in {path.name} there"


def _worded(findings: list[Finding]) -> str:
    if not findings:
        return "no picture of it does that alone"
    lines = [
        f"{found.picture} (layer {found.layer or 'none'}, {', '.join(found.terms[:SHOWN])})"
        for found in findings[:SHOWN]
    ]
    more = f" and {len(findings) - SHOWN} more pictures" if len(findings) > SHOWN else ""
    return f"{', '.join(lines)}{more}"


def _examine_all(model: nn.Module, batch: Batch, job: Job, num_boxes: float) -> Iterator[Finding]:
    for i, index in enumerate(batch.indices):
        images, padding = batch.images[i : i + 1], batch.padding[i : i + 1]
        alone = batch._replace(images=images, padding=padding, targets=[batch.targets[i]], indices=[index])
        layer, terms = _examine(model, alone, job, num_boxes)
        if terms:
            yield Finding(str(job.data.train.path(index)), layer, terms)


def _examine(model: nn.Module, picture: Batch, job: Job, num_boxes: float) -> tuple[str, list[str]]:
    """The layer where it begins, and what is not finite."""
    if not _finite(picture.images):
        return "input", ["its pixels"]
    if not _finite(picture.targets[0].boxes):
        return "input", ["its boxes"]
    broken: list[str] = []
    hooks = [
        module.register_forward_hook(_noting(name, broken)) for name, module in model.named_modules() if name != ""
    ]
    try:
        terms = loss_terms(model, picture, job, num_boxes)
    except DivergedError:
        return broken[0] if broken else "", ["matching"]
    finally:
        for hook in hooks:
            hook.remove()
    if bad := [name for name, value in terms.items() if not _finite(value)]:
        return broken[0] if broken else "", bad
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(torch.stack(list(terms.values())).sum(), [p for _, p in named], allow_unused=True)
    lost = [name for (name, _), value in zip(named, found, strict=True) if value is not None and not _finite(value)]
    return (lost[-1].rpartition(".")[0], ["gradient"]) if lost else ("", [])  # the last is where it begins


def _noting(name: str, broken: list[str]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if not all(_finite(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
            broken.append(name)

    return hook


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _tensors(batches: list[Batch], job: Job) -> dict[str, Tensor]:
    """The batch as the loader gave it, by the name of its picture."""
    found = {}
    for batch in batches:
        for i, index in enumerate(batch.indices):
            name = job.data.train.path(index).name
            found[f"{name}/image"] = batch.images[i].contiguous().cpu()
            found[f"{name}/boxes"] = batch.targets[i].boxes.cpu().clone()
            found[f"{name}/labels"] = batch.targets[i].labels.cpu().clone()
    return found
