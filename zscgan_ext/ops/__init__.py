"""The ops of data-free quantization, differentiable and visible to torch.compile.

Tensors are float32, float16 or bfloat16 on the CPU or a GPU, and float64 on the CPU. Scales, zero
points and statistics are float32 (float64 for float64 data). Memory formats are kept. Results are
the same bits on every run, for any number of threads.
"""

from zscgan_ext.ops.batch_norm_matching import (
    DISTANCES,
    batch_norm_distance,
    batch_norm_statistics,
)
from zscgan_ext.ops.checks import ACTIVATIONS
from zscgan_ext.ops.fixed_scale import fake_quantize
from zscgan_ext.ops.frozen_batch_norm import batch_norm_eval, batch_norm_eval_matched
from zscgan_ext.ops.learned_scale import fake_quantize_learned
from zscgan_ext.ops.learned_scale_many import fake_quantize_learned_many
from zscgan_ext.ops.ranges import observe

__all__ = [
    "ACTIVATIONS",
    "DISTANCES",
    "batch_norm_distance",
    "batch_norm_eval",
    "batch_norm_eval_matched",
    "batch_norm_statistics",
    "fake_quantize",
    "fake_quantize_learned",
    "fake_quantize_learned_many",
    "observe",
]
