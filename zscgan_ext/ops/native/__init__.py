"""Calling the native core: allocates results, passes addresses, sizes, dtype codes and streams.

The functions have the signatures of their namesakes in `zscgan_ext.ops.reference` and take tensors
that `layout.ensure_dense` returned.
"""

from zscgan_ext.ops.native.batch_norm import (
    batch_norm_distance,
    batch_norm_statistics,
    batch_norm_statistics_backward,
    frozen_batch_norm,
    frozen_batch_norm_backward,
    frozen_batch_norm_with_stats,
)
from zscgan_ext.ops.native.quantization import (
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
    "update_min_max",
]
