"""The one index space of all kernels: every tensor is (outer, channels, inner).

NCHW activations are (N, C, H*W), channels_last ones (N*H*W, C, 1), a weight quantized along its
first dimension is (1, O, rest) in either format, a tensor with one scale is (1, 1, numel).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Shape3(NamedTuple):
    """Sizes of a dense tensor seen as [outer, channels, inner] in memory order."""

    outer: int
    channels: int
    inner: int


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of arithmetic, scales and statistics: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def broadcast_per_channel(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Reshape one value per channel, [C] or [1], so that it broadcasts over `x`."""
    if axis is None:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def is_dense(x: Tensor) -> bool:
    """Return True if the elements fill one block of memory without gaps or overlap."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def is_channels_last(x: Tensor) -> bool:
    """Return True if dimension 1 is the innermost in memory and the others follow in order."""
    return x.dim() > 2 and x.movedim(1, -1).is_contiguous()


def fits(x: Tensor, axis: int | None) -> bool:
    """Return True if the memory of `x` is (outer, channels, inner) for this axis."""
    if x.is_contiguous():
        return True
    if axis == 1:
        return is_channels_last(x)
    if axis is None or x.shape[axis] == 1:
        return is_dense(x)
    return is_dense(x) and x.stride(axis) * x.shape[axis] == x.numel()


def ensure_dense(x: Tensor, axis: int | None) -> Tensor:
    """Return `x`, copied only if its memory does not fit the index space for this axis."""
    if fits(x, axis):
        return x
    if is_dense(x):
        return x.contiguous()
    copy = torch.empty_like(x).copy_(x)  # keeps the order of the strides where it can
    return copy if fits(copy, axis) else x.contiguous()


def shape3_of(x: Tensor, axis: int | None) -> Shape3:
    """View a tensor that `ensure_dense` returned as (outer, channels, inner)."""
    numel = x.numel()
    channels = 1 if axis is None else x.shape[axis]
    if axis is None or channels == 1 or not numel:
        return Shape3(min(numel, 1), channels, numel)
    inner = x.stride(axis)
    return Shape3(numel // (channels * inner), channels, inner)


def with_strides(x: Tensor, strides: Sequence[int]) -> Tensor:
    """Return `x` laid out with these strides, copied only if its own differ."""
    if x.stride() == tuple(strides):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)
