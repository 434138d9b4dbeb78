"""The op `lsq_fake_quantize_foreach`: all weights of a network in one launch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.checks import check_alike, check_axis, check_quantizer, check_same_length
from zscgan_ext.ops.layout import ensure_dense, with_strides
from zscgan_ext.ops.registration import define, differentiable, kernels


def per_output_channel(scales: Sequence[Tensor]) -> list[int | None]:
    """Return the axis of each weight: its first dimension, or None for one scale in all."""
    return [None if scale.numel() == 1 else 0 for scale in scales]


def plain(count: int) -> tuple[list[str], list[None]]:
    """Return the activations and biases of tensors that have none."""
    return ["none"] * count, [None] * count


def many_kernel(
    xs: list[Tensor],
    scales: list[Tensor],
    zero_points: list[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
) -> list[Tensor]:
    """Run the forward kernel on memory that fits the index space."""
    axes = per_output_channel(scales)
    xs = list(map(ensure_dense, xs, axes))
    results: list[Tensor] = kernels(xs[0]).lsq_fake_quantize(
        xs, scales, zero_points, quant_mins, quant_maxs, axes, *plain(len(xs))
    )
    return results


def many_fake(
    xs: list[Tensor],
    scales: list[Tensor],
    zero_points: list[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
) -> list[Tensor]:
    """Describe the results of the forward kernel."""
    return [torch.empty_like(x) for x in map(ensure_dense, xs, per_output_channel(scales))]


def many_backward_kernel(
    grads: list[Tensor],
    xs: list[Tensor],
    scales: list[Tensor],
    zero_points: list[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run the backward kernel on gradients laid out like the results."""
    axes = per_output_channel(scales)
    xs = list(map(ensure_dense, xs, axes))
    grads = [with_strides(grad, x.stride()) for grad, x in zip(grads, xs, strict=True)]
    settings = (quant_mins, quant_maxs, axes, gradient_scales, *plain(len(xs)))
    grad_xs, grad_scales, grad_zero_points, _ = kernels(xs[0]).lsq_fake_quantize_backward(
        grads, xs, scales, zero_points, *settings
    )
    return grad_xs, grad_scales, grad_zero_points


def many_backward_fake(
    grads: list[Tensor],
    xs: list[Tensor],
    scales: list[Tensor],
    zero_points: list[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Describe the results of the backward kernel."""
    grad_xs = [torch.empty_like(x) for x in map(ensure_dense, xs, per_output_channel(scales))]
    grad_scales = [torch.empty_like(scale) for scale in scales]
    return grad_xs, grad_scales, [torch.empty_like(zero_point) for zero_point in zero_points]


def many_setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    """Save the inputs, from which the backward kernel computes everything again."""
    xs, scales, zero_points, *ctx.settings = inputs
    ctx.count = len(xs)
    ctx.save_for_backward(*xs, *scales, *zero_points)


def many_gradient(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    """Give the gradients of all tensors, scales and zero points."""
    saved, count = list(ctx.saved_tensors), ctx.count
    gradients = LSQ_FAKE_QUANTIZE_FOREACH_BACKWARD(
        grads, saved[:count], saved[count : 2 * count], saved[2 * count :], *ctx.settings
    )
    return *gradients, None, None, None


def check_many(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
) -> None:
    """Require what the forward kernel takes for granted."""
    check_same_length(xs, scales, zero_points, quant_mins, quant_maxs, gradient_scales)
    check_alike("xs", xs)
    axes = per_output_channel(scales)
    columns = zip(xs, scales, zero_points, quant_mins, quant_maxs, axes, strict=True)
    for x, scale, zero_point, quant_min, quant_max, axis in columns:
        check_axis(x, axis)
        check_quantizer(x, scale, zero_point, quant_min, quant_max, axis)


MANY = (
    "Tensor[] xs, Tensor[] scales, Tensor[] zero_points, int[] quant_mins, int[] quant_maxs,"
    " float[] gradient_scales"
)
LSQ_FAKE_QUANTIZE_FOREACH = define(
    f"lsq_fake_quantize_foreach({MANY}) -> Tensor[]", many_kernel, many_fake, check_many
)
LSQ_FAKE_QUANTIZE_FOREACH_BACKWARD = define(
    f"lsq_fake_quantize_foreach_backward(Tensor[] grads, {MANY}) -> (Tensor[], Tensor[], Tensor[])",
    many_backward_kernel,
    many_backward_fake,
)
differentiable(LSQ_FAKE_QUANTIZE_FOREACH, many_setup, many_gradient)


def lsq_fake_quantize_foreach(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
) -> list[Tensor]:
    """Apply `lsq_fake_quantize` to many tensors along their first dimension, in one launch.

    Made for all weights of a network, which are many and small.

    Args:
        xs: tensors of one device and dtype, each [C_i, ...].
        scales: [C_i] or [1] each.
        zero_points: like `scales`.
        quant_mins: smallest integer of each.
        quant_maxs: largest integer of each.
        gradient_scales: factor of the gradients of each `scale` and `zero_point`.

    Returns:
        One tensor for each of `xs`, with its shape, dtype and memory format.

    Raises:
        ValueError: if lengths, shapes, dtypes, devices or bounds do not fit.
    """
    check_many(xs, scales, zero_points, quant_mins, quant_maxs, gradient_scales)
    ys: list[Tensor] = LSQ_FAKE_QUANTIZE_FOREACH(
        list(xs), list(scales), list(zero_points), quant_mins, quant_maxs, gradient_scales
    )
    return ys
