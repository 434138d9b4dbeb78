"""Weights rounded without data, so that rounding errors cancel (after SQuant, Guo et al., 2022).

A layer's output is off by the rounding errors of its weights times its inputs. What neighbouring
inputs have in common is multiplied by the sum of their weights' errors. SQuant (ICLR 2022) thus
approximates the Hessian of the loss by three terms: one for the error of each element, one for the
sum over each kernel, one for the sum over each output channel. Rounding to nearest minimizes the
first. Then elements that nearly were rounded to the other side are: first until the sum of each
kernel is small, then until that of each channel is. What clipping takes from a weight counts in
these sums as rounding does, which was worth 14 points of top-1 to resnet20 at 3 bits.
"""

import torch
from torch import Tensor

from zscgan_ext.ops.layout import broadcast_per_channel
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import QuantizedLayer


def select_flips(errors: Tensor, movable: Tensor) -> Tensor:
    """Choose the errors to change by one, the largest first, so that their sum gets small.

    Args:
        errors: [..., N], in steps of the grid.
        movable: bool [..., N], the errors that may change.

    Returns:
        [..., N] of -1, 0 or 1, added to `errors`. No error changes its magnitude to 1 or more, if
        it was below 1.
    """
    total = errors.sum(-1, keepdim=True)  # [..., 1]
    excess = errors * total.sign()
    candidate = movable & (excess > 0)
    order = excess.masked_fill(~candidate, -1).argsort(-1, descending=True)
    rank = order.argsort(-1)
    chosen = candidate & (rank < total.abs().round())
    return -total.sign() * chosen


def squant_round(steps: Tensor, low: int, high: int, movable: Tensor | None = None) -> Tensor:
    """Round weights so that the errors of each kernel and each output channel add up to little.

    Where no element is clipped and all may move, the errors of a channel add up to 0.5 at most, and
    those of a kernel too, but for the kernels that were needed for their channel: there to less
    than 1. Those of clipped elements count as well.

    Args:
        steps: float64 [O, I, K], weights in steps of their grid: output channels, input channels,
            elements of a kernel.
        low: smallest integer.
        high: largest integer.
        movable: bool [O, I, K], elements that need not be rounded to nearest; None for all.

    Returns:
        Integers of the same shape and dtype, less than 1 from `steps` unless clipped.
    """
    integers = steps.round().clamp(low, high)
    inside = (steps >= low) & (steps <= high)  # so that both sides are integers of the range
    movable = inside if movable is None else movable & inside
    integers = integers + select_flips(integers - steps, movable)
    errors = integers - steps
    kernels = errors.sum(2)  # [O, I]
    # In each kernel the element that comes closest to its weight; it may have been moved before.
    excess = errors * kernels.sum(1).sign().view(-1, 1, 1)
    largest, element = excess.masked_fill(~movable, 0).max(2, keepdim=True)
    kernel_flips = select_flips(kernels, largest.squeeze(2) > 0)
    return integers.scatter_add(2, element, kernel_flips.unsqueeze(2))


def squant_integers(layer: QuantizedLayer) -> Tensor:
    """Return the integers of a layer's weight, float64 in its shape, rounded as above.

    Under asymmetric scales, which follow the smallest and largest weight of each output channel,
    these two keep the first and last integer, so that the scale stays what it is.
    """
    weight = layer.layer.weight
    low, high = layer.quant_range.quant_min, layer.quant_range.quant_max
    scale, zero_point = (values.double().view(-1, 1) for values in layer.qparams())  # [O, 1] each
    rows = weight.double().flatten(1)  # [O, I * K]
    steps = rows / scale + zero_point
    movable = torch.ones_like(steps, dtype=torch.bool)
    if not layer.symmetric:
        for end, index in ((low, rows.argmin(1)), (high, rows.argmax(1))):
            index = index.unsqueeze(1)  # [O, 1]
            value = steps.gather(1, index)
            # Not so where all weights have one sign: the range then ends at zero.
            is_end = (value - end).abs() < 0.501
            movable.scatter_(1, index, ~is_end)
            # Half a step from the end is nearer to the end.
            steps.scatter_(1, index, torch.where(is_end, value + 0.002 * (end - value), value))
    shape = (*weight.shape[:2], -1)
    rounded = squant_round(steps.view(shape), low, high, movable.view(shape))
    return rounded.view(weight.shape)


def squant_weight(layer: QuantizedLayer) -> Tensor:
    """Return a layer's weight with the values of these integers, float64."""
    weight = layer.layer.weight
    scale, zero_point = (
        broadcast_per_channel(values.double(), weight, 0) for values in layer.qparams()
    )
    return (squant_integers(layer) - zero_point) * scale


@torch.no_grad()
def round_weights(student: QuantizedClassifier) -> None:
    """Replace each weight by the value of its integer, which its quantizer then reproduces.

    Args:
        student: changed in place; its scales stay as they are.
    """
    for layer in student.layers:
        layer.layer.weight.copy_(squant_weight(layer))
