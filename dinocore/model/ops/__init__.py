"""The one operation of the model that plain PyTorch does slowly: sampling of multi-scale deformable attention."""

from dinocore.model.ops.dispatch import (
    Sampled,
    Sampling,
    is_reference,
    map_sizes,
    ms_deform_attn,
    same_backend,
    sample,
    sample_fused,
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
