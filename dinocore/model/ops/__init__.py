"""The one operation of the model that plain PyTorch does slowly: sampling of multi-scale deformable attention."""

from dinocore.model.ops.around import Sampling, map_sizes, sample, sample_fused
from dinocore.model.ops.dispatch import (
    Sampled,
    is_reference,
    ms_deform_attn,
    same_backend,
    use_backend,
    watch_sampling,
)

__all__ = [
    "Sampled",
    "Sampling",
    "is_reference",
    "map_sizes",
    "ms_deform_attn",
    "same_backend",
    "sample",
    "sample_fused",
    "use_backend",
    "watch_sampling",
]
