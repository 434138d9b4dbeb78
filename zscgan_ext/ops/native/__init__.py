"""Calling the native core: allocates results, passes addresses, sizes, dtype codes and streams.

The functions have the signatures of their namesakes in `zscgan_ext.ops.reference` and take tensors
that `layout.dense` returned.
"""

from zscgan_ext.ops.native.batch_norm import (
    batch_norm_distance,
    batch_norm_eval,
    batch_norm_eval_backward,
    batch_norm_eval_matched,
    batch_norm_statistics,
    batch_norm_statistics_backward,
)
from zscgan_ext.ops.native.quantization import (
    fake_quantize,
    fake_quantize_backward,
    fake_quantize_learned,
    fake_quantize_learned_backward,
    observe,
)

__all__ = [
    "batch_norm_distance",
    "batch_norm_eval",
    "batch_norm_eval_backward",
    "batch_norm_eval_matched",
    "batch_norm_statistics",
    "batch_norm_statistics_backward",
    "fake_quantize",
    "fake_quantize_backward",
    "fake_quantize_learned",
    "fake_quantize_learned_backward",
    "observe",
]
