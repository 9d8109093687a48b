"""The one operation of the model that plain PyTorch does slowly: sampling of multi-scale deformable attention."""

from dinocore.model.ops.around import Sampling, sample, sample_fused
from dinocore.model.ops.dispatch import Sampled, ms_deform_attn, plain_form, use_form, watch_sampling

__all__ = [
    "Sampled",
    "Sampling",
    "ms_deform_attn",
    "plain_form",
    "sample",
    "sample_fused",
    "use_form",
    "watch_sampling",
]
