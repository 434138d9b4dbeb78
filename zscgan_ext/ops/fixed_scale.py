"""The op `fake_quantize`: fixed scale and zero point, straight-through gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.checks import check_axis, check_dimension, check_quantizer
from zscgan_ext.ops.layout import ensure_dense, with_strides
from zscgan_ext.ops.registration import define, differentiable, kernels


def fake_quantize_kernel(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    with_mask: bool,
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel on memory that fits the index space."""
    x = ensure_dense(x, axis)
    result: tuple[Tensor, Tensor] = kernels(x).fake_quantize(
        x, scale, zero_point, quant_min, quant_max, axis, with_mask
    )
    return result


def fake_quantize_fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    with_mask: bool,
) -> tuple[Tensor, Tensor]:
    """Describe the results of the forward kernel."""
    size = (x.numel() + 7) // 8 if with_mask else 0
    return torch.empty_like(ensure_dense(x, axis)), x.new_empty((size,), dtype=torch.uint8)


def check_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    with_mask: bool,
) -> None:
    """Require what the forward kernel takes for granted."""
    check_dimension(x, axis)
    check_quantizer(x, scale, zero_point, quant_min, quant_max, axis)


def fake_quantize_backward_kernel(grad: Tensor, mask: Tensor, strides: Sequence[int]) -> Tensor:
    """Run the backward kernel on a gradient laid out like the result."""
    grad_x: Tensor = kernels(grad).fake_quantize_backward(with_strides(grad, strides), mask)
    return grad_x


def fake_quantize_backward_fake(grad: Tensor, mask: Tensor, strides: Sequence[int]) -> Tensor:
    """Describe the result of the backward kernel."""
    return torch.empty_like(with_strides(grad, strides))


def fake_quantize_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save the mask, the one thing that the gradient needs."""
    y, mask = output
    ctx.save_for_backward(mask)
    ctx.strides = y.stride()
    ctx.mark_non_differentiable(mask)
    ctx.set_materialize_grads(False)


def fake_quantize_gradient(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
    """Pass the gradient of x where nothing was clamped."""
    if grad is None:  # what came after has none
        return (None,) * 7
    (mask,) = ctx.saved_tensors
    return FAKE_QUANTIZE_BACKWARD(grad, mask, ctx.strides), *[None] * 6


FAKE_QUANTIZE = define(
    "fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int quant_min, int quant_max,"
    " int? axis, bool with_mask) -> (Tensor, Tensor)",
    fake_quantize_kernel,
    fake_quantize_fake,
    check_fake_quantize,
)
FAKE_QUANTIZE_BACKWARD = define(
    "fake_quantize_backward(Tensor grad, Tensor mask, SymInt[] strides) -> Tensor",
    fake_quantize_backward_kernel,
    fake_quantize_backward_fake,
)
differentiable(FAKE_QUANTIZE, fake_quantize_setup, fake_quantize_gradient, results=1)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
) -> Tensor:
    """Quantize to integers and back, with a straight-through gradient for `x`.

    `q = clamp(rint(x / scale) + zero_point, quant_min, quant_max)`, `y = (q - zero_point) * scale`;
    the gradient passes where nothing was clamped. In float32 the result has the bits of
    `torch.fake_quantize_per_tensor_affine` and `torch.fake_quantize_per_channel_affine` with zero
    points of an integer dtype. With floating-point ones torch adds the zero point before it rounds,
    which gives another integer where x lies halfway between two.

    Args:
        x: any shape.
        scale: [1], or [C] for `axis`, positive.
        zero_point: like `scale`; rounded to the nearest integer before use, ties to even.
        quant_min: smallest integer.
        quant_max: largest integer.
        axis: dimension of `x` that has one scale per index; None for one scale in all.

    Returns:
        A tensor with the shape, dtype and memory format of `x`.

    Raises:
        ValueError: if shapes, dtypes, devices or bounds do not fit.
    """
    axis = check_axis(x, axis)
    check_quantizer(x, scale, zero_point, quant_min, quant_max, axis)
    # The mask is written only where a gradient will need it.
    with_mask = x.requires_grad and torch.is_grad_enabled()
    fixed = [v.detach() if v.requires_grad else v for v in (scale, zero_point)]
    y: Tensor = FAKE_QUANTIZE(x, *fixed, quant_min, quant_max, axis, with_mask)[0]
    return y
