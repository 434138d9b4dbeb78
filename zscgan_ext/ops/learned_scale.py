"""The op `lsq_fake_quantize`: scales get gradients too.

The kernels take lists of tensors; this op passes lists of one.
"""

from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.checks import (
    check_activation,
    check_axis,
    check_bias,
    check_dimension,
    check_quantizer,
)
from zscgan_ext.ops.layout import ensure_dense, with_strides
from zscgan_ext.ops.registration import define, differentiable, kernels


def channel_axis(axis: int | None, bias: Tensor | None) -> int | None:
    """Return the dimension along which anything differs: a bias makes it the second."""
    return axis if bias is None else 1


def learned_kernel(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    gradient_scale: float,
    activation: str = "none",
    bias: Tensor | None = None,
) -> Tensor:
    """Run the forward kernel on memory that fits the index space."""
    x = ensure_dense(x, channel_axis(axis, bias))
    ys: list[Tensor] = kernels(x).lsq_fake_quantize(
        [x], [scale], [zero_point], [quant_min], [quant_max], [axis], [activation], [bias]
    )
    return ys[0]


def learned_fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    gradient_scale: float,
    activation: str = "none",
    bias: Tensor | None = None,
) -> Tensor:
    """Describe the result of the forward kernel."""
    return torch.empty_like(ensure_dense(x, channel_axis(axis, bias)))


def check_learned(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    gradient_scale: float,
    activation: str = "none",
    bias: Tensor | None = None,
) -> None:
    """Require what the forward kernel takes for granted."""
    check_dimension(x, axis)
    check_quantizer(x, scale, zero_point, quant_min, quant_max, axis)
    check_activation(activation)
    check_bias(x, axis, bias)


def learned_backward_kernel(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    gradient_scale: float,
    activation: str = "none",
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward kernel on a gradient laid out like the result."""
    x = ensure_dense(x, channel_axis(axis, bias))
    grad = with_strides(grad, x.stride())
    quantizer = ([scale], [zero_point], [quant_min], [quant_max], [axis], [gradient_scale])
    columns = kernels(x).lsq_fake_quantize_backward([grad], [x], *quantizer, [activation], [bias])
    grad_x, grad_scale, grad_zero_point, grad_bias = (column[0] for column in columns)
    nothing = scale.new_empty(0)
    return grad_x, grad_scale, grad_zero_point, nothing if grad_bias is None else grad_bias


def learned_backward_fake(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    gradient_scale: float,
    activation: str = "none",
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Describe the results of the backward kernel."""
    grad_x = torch.empty_like(ensure_dense(x, channel_axis(axis, bias)))
    grad_bias = scale.new_empty(0 if bias is None else bias.shape)
    return grad_x, torch.empty_like(scale), torch.empty_like(zero_point), grad_bias


def learned_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the inputs, from which the backward kernel computes everything again."""
    x, scale, zero_point, *ctx.settings, bias = inputs
    ctx.save_for_backward(x, scale, zero_point, bias)


def learned_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Give the gradients of x, scale, zero point and bias."""
    *tensors, bias = ctx.saved_tensors
    *gradients, grad_bias = LSQ_FAKE_QUANTIZE_BACKWARD(grad, *tensors, *ctx.settings, bias)
    return *gradients, *[None] * len(ctx.settings), None if bias is None else grad_bias


ONE = (
    "Tensor x, Tensor scale, Tensor zero_point, int quant_min, int quant_max, int? axis,"
    ' float gradient_scale, str activation="none", Tensor? bias=None'
)
LSQ_FAKE_QUANTIZE = define(
    f"lsq_fake_quantize({ONE}) -> Tensor", learned_kernel, learned_fake, check_learned
)
LSQ_FAKE_QUANTIZE_BACKWARD = define(
    f"lsq_fake_quantize_backward(Tensor grad, {ONE}) -> (Tensor, Tensor, Tensor, Tensor)",
    learned_backward_kernel,
    learned_backward_fake,
)
differentiable(LSQ_FAKE_QUANTIZE, learned_setup, learned_gradient)


def lsq_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    gradient_scale: float = 1.0,
    activation: str = "none",
    bias: Tensor | None = None,
) -> Tensor:
    """Quantize `activation(x + bias)` to integers and back, with gradients for all tensors.

    The learned step size of LSQ (Esser et al., 2020) with the learned offset of LSQ+ (Bhalgat et
    al., 2020), in the form of torch's own learnable fake quantization: a value counts as clamped
    where its rounded integer is outside the range, in LSQ's equation 3 where x / scale is. The two
    differ within half a step beyond either bound. The zero point is rounded and clamped before use.
    The result is that of `torch.relu(x + bias)` or `F.relu6(x + bias)` quantized, in one pass that
    saves `x` alone. In half precision the sum of `x` and `bias` stays float32 and is not rounded.

    Args:
        x: any shape.
        scale: [1], or [C] for `axis`, positive.
        zero_point: like `scale`.
        quant_min: smallest integer.
        quant_max: largest integer.
        axis: dimension of `x` that has one scale per index; None for one scale in all.
        gradient_scale: factor of the gradients of `scale` and `zero_point`; LSQ takes
            `1 / sqrt(elements per scale * quant_max)`.
        activation: `none`, `relu`, or `relu6`, which clamps to 0 and 6.
        bias: [C], float32 (float64 for float64), for `x` [N, C, ...] and `axis` None or 1; None
            for none.

    Returns:
        A tensor with the shape, dtype and memory format of `x`.

    Raises:
        ValueError: if shapes, dtypes, devices or bounds do not fit, or the activation is unknown.
    """
    axis = check_axis(x, axis)
    check_quantizer(x, scale, zero_point, quant_min, quant_max, axis)
    check_activation(activation)
    check_bias(x, axis, bias)
    settings = (quant_min, quant_max, axis, gradient_scale, activation)
    y: Tensor = LSQ_FAKE_QUANTIZE(x, scale, zero_point, *settings, bias)
    return y
