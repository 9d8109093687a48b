"""From a batch to the terms of its loss."""

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..data.batch import Batch, normalise
from ..losses import criterion
from .job import Job


def loss_terms(model: nn.Module, batch: Batch, job: Job, num_boxes: float) -> dict[str, Tensor]:
    """Weighted terms of a forward pass.

    Raises:
        DivergedError: predictions are not finite, so that they cannot be matched.
    """
    config = job.config
    prepared = normalise(batch, config.model.pixel_mean, config.model.pixel_std, job.device)
    images = prepared.images.to(next(model.parameters()).dtype)
    dtype = _precision(job, images.shape[-1])
    with torch.autocast(job.device.type, dtype=dtype, enabled=dtype is not None):
        output = model(images, prepared.padding, prepared.targets)
    return criterion(output, prepared.targets, num_boxes, config.loss)


def _precision(job: Job, width: int) -> torch.dtype | None:
    """The precision of the run, but float32 for a batch so narrow that a CPU's half precision would go wrong.

    The gradient of a 3 x 3 kernel in bfloat16 over a map of one column has columns that oneDNN never writes: whatever
    lies in memory stays there (torch 2.14; seen with stride 2, never in float32).
    """
    return None if job.device.type == "cpu" and width <= _narrowest(job.config.model) else job.precision


def _narrowest(model: ModelConfig) -> int:
    """The widest picture, in pixels, of which a map that is halved once more has a single column."""
    extra_levels = model.num_levels - len(model.feature_strides)
    return max(model.feature_strides) * 2 ** max(0, extra_levels - 1)
