"""The quantization kernels of the native core."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.layout import shape3_of
from zscgan_ext.ops.native.calls import (
    ACTIVATION_CODES,
    DATA_TYPES,
    address,
    native_module,
    place,
    workspace,
)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    with_mask: bool,
) -> tuple[Tensor, Tensor]:
    """Quantize and dequantize; with the mask of the values inside the range, one bit each."""
    y = torch.empty_like(x)
    size = (x.numel() + 7) // 8 if with_mask else 0
    mask = torch.empty(size, dtype=torch.uint8, device=x.device)
    module, where = place(x)
    module.fake_quantize(
        DATA_TYPES[x.dtype],
        shape3_of(x, axis),
        x.data_ptr(),
        scale.data_ptr(),
        zero_point.data_ptr(),
        quant_min,
        quant_max,
        y.data_ptr(),
        mask.data_ptr() if with_mask else 0,
        where,
    )
    return y, mask


def fake_quantize_backward(grad: Tensor, mask: Tensor) -> Tensor:
    """Pass the gradient where the value was inside the range."""
    grad_x = torch.empty_like(grad)
    module, where = place(grad)
    module.fake_quantize_backward(
        DATA_TYPES[grad.dtype],
        grad.numel(),
        grad.data_ptr(),
        mask.data_ptr(),
        grad_x.data_ptr(),
        where,
    )
    return grad_x


def shares_scale(axis: int | None, bias: Tensor | None) -> bool:
    """Return True if a bias makes channels of a tensor that has one scale in all."""
    return axis is None and bias is not None


def lsq_tensor(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    gradient_scale: float,
    activation: str,
    bias: Tensor | None,
    y: Tensor | None,
    *gradients: Tensor | None,
) -> Any:
    """Describe one tensor to the kernels; `gradients` are that of y and then all results."""
    is_shared = shares_scale(axis, bias)
    # By position: sixteen keywords would take longer than many a kernel.
    return native_module(x).LsqTensor(
        shape3_of(x, 1 if is_shared else axis),
        x.data_ptr(),
        scale.data_ptr(),
        zero_point.data_ptr(),
        quant_min,
        quant_max,
        0 if is_shared else 1,
        gradient_scale,
        ACTIVATION_CODES[activation],
        *map(address, (bias, y, *gradients)),
    )


def lsq_fake_quantize(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    axes: Sequence[int | None],
    activations: Sequence[str],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """Quantize and dequantize activation(x + bias) of many tensors, zero points rounded first."""
    ys = [torch.empty_like(x) for x in xs]
    quantizers = (scales, zero_points, quant_mins, quant_maxs, axes, [1.0] * len(xs))
    columns = zip(xs, *quantizers, activations, biases, strict=True)
    tensors = [lsq_tensor(*row, y) for row, y in zip(columns, ys, strict=True)]
    module, where = place(xs[0])
    module.lsq_fake_quantize(DATA_TYPES[xs[0].dtype], tensors, where)
    return ys


def lsq_fake_quantize_backward(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    axes: Sequence[int | None],
    gradient_scales: Sequence[float],
    activations: Sequence[str],
    biases: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor | None]]:
    """Gradients of x, scale, zero point and bias of many tensors."""
    grad_xs = [torch.empty_like(x) for x in xs]
    grad_biases = [None if bias is None else torch.empty_like(bias) for bias in biases]
    shared = [shares_scale(*row) for row in zip(axes, biases, strict=True)]
    # The kernel sums by channel.
    grad_scales, grad_zero_points = (
        [
            value.new_empty(x.shape[1]) if is_shared else torch.empty_like(value)
            for value, x, is_shared in zip(values, xs, shared, strict=True)
        ]
        for values in (scales, zero_points)
    )
    quantizers = (scales, zero_points, quant_mins, quant_maxs, axes, gradient_scales)
    columns = zip(xs, *quantizers, activations, biases, strict=True)
    results = zip(grads, grad_xs, grad_scales, grad_zero_points, grad_biases, strict=True)
    tensors = [
        lsq_tensor(*row, None, *gradients) for row, gradients in zip(columns, results, strict=True)
    ]
    data_type = DATA_TYPES[xs[0].dtype]
    scratch = workspace(xs[0], "lsq_backward_workspace", data_type, tensors)
    module, where = place(xs[0], scratch)
    module.lsq_fake_quantize_backward(data_type, tensors, where)
    for i, (scale, is_shared) in enumerate(zip(scales, shared, strict=True)):
        if is_shared:
            grad_scales[i] = grad_scales[i].sum().view(scale.shape)
            grad_zero_points[i] = grad_zero_points[i].sum().view(scale.shape)
    return grad_xs, grad_scales, grad_zero_points, grad_biases


def update_min_max(
    x: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    axis: int | None,
) -> None:
    """Average minimum and maximum into the running ones; write scale and zero point."""
    shape = shape3_of(x, axis)
    scratch = workspace(x, "reduction_workspace", shape)
    module, where = place(x, scratch)
    module.update_min_max(
        DATA_TYPES[x.dtype],
        shape,
        x.data_ptr(),
        running_min.data_ptr(),
        running_max.data_ptr(),
        scale.data_ptr(),
        zero_point.data_ptr(),
        averaging_constant,
        quant_min,
        quant_max,
        symmetric,
        where,
    )
