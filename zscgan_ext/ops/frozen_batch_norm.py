"""Batch norm with stored statistics: `frozen_batch_norm` and `frozen_batch_norm_with_stats`."""

from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.batch_norm_matching import BATCH_NORM_STATISTICS_BACKWARD
from zscgan_ext.ops.checks import check_frozen_batch_norm, check_statistics
from zscgan_ext.ops.layout import compute_dtype, ensure_dense, with_strides
from zscgan_ext.ops.registration import define, differentiable, kernels

# ---- both backward passes -----------------------------------------------------------------------


def backward_kernel(
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
    """Run the backward kernel on memory that fits the index space."""
    grad, x, y = laid_out_alike(grad, x, y)
    statistics = (mean, *(v if v is None else v.contiguous() for v in (grad_mean, grad_variance)))
    gradients: tuple[Tensor, Tensor] = kernels(grad).frozen_batch_norm_backward(
        grad, x, y, multiplier, offset, *statistics, activation, with_residual
    )
    return gradients


def backward_fake(
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
    """Describe the results of the backward kernel."""
    grad_x = torch.empty_like(laid_out_alike(grad, x, y)[0])
    return grad_x, torch.empty_like(grad_x) if with_residual else grad_x.new_empty((0,))


def laid_out_alike(
    grad: Tensor, x: Tensor | None, y: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Bring all to the layout of a dense x, or without x of a dense y."""
    strides = ensure_dense(x if x is not None else y if y is not None else grad, 1).stride()
    x, y = (None if v is None else with_strides(v, strides) for v in (x, y))
    return with_strides(grad, strides), x, y


FROZEN_BATCH_NORM_BACKWARD = define(
    "frozen_batch_norm_backward(Tensor grad, Tensor? x, Tensor? y, Tensor multiplier,"
    " Tensor offset, Tensor? mean, Tensor? grad_mean, Tensor? grad_variance, str activation,"
    " bool with_residual)"
    " -> (Tensor, Tensor)",
    backward_kernel,
    backward_fake,
)


# ---- frozen_batch_norm --------------------------------------------------------------------------


def eval_kernel(
    x: Tensor, multiplier: Tensor, offset: Tensor, residual: Tensor | None, activation: str
) -> Tensor:
    """Run the forward kernel on memory that fits the index space."""
    x = ensure_dense(x, 1)
    residual = None if residual is None else with_strides(residual, x.stride())
    y: Tensor = kernels(x).frozen_batch_norm(x, multiplier, offset, residual, activation)
    return y


def eval_fake(
    x: Tensor, multiplier: Tensor, offset: Tensor, residual: Tensor | None, activation: str
) -> Tensor:
    """Describe the result of the forward kernel."""
    return torch.empty_like(ensure_dense(x, 1))


def eval_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save y, from which the mask of an activation follows; without one nothing of x's size."""
    _, multiplier, offset, residual, ctx.activation = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(output if ctx.activation != "none" else None, multiplier, offset)


def eval_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Give the gradients of x and of the residual."""
    y, multiplier, offset = ctx.saved_tensors
    grad_x, grad_residual = gradients_of_y(
        grad, None, y, multiplier, offset, ctx.activation, ctx.needs_input_grad[3]
    )
    return grad_x, None, None, grad_residual, None


def gradients_of_y(
    grad: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    multiplier: Tensor,
    offset: Tensor,
    activation: str,
    with_residual: bool,
) -> tuple[Tensor, Tensor | None]:
    """Give the gradients of x and of the residual where statistics have none."""
    if activation == "none":
        # Linear in x: the gradient is the same op without the offset.
        linear = (multiplier, torch.zeros_like(offset), None, activation)
        return FROZEN_BATCH_NORM(grad, *linear), grad if with_residual else None
    no_statistics = (None, None, None)
    grad_x, grad_residual = FROZEN_BATCH_NORM_BACKWARD(
        grad, x, y, multiplier, offset, *no_statistics, activation, with_residual
    )
    return grad_x, grad_residual if with_residual else None


FROZEN_BATCH_NORM = define(
    "frozen_batch_norm(Tensor x, Tensor multiplier, Tensor offset, Tensor? residual,"
    " str activation) -> Tensor",
    eval_kernel,
    eval_fake,
    check_frozen_batch_norm,
)
differentiable(FROZEN_BATCH_NORM, eval_setup, eval_gradient)


# ---- frozen_batch_norm_with_stats ---------------------------------------------------------------


def matched_kernel(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    mean_hint: Tensor,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward kernel on memory that fits the index space."""
    x = ensure_dense(x, 1)
    residual = None if residual is None else with_strides(residual, x.stride())
    results: tuple[Tensor, Tensor, Tensor] = kernels(x).frozen_batch_norm_with_stats(
        x, multiplier, offset, mean_hint, residual, activation
    )
    return results


def matched_fake(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    mean_hint: Tensor,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Describe the results of the forward kernel."""
    mean = x.new_empty((x.shape[1],), dtype=compute_dtype(x))
    return torch.empty_like(ensure_dense(x, 1)), mean, torch.empty_like(mean)


def check_matched(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    mean_hint: Tensor,
    residual: Tensor | None,
    activation: str,
) -> None:
    """Require what the forward kernel takes for granted."""
    check_frozen_batch_norm(x, multiplier, offset, residual, activation)
    check_statistics(x, mean_hint)


def matched_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save x, and y where a residual took part in the activation: x alone tells no mask then."""
    x, multiplier, offset, _, residual, ctx.activation = inputs
    y, mean, _ = output
    masked_by_y = residual is not None and ctx.activation != "none"
    ctx.save_for_backward(x, y if masked_by_y else None, multiplier, offset, mean)
    ctx.set_materialize_grads(False)


def matched_gradient(
    ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, grad_variance: Tensor | None
) -> tuple[Any, ...]:
    """Give the gradients of x and of the residual, from whichever outputs were used."""
    x, y, multiplier, offset, mean = ctx.saved_tensors
    with_residual = ctx.needs_input_grad[4]
    settings = (ctx.activation, with_residual)
    if grad_mean is None and grad_variance is None:
        if grad is None:
            return (None,) * 6
        grad_x, grad_residual = gradients_of_y(grad, x, y, multiplier, offset, *settings)
        return grad_x, None, None, None, grad_residual, None
    given = [torch.zeros_like(mean) if v is None else v for v in (grad_mean, grad_variance)]
    if grad is None:
        return BATCH_NORM_STATISTICS_BACKWARD(x, mean, *given), *(None,) * 5
    masks = ctx.activation != "none"
    grad_x, grad_residual = FROZEN_BATCH_NORM_BACKWARD(
        *(grad, x, y, multiplier, offset, mean, *given, ctx.activation, masks and with_residual)
    )
    if with_residual and not masks:
        grad_residual = grad
    return grad_x, None, None, None, grad_residual if with_residual else None, None


FROZEN_BATCH_NORM_WITH_STATS = define(
    "frozen_batch_norm_with_stats(Tensor x, Tensor multiplier, Tensor offset, Tensor mean_hint,"
    " Tensor? residual, str activation) -> (Tensor, Tensor, Tensor)",
    matched_kernel,
    matched_fake,
    check_matched,
)
differentiable(FROZEN_BATCH_NORM_WITH_STATS, matched_setup, matched_gradient)


def frozen_batch_norm(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Normalize with stored statistics, add a residual and apply an activation, in one pass.

    `y = activation(x * multiplier + offset + residual)`, where a batch norm with weight gamma and
    bias beta in evaluation mode has `multiplier = gamma / sqrt(running_var + eps)` and
    `offset = beta - running_mean * multiplier`. Gradients reach `x` and `residual` alone.

    Args:
        x: [N, C, ...].
        multiplier: [C], float32 (float64 for float64).
        offset: [C], the same.
        activation: one of `ACTIVATIONS`: `none`, `relu`, or `relu6`, which clamps to 0 and 6.
        residual: shape and dtype of `x`, added before the activation; None for none.

    Returns:
        y, with the shape, dtype and memory format of `x`.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, or the activation is unknown.
    """
    check_frozen_batch_norm(x, multiplier, offset, residual, activation)
    y: Tensor = FROZEN_BATCH_NORM(x, multiplier.detach(), offset.detach(), residual, activation)
    return y


def frozen_batch_norm_with_stats(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    mean_hint: Tensor,
    activation: str = "none",
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `frozen_batch_norm` and `batch_norm_statistics` of the same `x` in one pass.

    Its gradient, too, is one pass: it reads the gradient of y and x, and y where a residual took
    part in an activation.

    Args:
        x: [N, C, ...], with at least one value in every channel.
        multiplier: [C], float32 (float64 for float64).
        offset: [C], the same.
        mean_hint: [C], the same, near the mean of `x`: the batch norm's running_mean.
        activation: one of `ACTIVATIONS`: `none`, `relu`, or `relu6`, which clamps to 0 and 6.
        residual: shape and dtype of `x`, added before the activation; None for none.

    Returns:
        y like `x`, and mean [C] and biased variance [C] of `x`, float32 (float64 for float64).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, channels have no value, or the
            activation is unknown.
    """
    check_matched(x, multiplier, offset, mean_hint, residual, activation)
    frozen = (multiplier.detach(), offset.detach(), mean_hint.detach())
    y, mean, variance = FROZEN_BATCH_NORM_WITH_STATS(x, *frozen, residual, activation)
    return y, mean, variance
