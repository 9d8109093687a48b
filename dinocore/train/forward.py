"""From a batch to the terms of its loss."""

import torch
from torch import Tensor, nn

from ..data.batch import Batch, normalise
from ..errors import DivergedError
from ..losses import criterion
from .job import Job


def loss_terms(model: nn.Module, batch: Batch, job: Job, num_boxes: float) -> dict[str, Tensor] | None:
    """Weighted terms of a forward pass; None where predictions are not finite, so that they cannot be matched."""
    config, dtype = job.config, job.precision
    prepared = normalise(batch, config.model.pixel_mean, config.model.pixel_std, job.device)
    images = prepared.images.to(next(model.parameters()).dtype)
    with torch.autocast(job.device.type, dtype=dtype, enabled=dtype is not None):
        output = model(images, prepared.padding, prepared.targets)
    try:
        return criterion(output, prepared.targets, num_boxes, config.loss)
    except DivergedError:
        return None
