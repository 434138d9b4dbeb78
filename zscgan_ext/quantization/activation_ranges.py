"""The range of one activation: minimum and maximum, and the scale of least error between them."""

import torch
from torch import Tensor

from zscgan_ext import distributed, ops
from zscgan_ext.quantization.quantizers import ActivationQuantizer

# Tried for a scale: these parts of the one that clips nothing.
SCALE_FRACTIONS = tuple(torch.linspace(1, 0.1, 31).tolist())
SEARCHED_VALUES = 1 << 20  # of a batch, about, that a search looks at
SQUARED = 2


@torch.no_grad()
def update_range(quantizer: ActivationQuantizer, x: Tensor, averaging_constant: float) -> None:
    """Average the range of `x`, of any shape, into that of a quantizer.

    The scale and zero point are those of the whole range.

    Args:
        quantizer: changed in place.
        x: any shape; of all processes.
        averaging_constant: weight of `x`; 1 forgets the range before it.
    """
    if averaging_constant == 1:
        quantizer.running_min.fill_(torch.inf)
        quantizer.running_max.fill_(-torch.inf)
    if distributed.world_size() > 1:
        x = distributed.all_reduce_min_max(x)
    scale = torch.empty_like(quantizer.zero_point)
    ops.update_min_max(
        x,
        quantizer.running_min,
        quantizer.running_max,
        scale,
        quantizer.zero_point,
        averaging_constant,
        quantizer.quant_range.quant_min,
        quantizer.quant_range.quant_max,
        symmetric=quantizer.quant_range.signed,
    )
    quantizer.log_scale.copy_(scale.log())


@torch.no_grad()
def search_scale(
    quantizer: ActivationQuantizer,
    x: Tensor,
    error_power: int = SQUARED,
    weights: Tensor | None = None,
) -> None:
    """Take that part of a quantizer's scale which makes the least error on some of `x`.

    A few large values stretch a range. With few bits it is better to clip them.

    Args:
        quantizer: whose scale is that of the whole range; changed in place.
        x: any shape.
        error_power: of which power of the errors the sum is to be the least.
        weights: of the errors, of the shape of x; None where all count alike.
    """
    x = x.reshape(1) if x.dim() == 0 else x
    searched = slice(max(1, SEARCHED_VALUES * len(x) // max(1, x.numel())))
    sample = x[searched]
    low, high = quantizer.quant_range.quant_min, quantizer.quant_range.quant_max
    whole, zero_point = quantizer.qparams()
    sums = []
    for fraction in SCALE_FRACTIONS:
        error = ops.fake_quantize(sample, whole * fraction, zero_point, low, high) - sample
        powers = error.float().abs().pow(error_power)
        sums.append(powers.sum() if weights is None else (weights[searched] * powers).sum())
    errors = distributed.all_reduce_mean(torch.stack(sums))
    best = torch.tensor(SCALE_FRACTIONS, device=errors.device)[errors.argmin()]
    quantizer.log_scale.add_(best.log())


def choose_range(quantizer: ActivationQuantizer, values: Tensor) -> None:
    """Give a quantizer the range with the least squared error on values of any shape."""
    update_range(quantizer, values, 1)
    search_scale(quantizer, values)


def take_narrower_range(quantizer: ActivationQuantizer, values: Tensor) -> None:
    """Give a quantizer the range that `choose_range` would, unless its own is as narrow."""
    own = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    choose_range(quantizer, values)
    if bool(own["log_scale"] <= quantizer.log_scale):
        quantizer.load_state_dict(own)
