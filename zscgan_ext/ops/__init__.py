"""The ops of data-free quantization, differentiable and visible to torch.compile.

Tensors are float32, float16 or bfloat16 on the CPU or a GPU, and float64 on the CPU. Scales, zero
points and statistics are float32 (float64 for float64 data). Memory formats are kept. Results are
the same bits on every run, for any number of threads.
"""

import warnings
from typing import Any

from zscgan_ext.ops.batch_norm_matching import (
    DISTANCES,
    batch_norm_distance,
    batch_norm_statistics,
)
from zscgan_ext.ops.checks import ACTIVATIONS
from zscgan_ext.ops.fixed_scale import fake_quantize
from zscgan_ext.ops.frozen_batch_norm import frozen_batch_norm, frozen_batch_norm_with_stats
from zscgan_ext.ops.learned_scale import lsq_fake_quantize
from zscgan_ext.ops.learned_scale_many import lsq_fake_quantize_foreach
from zscgan_ext.ops.noisy_batch_norm import noisy_batch_norm
from zscgan_ext.ops.ranges import update_min_max

__all__ = [
    "ACTIVATIONS",
    "DISTANCES",
    "batch_norm_distance",
    "batch_norm_statistics",
    "fake_quantize",
    "frozen_batch_norm",
    "frozen_batch_norm_with_stats",
    "lsq_fake_quantize",
    "lsq_fake_quantize_foreach",
    "noisy_batch_norm",
    "update_min_max",
]

# Removed in the next version.
DEPRECATED = {
    "batch_norm_eval": frozen_batch_norm,
    "batch_norm_eval_matched": frozen_batch_norm_with_stats,
    "fake_quantize_learned": lsq_fake_quantize,
    "fake_quantize_learned_many": lsq_fake_quantize_foreach,
    "observe": update_min_max,
}


def __getattr__(name: str) -> Any:
    """Return a function by its deprecated name, with a warning."""
    if name not in DEPRECATED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = DEPRECATED[name]
    warnings.warn(
        f"{__name__}.{name} is deprecated, use {function.__name__}",
        DeprecationWarning,
        stacklevel=2,
    )
    return function
