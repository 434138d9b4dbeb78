"""Every kernel in plain torch: the oracle of the tests and the fallback without the native core.

The functions have the signatures of their namesakes in `zscgan_ext.ops.native`. Arithmetic is
float32, or float64 for float64 input. Formulas of distances and gradients are in `docs/kernels.md`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zscgan_ext.ops.layout import compute_dtype, spread

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
    scale = spread(scale.to(wide.dtype), x, axis)
    zero_point = spread(zero_point.to(wide.dtype), x, axis)
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
    _, scale, zero_point, unclamped = quantize(x, scale, zero_point, quant_min, quant_max, axis)
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


def activate(values: Tensor, activation: str) -> Tensor:
    """Apply `none`, `relu` or `relu6`."""
    if activation == "none":
        return values
    return values.relu() if activation == "relu" else values.clamp(0, 6)


def blocks_gradient(values: Tensor, activation: str) -> Tensor:
    """Tell where the gradient of an activation is zero, from its input or its result."""
    if activation == "none":
        return torch.zeros_like(values, dtype=torch.bool)
    return values <= 0 if activation == "relu" else (values <= 0) | (values >= 6)


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """Add one value per channel of [N, C, ...] in the compute dtype."""
    wide = x.to(compute_dtype(x))
    return wide if bias is None else wide + spread(bias, x, 1)


def learned_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    gradient_scale: float,
    axis: int | None,
    activation: str,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, scale, zero point (LSQ, Esser et al., 2020, eq. 3; LSQ+, 2020) and bias."""
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


def fake_quantize_learned_backward(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    zero_points: Sequence[Tensor],
    quant_mins: Sequence[int],
    quant_maxs: Sequence[int],
    gradient_scales: Sequence[float],
    axes: Sequence[int | None],
    activations: Sequence[str],
    biases: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor | None]]:
    """Gradients of x, scale, zero point and bias of many tensors."""
    quantizers = (scales, zero_points, quant_mins, quant_maxs, gradient_scales, axes)
    columns = zip(grads, xs, *quantizers, activations, biases, strict=True)
    grad_xs, grad_scales, grad_zero_points, grad_biases = zip(
        *(learned_gradients(*row) for row in columns), strict=True
    )
    return list(grad_xs), list(grad_scales), list(grad_zero_points), list(grad_biases)


def fake_quantize_learned(
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


def observe(
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


def batch_norm_statistics(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of [N, C, ...]; `shift` changes rounding alone."""
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
    return spread(a, x, 1) + spread(b, x, 1) * x.to(a.dtype)


def batch_norm_statistics_backward(
    x: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> Tensor:
    """The gradient of the statistics, affine in x for each channel: a + b * x."""
    return statistics_gradient(x, mean, grad_mean, grad_variance).to(x.dtype)


def frozen_batch_norm(x: Tensor, multiplier: Tensor, offset: Tensor) -> Tensor:
    """Return x * multiplier + offset in the compute dtype."""
    return x.to(multiplier.dtype) * spread(multiplier, x, 1) + spread(offset, x, 1)


def batch_norm_eval(
    x: Tensor, multiplier: Tensor, offset: Tensor, residual: Tensor | None, activation: str
) -> Tensor:
    """Batch norm with stored statistics, a residual and an activation."""
    values = frozen_batch_norm(x, multiplier, offset)
    if residual is not None:
        values = values + residual
    return activate(values, activation).to(x.dtype)


def batch_norm_eval_matched(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with mean and biased variance of x."""
    y = batch_norm_eval(x, multiplier, offset, residual, activation)
    return y, *batch_norm_statistics(x, shift)


def batch_norm_eval_backward(
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
        blocked = blocks_gradient(frozen_batch_norm(x, multiplier, offset), activation)
    else:
        blocked = blocks_gradient(y if y is not None else grad, activation)
    masked = torch.where(blocked, 0, wide)
    grad_x = masked * spread(multiplier, grad, 1)
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
        torch.where(norm > 0, values / norm, 0).to(mean.dtype)
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
