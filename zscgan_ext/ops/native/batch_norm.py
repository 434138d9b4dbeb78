"""The batch-norm kernels of the native core."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zscgan_ext.ops.layout import compute_dtype, shape3_of
from zscgan_ext.ops.native.calls import (
    ACTIVATION_CODES,
    DATA_TYPES,
    address,
    native_module,
    place,
    workspace,
)

DISTANCE_CODES = {"gaussian_kl": 0, "mse": 1, "std_mse": 2, "l2": 3}


def batch_norm_statistics(x: Tensor, mean_hint: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of [N, C, ...]."""
    mean = torch.empty((x.shape[1],), dtype=compute_dtype(x), device=x.device)
    variance = torch.empty_like(mean)
    shape = shape3_of(x, 1)
    scratch = workspace(x, "reduction_workspace", shape)
    module, where = place(x, scratch)
    module.batch_norm_statistics(
        DATA_TYPES[x.dtype],
        shape,
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
        shape3_of(x, 1),
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
    module.frozen_batch_norm(
        DATA_TYPES[x.dtype],
        shape3_of(x, 1),
        x.data_ptr(),
        multiplier.data_ptr(),
        offset.data_ptr(),
        0,  # without statistics
        address(residual),
        ACTIVATION_CODES[activation],
        y.data_ptr(),
        0,
        0,
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
    shape = shape3_of(x, 1)
    scratch = workspace(x, "reduction_workspace", shape)
    module, where = place(x, scratch)
    module.frozen_batch_norm(
        DATA_TYPES[x.dtype],
        shape,
        x.data_ptr(),
        multiplier.data_ptr(),
        offset.data_ptr(),
        mean_hint.data_ptr(),
        address(residual),
        ACTIVATION_CODES[activation],
        y.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
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
    module.frozen_batch_norm_backward(
        DATA_TYPES[grad.dtype],
        shape3_of(grad, 1),
        grad.data_ptr(),
        address(x),
        address(y),
        multiplier.data_ptr(),
        offset.data_ptr(),
        address(mean),
        address(grad_mean),
        address(grad_variance),
        ACTIVATION_CODES[activation],
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
    layer_struct = native_module(total).BatchNormLayer
    columns = zip(sizes, means, variances, running_means, running_vars, eps, strict=True)
    for size, mean, variance, running_mean, running_var, layer_eps in columns:
        start = offset * total.element_size()
        layer = layer_struct(
            channels=size,
            mean=mean.data_ptr(),
            variance=variance.data_ptr(),
            running_mean=running_mean.data_ptr(),
            running_var=running_var.data_ptr(),
            eps=layer_eps,
            grad_mean=grad_means.data_ptr() + start,
            grad_variance=grad_variances.data_ptr() + start,
        )
        layers.append(layer)
        offset += size
    scratch = workspace(total, "distance_workspace")
    module, where = place(total, scratch)
    code = DISTANCE_CODES[distance]
    module.batch_norm_distance(DATA_TYPES[total.dtype], layers, code, total.data_ptr(), where)
    return total, grad_means, grad_variances
