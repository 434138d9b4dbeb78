"""Weights rounded so that a layer's output changes least, given the second moments of its input.

That is `min trace((Q - W) H (Q - W)^T)` over integers, `H` the second moments of the input: the
layer-wise objective of AdaRound (Nagel et al., ICML 2020, equation 13) and of GPTQ (Frantar et al.,
ICLR 2023, equation 1). GPTQ solves it one input at a time: the error that rounding makes is made
good by the weights of the inputs that are still to be rounded (equations 2 and 3). Here inputs with
the largest moments come first, and `H` is a covariance, as the means are corrected by the bias
(`bias_correction.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext.quantization.quantizers import QuantizedLayer

MOST_ROWS = 4096  # samples that moments are taken of, about
PLACES_TO_CHOOSE_FROM = 4 * MOST_ROWS
LARGEST_BLOCK = 2304  # inputs that are rounded with regard to each other
COLUMNS = 64  # inputs that earlier errors are added to at once
DAMPING = 0.1  # of the mean variance, added to each: samples know the moments only roughly


def input_columns(layer: nn.Module, x: Tensor, rng: torch.Generator) -> Tensor | None:
    """Return what the weights of one output channel are multiplied with, [groups, rows, I * K].

    Args:
        layer: convolution or linear layer.
        x: its input, [N, C, H, W] or as it takes it.
        rng: chooses rows, where there are many; on the device of x.

    Returns:
        None for a layer that has no such columns: a transposed convolution.
    """
    if isinstance(layer, nn.Linear):
        rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
        return some_rows(rows, rng).unsqueeze(0)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return None
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # Unfolding takes the longest: of large maps a few have places enough to choose from.
    x = x[: max(1, PLACES_TO_CHOOSE_FROM // x[0, 0].numel())]
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = [layer.kernel_size, layer.dilation, layer.stride]
    if isinstance(layer, nn.Conv1d):
        x, sizes = x.unsqueeze(2), [(1, *size) for size in sizes]
    (height, width), dilation, stride = sizes
    folded: Tensor = F.unfold(x, (height, width), dilation, 0, stride)  # [N, I * K, places]
    most = max(1, MOST_ROWS // len(folded))
    if folded.shape[2] > most:
        index = torch.randperm(folded.shape[2], generator=rng, device=x.device)[:most]
        folded = folded[:, :, index]
    rows = folded.transpose(1, 2).flatten(0, 1)  # [rows, I * K]
    return rows.view(len(rows), layer.groups, -1).transpose(0, 1)


def some_rows(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Return at most `MOST_ROWS` of rows [N, ...]."""
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[torch.randperm(len(rows), generator=rng, device=rows.device)[:MOST_ROWS]]


def covariance(columns: Tensor) -> Tensor:
    """Return the covariance [groups, I * K, I * K] of columns [groups, rows, I * K]."""
    centred = columns - columns.mean(1, keepdim=True)
    return centred.transpose(1, 2) @ centred / columns.shape[1]


@torch.no_grad()
def round_by_second_moments(layer: QuantizedLayer, moments: Tensor) -> Tensor:
    """Return a layer's weight on the grid of its scales, rounded with regard to the moments.

    Under asymmetric scales, which follow the smallest and largest weight of each output channel,
    these two keep the first and last integer, so that the scale stays what it is.

    Args:
        layer: with float weights.
        moments: symmetric [groups, I * K, I * K] of its input.

    Returns:
        As the weight.
    """
    weight, groups = layer.layer.weight, len(moments)
    scale, zero_point = (values.double().view(groups, -1, 1) for values in layer.qparams())
    steps = weight.double().reshape(groups, scale.shape[1], -1) / scale + zero_point
    low, high = layer.quant_range.quant_min, layer.quant_range.quant_max
    pinned = None if layer.symmetric else ends(steps, low, high)
    parts = []
    for part in blocks(steps.shape[2]):
        own = moments[:, part, part].double()
        settled = None if pinned is None else pinned[..., part]
        parts.append(rounded_in_order(steps[..., part], own, settled, low, high))
    integers = torch.cat(parts, 2)
    return ((integers - zero_point) * scale).reshape(weight.shape).to(weight.dtype)


def ends(steps: Tensor, low: int, high: int) -> Tensor:
    """Return the integers of the smallest and largest weight of each channel, NaN elsewhere.

    Also where all weights of a channel have one sign: the range then ends at zero.
    """
    pinned = torch.full_like(steps, torch.nan)
    for end, index in ((low, steps.argmin(2, True)), (high, steps.argmax(2, True))):
        is_end = (steps.gather(2, index) - end).abs() < 0.501
        settled = torch.full_like(steps[..., :1], end).masked_fill(~is_end, torch.nan)
        pinned.scatter_(2, index, settled)
    return pinned


def blocks(inputs: int) -> list[slice]:
    """Return the parts of a number of inputs that are rounded together."""
    return [slice(i, min(i + LARGEST_BLOCK, inputs)) for i in range(0, inputs, LARGEST_BLOCK)]


def rounded_in_order(
    steps: Tensor, moments: Tensor, pinned: Tensor | None, low: int, high: int
) -> Tensor:
    """Round one input after the other, those with the largest moments first.

    Args:
        steps: float64 [groups, O, I], weights in steps of their grid.
        moments: float64 [groups, I, I].
        pinned: float64 [groups, O, I], integers that are settled, NaN for all others; None for no
            settled ones.
        low: smallest integer.
        high: largest integer.

    Returns:
        Integers, float64 [groups, O, I].
    """
    variances = moments.diagonal(dim1=1, dim2=2)  # [groups, I]
    order = variances.argsort(1, descending=True)  # [groups, I]
    added = DAMPING * variances.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    damped = moments + torch.diag_embed(added.expand_as(variances))
    feedback = error_feedback(reordered(damped, order))
    places = order.unsqueeze(2).expand(-1, -1, steps.shape[1])

    def in_order(values: Tensor) -> Tensor:
        return values.transpose(1, 2).gather(1, places)  # [groups, I, O]

    settled = None if pinned is None else in_order(pinned)
    integers = rounded_with_feedback(in_order(steps), feedback, settled, low, high)
    return torch.empty_like(integers).scatter_(1, places, integers).transpose(1, 2)


def reordered(moments: Tensor, order: Tensor) -> Tensor:
    """Return moments [groups, I, I] with rows and columns in an order [groups, I]."""
    rows = order.unsqueeze(2).expand_as(moments)
    return moments.gather(1, rows).gather(2, rows.transpose(1, 2))


def error_feedback(moments: Tensor) -> Tensor:
    """Return what the error of an earlier input adds to each later weight, [groups, I, I].

    These are the columns of `U` in `moments = U D U^T`, `U` upper with ones on its diagonal, `D`
    diagonal. To add them to the weights before these are rounded is what GPTQ does by the Cholesky
    factor of the inverse moments (Chee et al., NeurIPS 2023, theorem 6), without an inverse.
    """
    factor: Tensor = torch.linalg.cholesky(moments.flip(1, 2)).flip(1, 2)
    return factor / factor.diagonal(dim1=1, dim2=2).unsqueeze(1)


def rounded_with_feedback(
    steps: Tensor, feedback: Tensor, pinned: Tensor | None, low: int, high: int
) -> Tensor:
    """Round the inputs in their order, [groups, I, O], each with what earlier errors add."""
    errors, integers = torch.empty_like(steps), torch.empty_like(steps)
    later = feedback.transpose(1, 2).contiguous()  # [groups, later inputs, earlier inputs]
    for start in range(0, steps.shape[1], COLUMNS):
        stop = min(start + COLUMNS, steps.shape[1])
        # Of all earlier blocks at once; within the block one by one.
        moved = steps[:, start:stop] + later[:, start:stop, :start] @ errors[:, :start]
        for i in range(start, stop):
            value = moved[:, i - start : i - start + 1]  # [groups, 1, O]
            value += later[:, i : i + 1, start:i] @ errors[:, start:i]
            chosen = value.round().clamp_(low, high)
            if pinned is not None:
                settled = pinned[:, i : i + 1]
                chosen = torch.where(settled.isnan(), chosen, settled)
            integers[:, i : i + 1] = chosen
            torch.sub(steps[:, i : i + 1], chosen, out=errors[:, i : i + 1])
    return integers
