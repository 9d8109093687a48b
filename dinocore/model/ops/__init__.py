"""Operations that plain PyTorch runs slowly: deformable attention, depthwise gradients, int8 products."""

from dinocore.model.ops import int8  # noqa: F401  - defines operators
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
