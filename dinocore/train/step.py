"""One optimizer step. Failures are handled outside it, in `failures/`."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..config import Config, ModelConfig
from ..data.batch import Batch, normalise
from ..losses import criterion
from ..model.dino import DinoOutput
from ..structures import Target
from ..system.device import pick_precision
from ..system.processes import SingleProcess
from .ddp import no_sync
from .state import TrainState


class NonFinite(Exception):
    """The loss or gradient of a step is not finite on some rank; no weights were changed."""

    def __init__(self, numbers: dict[str, float]):
        super().__init__(f"not finite: {numbers}")
        self.numbers = numbers  # of this rank


def train_step(
    state: TrainState,
    micro_batches: list[Batch],
    num_boxes: float,
    config: Config,
    group: SingleProcess,
    num_denoised: float | None = None,
) -> dict[str, float]:
    """Train on one batch: returns its loss, the loss terms and the gradient norm before clipping, over all ranks.

    Each loss is divided by the number of objects in the whole batch, so that any split into micro-batches and ranks
    gives the same gradient.

    Args:
        micro_batches: this rank's part of the batch; one forward and backward pass each.
        num_boxes: objects in the whole batch, over all ranks.
        num_denoised: those of them that take part in denoising; None for a single micro-batch on one rank.

    Raises:
        NonFinite: on all ranks, before any weight is changed.
    """
    model, optimizer, scaler = state.wrapped, state.optimizer, state.scaler
    parameters = [p for param_group in optimizer.param_groups for p in param_group["params"]]
    logged: dict[str, Tensor] = {}

    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        with nullcontext() if last else no_sync(model):  # gradients are averaged over the ranks once, in the last pass
            output, targets = forward(model, batch, config)
            terms = criterion(output, targets, num_boxes, config.loss, num_denoised)
            loss = torch.stack(list(terms.values())).sum()
            scaler.scale(loss * group.size).backward()  # DDP averages over ranks; this makes it a sum
        add_terms(logged, terms)

    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, config.train.clip_norm or math.inf)
    *sums, grad_norm = torch.stack([*logged.values(), norm]).tolist()  # the only synchronisation with the device
    finite_loss, finite_norm = group.all_true(all(map(math.isfinite, sums)), math.isfinite(grad_norm))
    if not finite_loss or not (finite_norm or scaler.is_enabled()):  # fp16's scaler skips a step that overflowed
        raise NonFinite(dict(zip(logged, sums, strict=True)) | {"grad_norm": grad_norm})

    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model)

    sums = [sum(of_ranks) for of_ranks in zip(*group.gather_numbers(sums), strict=True)]
    return {"loss": math.fsum(sums)} | dict(zip(logged, sums, strict=True)) | {"grad_norm": grad_norm}


def forward(model: nn.Module, batch: Batch, config: Config) -> tuple[DinoOutput, list[Target]]:
    """The model's output, computed in the run's precision, and the targets on its device."""
    parameter = next(model.parameters())
    prepared = normalise(batch, config.model.pixel_mean, config.model.pixel_std, parameter.device)
    with autocast(config, parameter.device, width=prepared.images.shape[-1]):
        output = model(prepared.images.to(parameter.dtype), prepared.padding, prepared.targets)
    return output, prepared.targets


def autocast(config: Config, device: torch.device, width: int) -> AbstractContextManager:
    """The precision of the run, except float32 on a CPU for batches so narrow that half precision is wrong there.

    The bfloat16 gradient of a 3 x 3 kernel over a map of one column has columns that oneDNN never writes: whatever
    was in memory stays there (torch 2.14; seen with stride 2, never in float32).
    """
    dtype = pick_precision(config.train.amp, device)
    if device.type == "cpu" and width <= narrowest_width(config.model):
        dtype = None
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def narrowest_width(model: ModelConfig) -> int:
    """The widest image, in pixels, whose map has a single column when halved once more."""
    extra_levels = model.num_levels - len(model.feature_strides)
    return max(model.feature_strides) * 2 ** max(0, extra_levels - 1)


def add_terms(logged: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    """Add loss terms to the log; `stage3/box` is added to `matching/box`: one number for all layers."""
    for name, value in terms.items():
        stage, term = name.split("/")
        kind = stage.rstrip("0123456789")
        key = f"{'matching' if kind == 'stage' else kind}/{term}"
        logged[key] = logged.get(key, 0) + value.detach()
