"""Argument checks of the ops: shapes, dtypes and devices, never values (no synchronization)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.layout import compute_dtype

ACTIVATIONS = ("none", "relu", "relu6")
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_axis(x: Tensor, axis: int | None) -> int | None:
    """Return a non-negative axis, or None for one scale in all."""
    if x.dtype not in FLOATING:
        raise ValueError(f"x: dtype {x.dtype}, accepted are float32, float16, bfloat16, float64")
    if axis is None:
        return None
    if not -x.dim() <= axis < x.dim():
        raise ValueError(f"axis: {axis}, but x has {x.dim()} dimensions")
    return axis % x.dim()


def check_per_channel(name: str, values: Tensor, count: int, x: Tensor, dtype: torch.dtype) -> None:
    """Require `values` to be contiguous [count] of this dtype on the device of x."""
    if values.numel() != count or values.dim() > 1:
        raise ValueError(f"{name}: shape {tuple(values.shape)}, needed is ({count},)")
    if values.dtype != dtype:
        raise ValueError(f"{name}: dtype {values.dtype}, needed is {dtype}")
    if values.device != x.device:
        raise ValueError(f"{name}: on {values.device}, but x is on {x.device}")
    if not values.is_contiguous():
        raise ValueError(f"{name}: strides {values.stride()}, needed is contiguous memory")


def check_bounds(quant_min: int, quant_max: int) -> None:
    """Require bounds in order."""
    if quant_min >= quant_max:
        raise ValueError(f"quant_min: {quant_min}, must be below quant_max, {quant_max}")


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


def check_activation(x: Tensor, axis: int | None, activation: str, bias: Tensor | None) -> None:
    """Require a known activation, and one bias per channel of [N, C, ...]."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r}, accepted are {', '.join(ACTIVATIONS)}")
    if bias is None:
        return
    if x.dim() < 2 or axis not in (None, 1):
        raise ValueError(
            f"bias: x has shape {tuple(x.shape)} and axis {axis}, needed is [N, C, ...], None or 1"
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


def check_statistics(x: Tensor, shift: Tensor) -> None:
    """Require [N, C, ...] and one shift per channel."""
    if x.dtype not in FLOATING:
        raise ValueError(f"x: dtype {x.dtype}, accepted are float32, float16, bfloat16, float64")
    if x.dim() < 2:
        raise ValueError(f"x: shape {tuple(x.shape)}, needed is [N, C, ...]")
    check_per_channel("shift", shift, x.shape[1], x, compute_dtype(x))


def check_alike(name: str, tensors: Sequence[Tensor]) -> None:
    """Require one dtype and one device for a list of tensors."""
    first = tensors[0]
    for x in tensors:
        if x.dtype != first.dtype:
            raise ValueError(f"{name}: dtype {x.dtype} and {first.dtype}, needed is one for all")
        if x.device != first.device:
            raise ValueError(f"{name}: on {x.device} and on {first.device}, needed is one for all")


def check_same_length(*columns: Sequence[Any]) -> None:
    """Require the same number of entries, at least one, in every list."""
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"lists of {lengths} entries, needed is one length above 0 for all")


def check_distance(distance: str, known: Sequence[str]) -> None:
    """Require a known distance."""
    if distance not in known:
        raise ValueError(f"distance: {distance!r}, accepted are {', '.join(known)}")


def check_layers(*columns: Sequence[Tensor]) -> None:
    """Require the four vectors of each layer to be alike: [C] of one dtype on one device."""
    first = columns[0][0]
    for layer in zip(*columns, strict=True):
        for values in layer:
            if values.dim() != 1 or values.shape != layer[0].shape or not values.numel():
                shapes = [tuple(values.shape) for values in layer]
                raise ValueError(f"statistics: shapes {shapes}, needed is the same [C] for all")
            if values.dtype not in (torch.float32, torch.float64) or values.dtype != first.dtype:
                raise ValueError(f"statistics: dtype {values.dtype}, needed is float32 for all")
            if values.device != first.device:
                raise ValueError(f"statistics: on {values.device} and on {first.device}")
