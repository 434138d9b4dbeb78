"""The batch-norm kernels in plain torch.

Formulas of distances are in `docs/developer/kernels.md`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zscgan_ext.ops.layout import broadcast_per_channel, compute_dtype
from zscgan_ext.ops.reference.activations import activate, blocks_gradient


def batch_norm_statistics(x: Tensor, mean_hint: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel; `mean_hint` changes only the rounding."""
    wide = x.to(compute_dtype(x))
    if x.numel() == 0:  # var_mean would warn
        mean = wide.new_full((x.shape[1],), torch.nan)
        return mean, mean.clone()
    dimensions = tuple(d for d in range(x.dim()) if d != 1)
    variance, mean = torch.var_mean(wide, dimensions, correction=0)
    return mean, variance


def statistics_gradient(
    x: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> Tensor:
    """The gradient of the statistics in the compute dtype."""
    count = x.numel() // max(x.shape[1], 1)
    b = 2 * grad_variance / count
    a = grad_mean / count - b * mean
    return broadcast_per_channel(a, x, 1) + broadcast_per_channel(b, x, 1) * x.to(a.dtype)


def batch_norm_statistics_backward(
    x: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> Tensor:
    """The gradient of the statistics, affine in x for each channel: a + b * x."""
    return statistics_gradient(x, mean, grad_mean, grad_variance).to(x.dtype)


def normalize(x: Tensor, multiplier: Tensor, offset: Tensor) -> Tensor:
    """Return x * multiplier + offset in the compute dtype."""
    return x.to(multiplier.dtype) * broadcast_per_channel(multiplier, x, 1) + broadcast_per_channel(
        offset, x, 1
    )


def frozen_batch_norm(
    x: Tensor, multiplier: Tensor, offset: Tensor, residual: Tensor | None, activation: str
) -> Tensor:
    """Batch norm with stored statistics, a residual and an activation."""
    values = normalize(x, multiplier, offset)
    if residual is not None:
        values = values + residual
    return activate(values, activation).to(x.dtype)


def frozen_batch_norm_with_stats(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    mean_hint: Tensor,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with mean and biased variance of x."""
    y = frozen_batch_norm(x, multiplier, offset, residual, activation)
    return y, *batch_norm_statistics(x, mean_hint)


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
    wide = grad.to(multiplier.dtype)
    if y is None and x is not None:
        blocked = blocks_gradient(normalize(x, multiplier, offset), activation)
    else:
        blocked = blocks_gradient(y if y is not None else grad, activation)
    masked = torch.where(blocked, 0, wide)
    grad_x = masked * broadcast_per_channel(multiplier, grad, 1)
    if x is not None and mean is not None and grad_mean is not None and grad_variance is not None:
        grad_x = grad_x + statistics_gradient(x, mean, grad_mean, grad_variance)
    grad_residual = masked.to(grad.dtype) if with_residual else grad.new_empty(0)
    return grad_x.to(grad.dtype), grad_residual


def layer_distance(
    mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer's distance, a scalar, and its gradients by mean and by variance."""
    offset, excess, count = mean - running_mean, variance - running_var, mean.numel()
    if name == "gaussian_kl":
        stored = running_var + eps
        ratio = (variance + eps) / stored
        value = (offset**2 / (2 * stored) + (ratio - 1 - ratio.log()) / 2).mean()
        return value, offset / stored / count, (1 - 1 / ratio) / (2 * stored) / count
    if name == "mse":
        return (offset**2 + excess**2).mean(), 2 * offset / count, 2 * excess / count
    if name == "std_mse":
        deviation = (variance + eps).sqrt()
        difference = deviation - (running_var + eps).sqrt()
        value = (offset**2 + difference**2).mean()
        return value, 2 * offset / count, difference / deviation / count
    # In float32 the squares of small differences vanish, and their directions with them.
    wide = offset.double(), excess.double()
    norms = [torch.linalg.vector_norm(values) for values in wide]
    directions = (
        torch.where(norm == 0, 0, values / norm).to(mean.dtype)
        for values, norm in zip(wide, norms, strict=True)
    )
    return (norms[0] + norms[1]).to(mean.dtype), *directions


def batch_norm_distance(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    eps: Sequence[float],
    distance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over layers of the distance, and its gradients for all means and variances joined."""
    columns = zip(means, variances, running_means, running_vars, eps, strict=True)
    layers = [layer_distance(*layer, distance) for layer in columns]
    values, grad_means, grad_variances = zip(*layers, strict=True)
    count = len(layers)
    return sum(values) / count, torch.cat(grad_means) / count, torch.cat(grad_variances) / count
