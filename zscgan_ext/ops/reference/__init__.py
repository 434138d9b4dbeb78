"""Every kernel in plain torch: the oracle of the tests and the fallback without the native core.

The functions have the signatures of their namesakes in `zscgan_ext.ops.native`. Arithmetic is
float32, or float64 for float64 input. Formulas of distances and gradients are in
`docs/developer/kernels.md`.
"""

from zscgan_ext.ops.reference.batch_norm import (
    batch_norm_distance,
    batch_norm_eval,
    batch_norm_eval_backward,
    batch_norm_eval_matched,
    batch_norm_statistics,
    batch_norm_statistics_backward,
)
from zscgan_ext.ops.reference.quantization import (
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
