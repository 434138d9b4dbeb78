"""The ops in a few lines of plain PyTorch, as they are usually written, differentiated by autograd.

Eager and under torch.compile they are what the kernels are compared with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def per_channel(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Reshape [C] so that it broadcasts over x; [1] does already."""
    if axis is None:
        return values
    return values.view([-1 if d == axis else 1 for d in range(x.dim())])


def round_straight_through(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return (x.round() - x).detach() + x


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, with its gradient multiplied."""
    return (x - x * factor).detach() + x * factor


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None
) -> Tensor:
    """Quantize to integers and back with a straight-through gradient."""
    scale, zero_point = per_channel(scale, x, axis), per_channel(zero_point, x, axis)
    integer = (round_straight_through(x / scale) + zero_point).clamp(low, high)
    return ((integer - zero_point) * scale).to(x.dtype)


def lsq_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    axis: int | None,
    gradient_scale: float,
) -> Tensor:
    """Quantize to integers and back with gradients for scale and zero point (LSQ, LSQ+)."""
    scale = scale_gradient(scale, gradient_scale)
    zero_point = scale_gradient(zero_point, gradient_scale)
    zero_point = round_straight_through(zero_point.clamp(low, high))
    return fake_quantize(x, scale, zero_point, low, high, axis)


def update_min_max(
    x: Tensor, state: Sequence[Tensor], averaging_constant: float, low: int, high: int, axis: int
) -> None:
    """Average the range of each channel into a running one and derive scale and zero point."""
    running_min, running_max, scale, zero_point = state
    others = [d for d in range(x.dim()) if d != axis]
    running_min.lerp_(x.amin(others).float(), averaging_constant)
    running_max.lerp_(x.amax(others).float(), averaging_constant)
    negative, positive = running_min.clamp(max=0), running_max.clamp(min=0)
    scale.copy_(((positive - negative) / (high - low)).clamp(min=torch.finfo(torch.float32).eps))
    zero_point.copy_((low - (negative / scale).round()).clamp(low, high))


def batch_norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, as a forward hook takes them."""
    variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    return mean, variance


def frozen_batch_norm_with_stats(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Frozen batch norm and ReLU, with the statistics of their input."""
    y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, eps=eps).relu()
    return y, *batch_norm_statistics(x)


def noisy_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, noise: float, negative_slope: float, eps: float
) -> Tensor:
    """Batch norm of the batch, noise and LeakyReLU."""
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return torch.nn.functional.leaky_relu(y + noise * torch.randn_like(y), negative_slope)


def gaussian_kl(
    mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
) -> Tensor:
    """KL(N(mean, variance) || N(running_mean, running_var)), averaged over channels."""
    stored = running_var + eps
    ratio = (variance + eps) / stored
    terms = (mean - running_mean) ** 2 / (2 * stored) + (ratio - 1 - ratio.log()) / 2
    return terms.mean()


def batch_norm_loss(x: Tensor, running_mean: Tensor, running_var: Tensor, eps: float) -> Tensor:
    """Distance of one layer's batch statistics from its stored ones."""
    mean, variance = batch_norm_statistics(x)
    return gaussian_kl(mean, variance, running_mean, running_var, eps)
