"""Every kernel in plain torch: the oracle of the tests and the fallback without the native core.

The functions have the signatures of their namesakes in `zscgan_ext.ops.native`. Arithmetic is
float32, or float64 for float64 input. Formulas of distances and gradients are in
`docs/developer/kernels.md`.
"""

from zscgan_ext.ops.reference.batch_norm import (
    batch_norm_distance,
    batch_norm_statistics,
    batch_norm_statistics_backward,
    frozen_batch_norm,
    frozen_batch_norm_backward,
    frozen_batch_norm_with_stats,
)
from zscgan_ext.ops.reference.noisy_batch_norm import (
    noisy_batch_norm,
    noisy_batch_norm_backward,
    noisy_batch_norm_sums,
)
from zscgan_ext.ops.reference.quantization import (
    fake_quantize,
    fake_quantize_backward,
    lsq_fake_quantize,
    lsq_fake_quantize_backward,
    update_min_max,
)

__all__ = [
    "batch_norm_distance",
    "batch_norm_statistics",
    "batch_norm_statistics_backward",
    "fake_quantize",
    "fake_quantize_backward",
    "frozen_batch_norm",
    "frozen_batch_norm_backward",
    "frozen_batch_norm_with_stats",
    "lsq_fake_quantize",
    "lsq_fake_quantize_backward",
    "noisy_batch_norm",
    "noisy_batch_norm_backward",
    "noisy_batch_norm_sums",
    "update_min_max",
]
