"""The op `noisy_batch_norm`: batch norm, noise and LeakyReLU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.checks import check_noisy_batch_norm
from zscgan_ext.ops.layout import ensure_dense, with_strides
from zscgan_ext.ops.registration import define, differentiable, kernels

# ---- forward ------------------------------------------------------------------------------------


def affine_of(
    weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return a batch norm as a multiplier and an offset, [C] each."""
    multiplier = weight * (variance + eps).rsqrt()
    return multiplier, bias - mean * multiplier


def forward_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    seed: Tensor,
    eps: float,
    noise: float,
    negative_slope: float,
    is_of_batch: bool,
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel on memory that fits the index space."""
    x = ensure_dense(x, 1)
    affine = affine_of(weight, bias, mean, variance, eps)
    results: tuple[Tensor, Tensor] = kernels(x).noisy_batch_norm(
        x, *affine, seed, noise, negative_slope
    )
    return results


def forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    seed: Tensor,
    eps: float,
    noise: float,
    negative_slope: float,
    is_of_batch: bool,
) -> tuple[Tensor, Tensor]:
    """Describe the results of the forward kernel."""
    return torch.empty_like(ensure_dense(x, 1)), x.new_empty(
        ((x.numel() + 7) // 8,), dtype=torch.uint8
    )


# ---- backward -----------------------------------------------------------------------------------


def sums_kernel(
    grad: Tensor, x: Tensor, positive: Tensor, mean: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Run the kernel of the sums on memory that fits the index space."""
    x = ensure_dense(x, 1)
    sums: tuple[Tensor, Tensor] = kernels(x).noisy_batch_norm_sums(
        with_strides(grad, x.stride()), x, positive, mean, negative_slope
    )
    return sums


def sums_fake(
    grad: Tensor, x: Tensor, positive: Tensor, mean: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Describe the sums."""
    return torch.empty_like(mean), torch.empty_like(mean)


def backward_kernel(
    grad: Tensor,
    x: Tensor,
    positive: Tensor,
    multiplier: Tensor,
    constant: Tensor,
    slope: Tensor,
    negative_slope: float,
) -> Tensor:
    """Run the backward kernel on memory that fits the index space."""
    x = ensure_dense(x, 1)
    grad_x: Tensor = kernels(x).noisy_batch_norm_backward(
        with_strides(grad, x.stride()), x, positive, multiplier, constant, slope, negative_slope
    )
    return grad_x


def backward_fake(
    grad: Tensor,
    x: Tensor,
    positive: Tensor,
    multiplier: Tensor,
    constant: Tensor,
    slope: Tensor,
    negative_slope: float,
) -> Tensor:
    """Describe the result of the backward kernel."""
    return torch.empty_like(ensure_dense(x, 1))


NOISY_BATCH_NORM_SUMS = define(
    "noisy_batch_norm_sums(Tensor grad, Tensor x, Tensor positive, Tensor mean,"
    " float negative_slope) -> (Tensor, Tensor)",
    sums_kernel,
    sums_fake,
)
NOISY_BATCH_NORM_BACKWARD = define(
    "noisy_batch_norm_backward(Tensor grad, Tensor x, Tensor positive, Tensor multiplier,"
    " Tensor constant, Tensor slope, float negative_slope) -> Tensor",
    backward_kernel,
    backward_fake,
)


def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save x and one bit for each of its elements; the noise is needed for nothing else."""
    x, weight, _, mean, variance, _, ctx.eps, _, ctx.negative_slope, ctx.is_of_batch = inputs
    _, positive = output
    ctx.save_for_backward(x, positive, weight, mean, variance)
    ctx.mark_non_differentiable(positive)
    ctx.set_materialize_grads(False)


def gradient(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    """Give the gradients of x, weight and bias."""
    if grad is None:
        return (None,) * 10
    x, positive, weight, mean, variance = ctx.saved_tensors
    count = x.numel() // max(x.shape[1], 1) if ctx.is_of_batch else None
    found = gradients(grad, x, positive, weight, mean, variance, ctx.eps, ctx.negative_slope, count)
    return *found, *(None,) * 7


def gradients(
    grad: Tensor,
    x: Tensor,
    positive: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    negative_slope: float,
    count: Tensor | int | None,
    combine: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias.

    Args:
        grad: of y, [N, C, ...].
        x: the input, [N, C, ...].
        positive: the mask that the forward pass returned.
        weight: of the batch norm, [C].
        mean: that x was normalized with, [C].
        variance: that x was normalized with, [C].
        eps: of the batch norm.
        negative_slope: of the LeakyReLU.
        count: values of a channel that the statistics are of; None if they are not of x.
        combine: turns sums [2, C] over this x into those over all that the statistics are of.
    """
    inverse = (variance + eps).rsqrt()
    multiplier = weight * inverse
    total, product = NOISY_BATCH_NORM_SUMS(grad, x, positive, mean, negative_slope)
    constant = slope = torch.zeros_like(mean)
    if count is not None:
        all_total, all_product = combine(torch.stack([total, product])).unbind()
        slope = -multiplier * inverse.square() * all_product / count
        constant = -multiplier * all_total / count - slope * mean
    grad_x = NOISY_BATCH_NORM_BACKWARD(
        grad, x, positive, multiplier, constant, slope, negative_slope
    )
    return grad_x, product * inverse, total


NOISY_BATCH_NORM = define(
    "noisy_batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor variance,"
    " Tensor seed, float eps, float noise, float negative_slope, bool is_of_batch)"
    " -> (Tensor, Tensor)",
    forward_kernel,
    forward_fake,
    check_noisy_batch_norm,
)
differentiable(NOISY_BATCH_NORM, setup, gradient, results=1)


def noisy_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    seed: Tensor,
    noise: float,
    negative_slope: float = 0.0,
    eps: float = 1e-5,
    is_of_batch: bool = True,
) -> Tensor:
    """Normalize, add normal noise and apply a LeakyReLU, in one pass.

    `y = leaky_relu((x - mean) / sqrt(variance + eps) * weight + bias + noise * n)`, where the
    nearly normal n of an element (mean 0, variance 1) depends on `seed` and the element's place in
    memory alone: it is drawn by a counter, Philox 4x32-10, and is the sum of cubics of eight of its
    bytes, with the same bits on every device and for any number of threads. Its distribution
    function is within 2.1e-4 of the normal one, and no n is beyond 6.7. The backward pass needs x
    and one bit for each element. Gradients reach `x`, `weight` and `bias`.

    Args:
        x: [N, C, ...].
        weight: [C], float32 (float64 for float64).
        bias: [C], the same.
        mean: [C], the same, as `batch_norm_statistics` gives it.
        variance: [C], the same, biased.
        seed: int64 [1] on the device of `x`, read there.
        noise: standard deviation of the noise; with 0 none is drawn.
        negative_slope: of the LeakyReLU.
        eps: added to the variance.
        is_of_batch: True if mean and variance are those of `x`, and the gradient of `x` is to go
            through them too; False if they are constants.

    Returns:
        y, with the shape, dtype and memory format of `x`.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit.
    """
    mean, variance = mean.detach(), variance.detach()
    settings = (eps, noise, negative_slope, is_of_batch)
    check_noisy_batch_norm(x, weight, bias, mean, variance, seed, *settings)
    y: Tensor = NOISY_BATCH_NORM(x, weight, bias, mean, variance, seed, *settings)[0]
    return y
