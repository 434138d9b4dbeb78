"""The batch-norm kernels of the native core."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zscgan_ext.ops.layout import compute_dtype, extent_of
from zscgan_ext.ops.native.calls import (
    ACTIVATION_CODES,
    DATA_TYPES,
    address,
    place,
    workspace,
)

DISTANCE_CODES = {"gaussian_kl": 0, "mse": 1, "std_mse": 2, "l2": 3}


def batch_norm_statistics(x: Tensor, mean_hint: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of [N, C, ...]."""
    mean = torch.empty((x.shape[1],), dtype=compute_dtype(x), device=x.device)
    variance = torch.empty_like(mean)
    extent = extent_of(x, 1)
    scratch = workspace(x, "reduction_workspace", extent)
    module, where = place(x, scratch)
    module.batch_norm_statistics(
        DATA_TYPES[x.dtype],
        extent,
        x.data_ptr(),
        mean_hint.data_ptr(),
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


def frozen_batch_norm(
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


def frozen_batch_norm_with_stats(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    mean_hint: Tensor,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with mean and biased variance of x."""
    y = torch.empty_like(x)
    mean = torch.empty(x.shape[1], dtype=compute_dtype(x), device=x.device)
    variance = torch.empty_like(mean)
    extent = extent_of(x, 1)
    scratch = workspace(x, "reduction_workspace", extent)
    module, where = place(x, scratch)
    module.batch_norm_eval(
        DATA_TYPES[x.dtype],
        extent,
        ACTIVATION_CODES[activation],
        x.data_ptr(),
        address(residual),
        multiplier.data_ptr(),
        offset.data_ptr(),
        mean_hint.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        y.data_ptr(),
        where,
    )
    return y, mean, variance


def frozen_batch_norm_backward(
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
    scratch = workspace(total, "distance_workspace")
    module, where = place(total, scratch)
    code = DISTANCE_CODES[distance]
    module.batch_norm_distance(code, DATA_TYPES[total.dtype], layers, total.data_ptr(), where)
    return total, grad_means, grad_variances
