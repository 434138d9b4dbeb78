"""Calling the native core: allocates results, passes addresses, sizes, dtype codes and streams.

The functions have the signatures of their namesakes in `zscgan_ext.ops.reference` and take tensors
that `layout.dense` returned.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.implementation import NATIVE
from zscgan_ext.ops.layout import compute_dtype, extent_of

core: Any = NATIVE
DATA_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
ACTIVATION_CODES = {"none": 0, "relu": 1, "relu6": 2}
DISTANCE_CODES = {"gaussian_kl": 0, "mse": 1, "std_mse": 2, "l2": 3}


def workspace(x: Tensor, size: int) -> Tensor:
    """Return scratch memory of `size` bytes, to be held until the kernel that uses it is queued.

    It comes from torch's allocator for this one call: a CUDA graph under capture takes it from its
    own memory, and no stream shares it.
    """
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def place(x: Tensor, scratch: Tensor | None = None) -> tuple[Any, tuple[int, ...]]:
    """Return the native module of the tensor's device, and where there its kernels run."""
    if x.is_cpu:
        return core.cpu, (torch.get_num_threads(),)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    return core.cuda, (x.device.index, stream, 0 if scratch is None else scratch.data_ptr())


def address(x: Tensor | None) -> int:
    """Return where a tensor lies in memory, 0 for none."""
    return 0 if x is None else x.data_ptr()


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
        extent_of(x, axis),
        quant_min,
        quant_max,
        x.data_ptr(),
        scale.data_ptr(),
        zero_point.data_ptr(),
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
    """Tell whether a bias makes channels of a tensor that has one scale in all."""
    return axis is None and bias is not None


def learned_tensor(
    results: Sequence[Tensor | None],
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    gradient_scale: float,
    axis: int | None,
    activation: str,
    bias: Tensor | None,
) -> tuple[Any, ...]:
    """Describe one tensor to the kernels; `results` are y, grad and the gradients."""
    is_shared = shares_scale(axis, bias)
    return (
        extent_of(x, 1 if is_shared else axis),
        quant_min,
        quant_max,
        gradient_scale,
        ACTIVATION_CODES[activation],
        0 if is_shared else 1,
        *map(address, (x, scale, zero_point, bias, *results)),
    )


def fake_quantize_learned(
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
    quantizers = (scales, zero_points, quant_mins, quant_maxs, [1.0] * len(xs), axes)
    columns = zip(xs, *quantizers, activations, biases, strict=True)
    tensors = [
        learned_tensor((y, None, None, None, None, None), *row)
        for row, y in zip(columns, ys, strict=True)
    ]
    module, where = place(xs[0])
    module.fake_quantize_learned(DATA_TYPES[xs[0].dtype], tensors, where)
    return ys


def fake_quantize_learned_backward(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
    axes: Sequence[int | None],
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
    quantizers = (scales, zero_points, quant_mins, quant_maxs, gradient_scales, axes)
    columns = zip(xs, *quantizers, activations, biases, strict=True)
    results = zip(grads, grad_xs, grad_scales, grad_zero_points, grad_biases, strict=True)
    tensors = [
        learned_tensor((None, *gradients), *row)
        for row, gradients in zip(columns, results, strict=True)
    ]
    x = xs[0]
    scratch = None if x.is_cpu else workspace(x, core.cuda.learned_backward_workspace(tensors))
    module, where = place(x, scratch)
    module.fake_quantize_learned_backward(DATA_TYPES[xs[0].dtype], tensors, where)
    for i, (scale, is_shared) in enumerate(zip(scales, shared, strict=True)):
        if is_shared:
            grad_scales[i] = grad_scales[i].sum().view(scale.shape)
            grad_zero_points[i] = grad_zero_points[i].sum().view(scale.shape)
    return grad_xs, grad_scales, grad_zero_points, grad_biases


def observe(
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
    extent = extent_of(x, axis)
    scratch = None if x.is_cpu else workspace(x, core.cuda.reduction_workspace(extent))
    module, where = place(x, scratch)
    module.observe(
        DATA_TYPES[x.dtype],
        extent,
        x.data_ptr(),
        quant_min,
        quant_max,
        averaging_constant,
        symmetric,
        running_min.data_ptr(),
        running_max.data_ptr(),
        scale.data_ptr(),
        zero_point.data_ptr(),
        where,
    )


def batch_norm_statistics(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of [N, C, ...]."""
    mean = torch.empty((x.shape[1],), dtype=compute_dtype(x), device=x.device)
    variance = torch.empty_like(mean)
    extent = extent_of(x, 1)
    scratch = None if x.is_cpu else workspace(x, core.cuda.reduction_workspace(extent))
    module, where = place(x, scratch)
    module.batch_norm_statistics(
        DATA_TYPES[x.dtype],
        extent,
        x.data_ptr(),
        shift.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        where,
    )
    return mean, variance


def batch_norm_statistics_backward(
    x: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> Tensor:
    """The gradient of the statistics, affine in x for each channel: a + b * x."""
    grad_x = torch.empty_like(x)
    module, where = place(x)
    module.batch_norm_statistics_backward(
        DATA_TYPES[x.dtype],
        extent_of(x, 1),
        x.data_ptr(),
        mean.data_ptr(),
        grad_mean.data_ptr(),
        grad_variance.data_ptr(),
        grad_x.data_ptr(),
        where,
    )
    return grad_x


def batch_norm_eval(
    x: Tensor, multiplier: Tensor, offset: Tensor, residual: Tensor | None, activation: str
) -> Tensor:
    """Batch norm with stored statistics, a residual and an activation."""
    y = torch.empty_like(x)
    module, where = place(x)
    module.batch_norm_eval(
        DATA_TYPES[x.dtype],
        extent_of(x, 1),
        ACTIVATION_CODES[activation],
        x.data_ptr(),
        address(residual),
        multiplier.data_ptr(),
        offset.data_ptr(),
        *(0, 0, 0),
        y.data_ptr(),
        where,
    )
    return y


def batch_norm_eval_matched(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with mean and biased variance of x."""
    y = torch.empty_like(x)
    mean = torch.empty(x.shape[1], dtype=compute_dtype(x), device=x.device)
    variance = torch.empty_like(mean)
    extent = extent_of(x, 1)
    scratch = None if x.is_cpu else workspace(x, core.cuda.reduction_workspace(extent))
    module, where = place(x, scratch)
    module.batch_norm_eval(
        DATA_TYPES[x.dtype],
        extent,
        ACTIVATION_CODES[activation],
        x.data_ptr(),
        address(residual),
        multiplier.data_ptr(),
        offset.data_ptr(),
        shift.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        y.data_ptr(),
        where,
    )
    return y, mean, variance


def batch_norm_eval_backward(
    grad: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    multiplier: Tensor,
    offset: Tensor,
    mean: Tensor | None,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    activation: str,
    with_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the residual; the mask is that of y, or without y that of x."""
    grad_x = torch.empty_like(grad)
    grad_residual = torch.empty_like(grad) if with_residual else grad.new_empty(0)
    module, where = place(grad)
    module.batch_norm_eval_backward(
        DATA_TYPES[grad.dtype],
        extent_of(grad, 1),
        ACTIVATION_CODES[activation],
        grad.data_ptr(),
        address(x),
        address(y),
        multiplier.data_ptr(),
        offset.data_ptr(),
        address(mean),
        address(grad_mean),
        address(grad_variance),
        grad_x.data_ptr(),
        grad_residual.data_ptr(),
        where,
    )
    return grad_x, grad_residual


def batch_norm_distance(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    eps: Sequence[float],
    distance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over layers of the distance, and its gradients for all means and variances joined."""
    sizes = [mean.shape[0] for mean in means]
    total = torch.empty((), dtype=means[0].dtype, device=means[0].device)
    grad_means = total.new_empty((sum(sizes),))
    grad_variances = torch.empty_like(grad_means)
    layers, offset = [], 0
    columns = zip(sizes, eps, means, variances, running_means, running_vars, strict=True)
    for size, layer_eps, *statistics in columns:
        addresses = (values.data_ptr() for values in statistics)
        start = offset * total.element_size()
        ends = (grad_means.data_ptr() + start, grad_variances.data_ptr() + start)
        layers.append((size, layer_eps, *addresses, *ends))
        offset += size
    scratch = None if total.is_cpu else workspace(total, core.cuda.distance_workspace())
    module, where = place(total, scratch)
    code = DISTANCE_CODES[distance]
    module.batch_norm_distance(code, DATA_TYPES[total.dtype], layers, total.data_ptr(), where)
    return total, grad_means, grad_variances
