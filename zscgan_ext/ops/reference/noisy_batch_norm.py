"""The kernels of noisy batch norm in plain torch."""

import torch
from torch import Tensor

from zscgan_ext.ops.layout import broadcast_per_channel
from zscgan_ext.ops.reference.batch_norm import normalize
from zscgan_ext.ops.reference.noise import DEVIATION, normal_noise
from zscgan_ext.ops.reference.quantization import pack_bits, unpack_bits


def noisy_batch_norm(
    x: Tensor, multiplier: Tensor, offset: Tensor, seed: Tensor, noise: float, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Normalize, add noise and apply a LeakyReLU; with the mask of what was positive before it."""
    values = normalize(x, multiplier, offset)
    if noise != 0:
        numbers = normal_noise(x.numel(), seed).to(values.dtype)
        values = values + noise / DEVIATION * numbers.as_strided(x.shape, x.stride())
    y = torch.where(values <= 0, values * negative_slope, values)
    return y.to(x.dtype), pack_bits(values > 0)


def gradient_before_activation(
    grad: Tensor, positive: Tensor, negative_slope: float, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of what enters the LeakyReLU in the compute dtype."""
    wide = grad.to(dtype)
    return torch.where(unpack_bits(positive, grad), wide, wide * negative_slope)


def noisy_batch_norm_sums(
    grad: Tensor, x: Tensor, positive: Tensor, mean: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Sum that gradient, and its product with x - mean, over each channel."""
    before = gradient_before_activation(grad, positive, negative_slope, mean.dtype)
    dimensions = tuple(d for d in range(x.dim()) if d != 1)
    products = before * (x.to(mean.dtype) - broadcast_per_channel(mean, x, 1))
    return before.sum(dimensions), products.sum(dimensions)


def noisy_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    positive: Tensor,
    multiplier: Tensor,
    constant: Tensor,
    slope: Tensor,
    negative_slope: float,
) -> Tensor:
    """Give the gradient of x: that gradient times multiplier, plus constant + slope * x."""
    before = gradient_before_activation(grad, positive, negative_slope, multiplier.dtype)
    statistics = broadcast_per_channel(constant, x, 1) + broadcast_per_channel(slope, x, 1) * x.to(
        slope.dtype
    )
    return (before * broadcast_per_channel(multiplier, x, 1) + statistics).to(grad.dtype)
