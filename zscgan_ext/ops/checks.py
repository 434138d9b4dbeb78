"""Argument checks of the ops: shapes, dtypes and devices, never values (no synchronization)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.layout import FLOATING, compute_dtype

ACTIVATIONS = ("none", "relu", "relu6")


def check_dtype(x: Tensor) -> None:
    """Require a floating-point tensor."""
    if x.dtype not in FLOATING:
        raise ValueError(f"x: expected float32, float16, bfloat16 or float64, got {x.dtype}")


def check_axis(x: Tensor, axis: int | None) -> int | None:
    """Return a non-negative axis, or None for one scale in all."""
    check_dtype(x)
    if axis is None:
        return None
    if not -x.dim() <= axis < x.dim():
        raise ValueError(f"axis: expected one of {x.dim()} dimensions, got {axis}")
    return axis % x.dim()


def check_dimension(x: Tensor, axis: int | None) -> None:
    """Require an axis as `check_axis` gives it."""
    counted = check_axis(x, axis)
    if counted != axis:
        raise ValueError(f"axis: expected {counted}, got {axis}")


def check_per_channel(name: str, values: Tensor, count: int, x: Tensor, dtype: torch.dtype) -> None:
    """Require `values` to be contiguous [count] of this dtype on the device of x."""
    if values.numel() != count or values.dim() > 1:
        raise ValueError(f"{name}: expected shape ({count},), got {tuple(values.shape)}")
    if values.dtype != dtype:
        raise ValueError(f"{name}: expected dtype {dtype}, got {values.dtype}")
    if values.device != x.device:
        raise ValueError(f"{name}: expected on {x.device} like x, got on {values.device}")
    if not values.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, got strides {values.stride()}")


def check_bounds(quant_min: int, quant_max: int) -> None:
    """Require bounds in order."""
    if quant_min >= quant_max:
        raise ValueError(
            f"quant_min: expected a value below quant_max, {quant_max}, got {quant_min}"
        )


def check_quantizer(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
) -> None:
    """Require one scale and zero point per channel and bounds in order."""
    count = 1 if axis is None else x.shape[axis]
    check_per_channel("scale", scale, count, x, compute_dtype(x))
    check_per_channel("zero_point", zero_point, count, x, compute_dtype(x))
    check_bounds(quant_min, quant_max)


def check_activation(activation: str) -> None:
    """Require a known activation."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )


def check_bias(x: Tensor, axis: int | None, bias: Tensor | None) -> None:
    """Require one bias per channel of [N, C, ...], if any."""
    if bias is None:
        return
    if x.dim() < 2 or axis not in (None, 1):
        raise ValueError(
            f"bias: expected x of [N, C, ...] and axis None or 1, got {tuple(x.shape)} and {axis}"
        )
    check_per_channel("bias", bias, x.shape[1], x, compute_dtype(x))


def check_observer(
    x: Tensor, state: Sequence[Tensor], quant_min: int, quant_max: int, axis: int | None
) -> None:
    """Require float32 running_min, running_max, scale and zero_point, one per channel."""
    count = 1 if axis is None else x.shape[axis]
    names = ("running_min", "running_max", "scale", "zero_point")
    for name, values in zip(names, state, strict=True):
        check_per_channel(name, values, count, x, torch.float32)
    check_bounds(quant_min, quant_max)


def check_channels(x: Tensor) -> None:
    """Require floating-point [N, C, ...]."""
    check_dtype(x)
    if x.dim() < 2:
        raise ValueError(f"x: expected shape [N, C, ...], got {tuple(x.shape)}")


def check_statistics(x: Tensor, mean_hint: Tensor) -> None:
    """Require [N, C, ...] with values in every channel, and one mean_hint per channel."""
    check_channels(x)
    if x.shape[1] > 0 and x.numel() == 0:
        raise ValueError(
            f"x: expected values to take statistics of, got none in shape {tuple(x.shape)}"
        )
    check_per_channel("mean_hint", mean_hint, x.shape[1], x, compute_dtype(x))


def check_frozen_batch_norm(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    residual: Tensor | None,
    activation: str,
) -> None:
    """Require [N, C, ...], one multiplier and offset per channel, a residual like x."""
    check_channels(x)
    check_per_channel("multiplier", multiplier, x.shape[1], x, compute_dtype(x))
    check_per_channel("offset", offset, x.shape[1], x, compute_dtype(x))
    check_activation(activation)
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ValueError(
            f"residual: expected the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    if residual.dtype != x.dtype:
        raise ValueError(f"residual: expected the dtype of x, {x.dtype}, got {residual.dtype}")
    if residual.device != x.device:
        raise ValueError(f"residual: expected on {x.device} like x, got on {residual.device}")


def check_alike(name: str, tensors: Sequence[Tensor]) -> None:
    """Require one dtype and one device for a list of tensors."""
    first = tensors[0]
    for x in tensors:
        if x.dtype != first.dtype:
            raise ValueError(f"{name}: expected one dtype, got {first.dtype} and {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name}: expected one device, got {first.device} and {x.device}")


def check_same_length(*columns: Sequence[Any]) -> None:
    """Require the same number of entries, at least one, in every list."""
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"expected lists of one length above 0, got {lengths} entries")


def check_distance(distance: str, known: Sequence[str]) -> None:
    """Require a known distance."""
    if distance not in known:
        raise ValueError(f"distance: expected one of {', '.join(known)}, got {distance!r}")


def check_layers(*columns: Sequence[Tensor]) -> None:
    """Require the four vectors of each layer to be alike: [C] of one dtype on one device."""
    first = columns[0][0]
    for layer in zip(*columns, strict=True):
        for values in layer:
            if values.dim() != 1 or values.shape != layer[0].shape or not values.numel():
                shapes = [tuple(values.shape) for values in layer]
                raise ValueError(f"statistics: expected one shape [C], got {shapes}")
            if values.dtype not in (torch.float32, torch.float64) or values.dtype != first.dtype:
                raise ValueError(
                    f"statistics: expected float32 or float64 for all, got {values.dtype}"
                )
            if values.device != first.device:
                raise ValueError(
                    f"statistics: expected one device, got {first.device} and {values.device}"
                )
