"""The quantization kernels in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zscgan_ext.ops.layout import broadcast_per_channel, compute_dtype
from zscgan_ext.ops.reference.activations import activate, blocks_gradient

# The smallest scale an observer gives, as in torch.ao.quantization.
SMALLEST_SCALE = torch.finfo(torch.float32).eps


def pack_bits(bits: Tensor) -> Tensor:
    """Pack booleans in memory order, eight to a byte, the first in the lowest bit."""
    flat = bits.as_strided((bits.numel(),), (1,)).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded * weights).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, like: Tensor) -> Tensor:
    """Undo `pack_bits` into a boolean tensor with the shape and strides of `like`."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    flat = ((packed.view(-1, 1) >> places) & 1).bool().view(-1)[: like.numel()]
    return flat.as_strided(like.shape, like.stride())


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x in the compute dtype, scale and zero point over x, and the unclamped integers."""
    wide = x.to(compute_dtype(x))
    scale = broadcast_per_channel(scale.to(wide.dtype), x, axis)
    zero_point = broadcast_per_channel(zero_point.to(wide.dtype), x, axis)
    return wide, scale, zero_point, torch.round(wide * (1 / scale)) + zero_point


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    with_mask: bool,
) -> tuple[Tensor, Tensor]:
    """Quantize and dequantize; with the mask of the values inside the range, one bit each."""
    _, scale, zero_point, unclamped = quantize(
        x, scale, zero_point.round(), quant_min, quant_max, axis
    )
    y = ((unclamped.clamp(quant_min, quant_max) - zero_point) * scale).to(x.dtype)
    if not with_mask:
        return y, x.new_empty(0, dtype=torch.uint8)
    return y, pack_bits((unclamped >= quant_min) & (unclamped <= quant_max))


def fake_quantize_backward(grad: Tensor, mask: Tensor) -> Tensor:
    """Pass the gradient where the value was inside the range."""
    return torch.where(unpack_bits(mask, grad), grad, 0)


def learned_zero_point(zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Round a learned zero point to the integer that quantization uses."""
    return zero_point.round().clamp(quant_min, quant_max)


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """Add one value per channel of [N, C, ...] in the compute dtype."""
    wide = x.to(compute_dtype(x))
    return wide if bias is None else wide + broadcast_per_channel(bias, x, 1)


def learned_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    gradient_scale: float,
    activation: str,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, scale, zero point (LSQ and LSQ+, as torch's learnable form) and bias."""
    integer = learned_zero_point(zero_point, quant_min, quant_max)
    before = add_bias(x, bias)
    wide = activate(before, activation)
    _, steps, offset, unclamped = quantize(wide, scale, integer, quant_min, quant_max, axis)
    wide_grad = grad.to(wide.dtype)
    inside = (unclamped >= quant_min) & (unclamped <= quant_max)
    scaled = wide * (1 / steps)
    bound = unclamped.clamp(quant_min, quant_max) - offset
    by_scale = wide_grad * torch.where(inside, torch.round(scaled) - scaled, bound)
    by_zero_point = torch.where(inside, 0, -wide_grad * steps)
    grad_scale, grad_zero_point = (
        (gradient_scale * per_channel_sum(terms, axis)).reshape(scale.shape).to(scale.dtype)
        for terms in (by_scale, by_zero_point)
    )
    grad_x = torch.where(inside & ~blocks_gradient(before, activation), grad, 0)
    grad_bias = None if bias is None else per_channel_sum(grad_x, 1).to(bias.dtype)
    return grad_x, grad_scale, grad_zero_point, grad_bias


def rows(x: Tensor, axis: int | None) -> Tensor:
    """View or copy x as one row per channel, [C, elements of a channel]."""
    if axis is None:
        return x.reshape(1, -1)
    return x.unsqueeze(-1).movedim(axis, 0).flatten(1)


def per_channel_sum(terms: Tensor, axis: int | None) -> Tensor:
    """Sum over all dimensions but `axis`, in float64."""
    return rows(terms, axis).sum(1, dtype=torch.float64)


def lsq_fake_quantize_backward(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    axes: Sequence[int | None],
    gradient_scales: Sequence[float],
    activations: Sequence[str],
    biases: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor | None]]:
    """Gradients of x, scale, zero point and bias of many tensors."""
    quantizers = (scales, zero_points, quant_mins, quant_maxs, axes, gradient_scales)
    columns = zip(grads, xs, *quantizers, activations, biases, strict=True)
    grad_xs, grad_scales, grad_zero_points, grad_biases = zip(
        *(learned_gradients(*row) for row in columns), strict=True
    )
    return list(grad_xs), list(grad_scales), list(grad_zero_points), list(grad_biases)


def lsq_fake_quantize(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    axes: Sequence[int | None],
    activations: Sequence[str],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """Quantize and dequantize activation(x + bias) of many tensors, zero points rounded first."""
    quantizers = (scales, zero_points, quant_mins, quant_maxs, axes)
    columns = zip(xs, *quantizers, activations, biases, strict=True)
    ys = []
    for x, scale, zero_point, low, high, axis, activation, bias in columns:
        integer = learned_zero_point(zero_point, low, high)
        values = activate(add_bias(x, bias), activation)
        ys.append(fake_quantize(values, scale, integer, low, high, axis, False)[0].to(x.dtype))
    return ys


def update_min_max(
    x: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    axis: int | None,
) -> None:
    """Average minimum and maximum into the running ones; write scale and zero point."""
    if x.numel() == 0:
        return
    low, high = rows(x, axis).float().aminmax(dim=1)
    first = running_min > running_max
    for running, observed in ((running_min, low), (running_max, high)):
        average = running + averaging_constant * (observed - running)
        running.copy_(torch.where(first, observed, average))
    negative, positive = running_min.clamp(max=0), running_max.clamp(min=0)
    # As a tensor: on a GPU torch divides by a number through its inverse, with other bits.
    steps = torch.full_like(scale, quant_max - quant_min)
    if symmetric:
        scale.copy_((2 * torch.maximum(-negative, positive) / steps).clamp(min=SMALLEST_SCALE))
        zero_point.fill_(0 if quant_min < 0 else (quant_min + quant_max + 1) // 2)
    else:
        scale.copy_(((positive - negative) / steps).clamp(min=SMALLEST_SCALE))
        zero_point.copy_((quant_min - torch.round(negative / scale)).clamp(quant_min, quant_max))
