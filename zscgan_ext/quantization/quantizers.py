"""Quantizers of weights and activations, and the layers that carry them."""

from enum import Enum
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext import ops, processes
from zscgan_ext.classifiers.graph import activate
from zscgan_ext.quantization.scheme import IntegerRange
from zscgan_ext.quantization.transposed_convolution import TransposedConvolution

WeightedLayer: TypeAlias = nn.Conv1d | nn.Conv2d | TransposedConvolution | nn.Linear

# Tried for a scale: these parts of the one that clips nothing.
SCALE_FRACTIONS = tuple(torch.linspace(1, 0.1, 31).tolist())
SMALLEST_FRACTION = 0.25  # of the scale of a weight that clips nothing, tried
SMALLEST_INVERTIBLE = 2.0**-126  # float32's smallest normal number; its inverse is finite
SEARCHED_VALUES = 1 << 20  # of a batch, about, that a search looks at


class ActivationMode(Enum):
    """What activation quantizers do with the tensors that pass them."""

    OFF = "off"
    OBSERVE = "observe"
    SEARCH = "search"
    QUANTIZE = "quantize"


def adds_bias_later(x: Tensor) -> bool:
    """Tell whether a bias is best added with the quantization of a convolution's result `x`.

    On a GPU torch adds it in another pass over the result, and sums its gradient in one more.
    oneDNN's convolutions do both on the way: a step took as long either way, as measured.
    """
    return x.is_cuda


class ActivationQuantizer(nn.Module):
    """One scale and zero point for a whole tensor, observed; the scale is learned afterwards.

    The scale is stored as its logarithm, so that it stays positive whatever an optimizer does.
    """

    running_min: Tensor
    running_max: Tensor
    zero_point: Tensor

    def __init__(self, integers: IntegerRange) -> None:
        super().__init__()
        self.integers = integers
        self.mode = ActivationMode.OFF
        self.observed_batches = 0
        self.error_power = 2
        self.scale_errors = torch.zeros(())  # [len(SCALE_FRACTIONS)] while searching
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.register_buffer("zero_point", torch.zeros(1))
        self.register_buffer("running_min", torch.full((1,), torch.inf))
        self.register_buffer("running_max", torch.full((1,), -torch.inf))

    def scale(self) -> Tensor:
        """Return the scale [1]."""
        return self.log_scale.exp()

    def integer_zero_point(self) -> Tensor:
        """Return the zero point [1] that quantization uses, rounded and within the integers."""
        return self.zero_point.round().clamp(self.integers.quant_min, self.integers.quant_max)

    def reset(self) -> None:
        """Forget what was observed."""
        self.observed_batches = 0
        self.error_power = 2
        self.running_min.fill_(torch.inf)
        self.running_max.fill_(-torch.inf)

    def observe(self, x: Tensor) -> None:
        """Average the range of `x` with those of the batches before it."""
        self.observed_batches += 1
        if processes.count() > 1:
            x = processes.extremes(x)
        scale = torch.empty_like(self.zero_point)
        ops.update_min_max(
            x,
            self.running_min,
            self.running_max,
            scale,
            self.zero_point,
            1 / self.observed_batches,
            self.integers.quant_min,
            self.integers.quant_max,
            symmetric=False,
        )
        with torch.no_grad():
            self.log_scale.copy_(scale.log())

    def search(self, x: Tensor) -> None:
        """Add the error, to the `error_power`, that each part of the scale makes on some of `x`."""
        x = x.reshape(1) if x.dim() == 0 else x
        sample = x[: max(1, SEARCHED_VALUES * len(x) // max(1, x.numel()))]
        low, high = self.integers.quant_min, self.integers.quant_max
        scales = [self.scale() * fraction for fraction in SCALE_FRACTIONS]
        sums = []
        for scale in scales:
            error = ops.fake_quantize(sample, scale, self.zero_point, low, high) - sample
            sums.append(error.float().abs().pow(self.error_power).sum())
        mean_errors = processes.averaged(torch.stack(sums))
        self.scale_errors = self.scale_errors.to(x.device) + mean_errors

    def choose_scale(self) -> None:
        """Take the scale of least error among those that were searched.

        A few large values stretch a range. With few bits it is better to clip them.
        """
        best = torch.tensor(SCALE_FRACTIONS, device=self.log_scale.device)[
            self.scale_errors.argmin()
        ]
        with torch.no_grad():
            self.log_scale.add_(best.log())
        self.scale_errors = torch.zeros(())

    def before_rounding(
        self, x: Tensor, activation: str = "none", bias: Tensor | None = None
    ) -> Tensor:
        """Return what is quantized of the arguments of `forward`."""
        if bias is not None and adds_bias_later(x):
            x = x + bias.to(x.dtype).view(-1, 1, 1)
        return activate(x, activation)

    def forward(self, x: Tensor, activation: str = "none", bias: Tensor | None = None) -> Tensor:
        """Observe, search, quantize or pass on a tensor.

        Args:
            x: any shape.
            activation: `none`, `relu` or `relu6`, applied first.
            bias: [C] for `x` [N, C, H, W], added before the activation if `adds_bias_later(x)`;
                otherwise `x` has it already.
        """
        if self.mode is ActivationMode.QUANTIZE:
            low, high = self.integers.quant_min, self.integers.quant_max
            values = x.numel() * processes.count()
            settings = (low, high, None, (values * high) ** -0.5, activation)
            bias = bias if adds_bias_later(x) else None
            return ops.lsq_fake_quantize(x, self.scale(), self.zero_point, *settings, bias)
        x = self.before_rounding(x, activation, bias)
        if self.mode is ActivationMode.OBSERVE:
            self.observe(x)
        elif self.mode is ActivationMode.SEARCH:
            self.search(x)
        return x


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weight is quantized per output channel.

    Args:
        layer: a linear layer or convolution whose weight has its output channels first; weight
            and bias stay its parameters.
        integers: integers of the weight.
        symmetric: learned symmetric scales; otherwise asymmetric minimum and maximum, taken anew
            from the weight at each step.
    """

    zero_point: Tensor

    def __init__(self, layer: WeightedLayer, integers: IntegerRange, symmetric: bool) -> None:
        super().__init__()
        self.layer = layer
        self.integers = integers
        self.symmetric = symmetric
        channels = layer.weight.shape[0]
        self.register_buffer("zero_point", torch.zeros(channels, device=layer.weight.device))
        self.quantized_weight: Tensor | None = None
        if symmetric:
            self.log_scale = nn.Parameter(best_symmetric_scale(layer.weight, integers).log())

    def weight_scale(self) -> Tensor:
        """Return the scale of each output channel [O]; asymmetric zero points are set with it."""
        if self.symmetric:
            return self.log_scale.exp()
        scale = torch.empty_like(self.zero_point)
        low, high = self.integers.quant_min, self.integers.quant_max
        running_min = torch.full_like(scale, torch.inf)
        ops.update_min_max(
            *(self.layer.weight, running_min, -running_min, scale, self.zero_point),
            *(1.0, low, high, False, 0),
        )
        return scale

    def quantize_by_range(self) -> Tensor:
        """Quantize the weight between the minimum and maximum of each output channel."""
        low, high = self.integers.quant_min, self.integers.quant_max
        return ops.fake_quantize(
            self.layer.weight, self.weight_scale(), self.zero_point, low, high, 0
        )

    def forward(self, x: Tensor, bias_follows: bool = False) -> Tensor:
        """Apply the layer with its quantized weight.

        Without its bias if that follows, added by the quantizer of the result.
        """
        assert self.quantized_weight is not None
        bias = None if bias_follows and adds_bias_later(x) else self.layer.bias
        weight = self.quantized_weight
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        result: Tensor = self.layer._conv_forward(x, weight, bias)
        return result


def best_symmetric_scale(weight: Tensor, integers: IntegerRange, candidates: int = 32) -> Tensor:
    """Search, for each output channel, the scale with the least squared quantization error.

    Args:
        weight: [O, ...].
        integers: symmetric integers.
        candidates: scales tried, from the one that clips nothing down to a quarter of it.

    Returns:
        Scales [O], float32, positive, with a finite inverse. A channel of zeros has the median of
        all others, so that it stays zero while its weights move little; where all are zeros, that
        of the weights a layer starts from.
    """
    rows = weight.detach().flatten(1).float()  # [O, elements]
    smallest = SMALLEST_INVERTIBLE / SMALLEST_FRACTION
    largest = (rows.abs().amax(1) / integers.quant_max).clamp(min=smallest)
    is_zero = (rows == 0).all(1)
    if bool(is_zero.all()):
        largest = torch.full_like(largest, rows.shape[1] ** -0.5 / integers.quant_max)
    elif bool(is_zero.any()):
        largest = torch.where(is_zero, largest[~is_zero].median(), largest)
    best, least = largest, torch.full_like(largest, torch.inf)
    zero_point = torch.zeros_like(largest)
    for fraction in torch.linspace(1, SMALLEST_FRACTION, candidates).tolist():
        scale = largest * fraction
        rounded = ops.fake_quantize(
            rows, scale, zero_point, integers.quant_min, integers.quant_max, 0
        )
        error = (rounded - rows).square().sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
