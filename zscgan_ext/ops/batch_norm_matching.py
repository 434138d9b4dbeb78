"""The ops `batch_norm_statistics` and `batch_norm_distance`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.checks import (
    check_distance,
    check_layers,
    check_same_length,
    check_statistics,
)
from zscgan_ext.ops.layout import compute_dtype, ensure_dense
from zscgan_ext.ops.registration import define, differentiable, kernels

DISTANCES = ("gaussian_kl", "mse", "std_mse", "l2")


# ---- batch_norm_statistics ----------------------------------------------------------------------


def statistics_kernel(x: Tensor, mean_hint: Tensor) -> tuple[Tensor, Tensor]:
    """Run the forward kernel on memory that fits the index space."""
    x = ensure_dense(x, 1)
    statistics: tuple[Tensor, Tensor] = kernels(x).batch_norm_statistics(x, mean_hint)
    return statistics


def statistics_fake(x: Tensor, mean_hint: Tensor) -> tuple[Tensor, Tensor]:
    """Describe the results of the forward kernel."""
    mean = x.new_empty((x.shape[1],), dtype=compute_dtype(x))
    return mean, torch.empty_like(mean)


def statistics_backward_kernel(
    x: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> Tensor:
    """Run the backward kernel on memory that fits the index space."""
    x = ensure_dense(x, 1)
    grad_x: Tensor = kernels(x).batch_norm_statistics_backward(
        x, mean, grad_mean.contiguous(), grad_variance.contiguous()
    )
    return grad_x


def statistics_backward_fake(
    x: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> Tensor:
    """Describe the result of the backward kernel."""
    return torch.empty_like(ensure_dense(x, 1))


def statistics_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save x and its mean."""
    ctx.save_for_backward(inputs[0], output[0])


def statistics_gradient(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Any, ...]:
    """Give the gradient of x."""
    gradient = BATCH_NORM_STATISTICS_BACKWARD(*ctx.saved_tensors, grad_mean, grad_variance)
    return gradient, None


BATCH_NORM_STATISTICS = define(
    "batch_norm_statistics(Tensor x, Tensor mean_hint) -> (Tensor, Tensor)",
    statistics_kernel,
    statistics_fake,
    check_statistics,
)
BATCH_NORM_STATISTICS_BACKWARD = define(
    "batch_norm_statistics_backward(Tensor x, Tensor mean, Tensor grad_mean,"
    " Tensor grad_variance) -> Tensor",
    statistics_backward_kernel,
    statistics_backward_fake,
)
differentiable(BATCH_NORM_STATISTICS, statistics_setup, statistics_gradient)


# ---- batch_norm_distance ------------------------------------------------------------------------


def distance_kernel(
    means: list[Tensor],
    variances: list[Tensor],
    running_means: list[Tensor],
    running_vars: list[Tensor],
    eps: Sequence[float],
    distance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel of all layers; the gradients come with the distance."""
    columns = [
        [values.contiguous() for values in column]
        for column in (means, variances, running_means, running_vars)
    ]
    results: tuple[Tensor, Tensor, Tensor] = kernels(means[0]).batch_norm_distance(
        *columns, eps, distance
    )
    return results


def distance_fake(
    means: list[Tensor],
    variances: list[Tensor],
    running_means: list[Tensor],
    running_vars: list[Tensor],
    eps: Sequence[float],
    distance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Describe the results of the kernel."""
    joined = means[0].new_empty((sum(mean.shape[0] for mean in means),))
    return means[0].new_empty(()), joined, torch.empty_like(joined)


def distance_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the gradients that the kernel gave."""
    _, grad_means, grad_variances = output
    ctx.save_for_backward(grad_means, grad_variances)
    ctx.sizes = [mean.shape[0] for mean in inputs[0]]
    ctx.mark_non_differentiable(grad_means, grad_variances)


def distance_gradient(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    """Scale the saved gradients and part them by layer."""
    grad_means, grad_variances = (grad * saved for saved in ctx.saved_tensors)
    nothing = [None] * len(ctx.sizes)
    split = (list(joined.split(ctx.sizes)) for joined in (grad_means, grad_variances))
    return *split, nothing, nothing, None, None


def check_statistics_of_layers(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    eps: Sequence[float],
    distance: str,
) -> None:
    """Require what the kernel takes for granted."""
    check_distance(distance, DISTANCES)
    check_same_length(means, variances, running_means, running_vars, eps)
    check_layers(means, variances, running_means, running_vars)


BATCH_NORM_DISTANCE = define(
    "batch_norm_distance(Tensor[] means, Tensor[] variances, Tensor[] running_means,"
    " Tensor[] running_vars, float[] eps, str distance) -> (Tensor, Tensor, Tensor)",
    distance_kernel,
    distance_fake,
    check_statistics_of_layers,
)
differentiable(BATCH_NORM_DISTANCE, distance_setup, distance_gradient)


def batch_norm_statistics(x: Tensor, mean_hint: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance of every channel, in one pass, differentiable.

    Args:
        x: [N, C, ...], with at least one value in every channel.
        mean_hint: [C], subtracted before summing; a value near the mean, such as a batch norm's
            running_mean, keeps the sums accurate. It changes nothing else.

    Returns:
        mean [C] and variance [C], float32 (float64 for float64).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, or channels have no value.
    """
    check_statistics(x, mean_hint)
    mean, variance = BATCH_NORM_STATISTICS(x, mean_hint)
    return mean, variance


def batch_norm_distance(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    eps: Sequence[float],
    distance: str = "gaussian_kl",
) -> Tensor:
    """Compute how far batch statistics are from stored ones, all layers in one launch.

    A layer's distance, with batch mean m and variance v, stored mean M and variance V, is the mean
    over its channels of

    - `gaussian_kl`: `(m - M)^2 / (2 (V + eps)) + (r - 1 - log r) / 2` with
      `r = (v + eps) / (V + eps)`, the divergence KL(N(m, v) || N(M, V)) (Choi et al., 2020);
    - `mse`: `(m - M)^2 + (v - V)^2` (GDFQ, Xu et al., 2020);
    - `std_mse`: `(m - M)^2 + (sqrt(v + eps) - sqrt(V + eps))^2` (ZeroQ, Cai et al., 2020);

    or `l2`: the Euclidean norm of m - M plus that of v - V (DeepInversion, Yin et al., 2020).

    Args:
        means: [C_i] for each layer.
        variances: [C_i] for each layer, biased.
        running_means: [C_i] for each layer, no gradient.
        running_vars: [C_i] for each layer, no gradient.
        eps: the batch norm's eps, for each layer.
        distance: one of `DISTANCES`.

    Returns:
        The mean over layers, a scalar; differentiable by `means` and `variances`.

    Raises:
        ValueError: if lengths, shapes, dtypes or devices do not fit, there is no layer, or the
            distance is unknown.
    """
    check_statistics_of_layers(means, variances, running_means, running_vars, eps, distance)
    statistics = (list(means), list(variances), list(running_means), list(running_vars))
    total: Tensor = BATCH_NORM_DISTANCE(*statistics, eps, distance)[0]
    return total
