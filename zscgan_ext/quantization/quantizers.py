"""Quantizers of activations, and layers with quantized weights."""

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext import distributed, ops
from zscgan_ext.classifiers.graph import activate
from zscgan_ext.quantization.scheme import QuantRange

SMALLEST_FRACTION = 0.25  # of the scale of a weight that clips nothing, tried
SMALLEST_INVERTIBLE = 2.0**-126  # float32's smallest normal number; its inverse is finite


class QParams(NamedTuple):
    """Scale and zero point: an integer `q` stands for `(q - zero_point) * scale`.

    One of each for a whole tensor, [1], or for each output channel of a weight, [O].
    """

    scale: Tensor
    zero_point: Tensor  # integers, as floating-point numbers


def adds_bias_later(x: Tensor) -> bool:
    """Return True if a bias is best added with the quantization of a convolution's result `x`.

    On a GPU torch adds it in another pass over the result, and sums its gradient in one more.
    oneDNN's convolutions do both on the way: a step took as long either way, as measured.
    """
    return x.is_cuda


class ActivationQuantizer(nn.Module):
    """One scale and zero point for a whole tensor, which passes as it is until `enabled`.

    Calibration chooses the range (`activation_ranges.py`); the scale is learned afterwards. It is
    stored as its logarithm, so that it stays positive whatever an optimizer does.
    """

    running_min: Tensor
    running_max: Tensor
    zero_point: Tensor

    def __init__(self, quant_range: QuantRange) -> None:
        super().__init__()
        self.quant_range = quant_range
        self.enabled = False
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.register_buffer("zero_point", torch.zeros(1))
        self.register_buffer("running_min", torch.full((1,), torch.inf))
        self.register_buffer("running_max", torch.full((1,), -torch.inf))

    def qparams(self) -> QParams:
        """Return scale and zero point, [1] each."""
        low, high = self.quant_range.quant_min, self.quant_range.quant_max
        return QParams(self.log_scale.exp(), self.zero_point.round().clamp(low, high))

    def before_rounding(
        self, x: Tensor, activation: str = "none", bias: Tensor | None = None
    ) -> Tensor:
        """Return what is quantized of the arguments of `forward`."""
        if bias is not None and adds_bias_later(x):
            x = x + bias.to(x.dtype).view(-1, 1, 1)
        return activate(x, activation)

    def forward(self, x: Tensor, activation: str = "none", bias: Tensor | None = None) -> Tensor:
        """Quantize a tensor, or pass it on.

        Args:
            x: any shape.
            activation: `none`, `relu` or `relu6`, applied first.
            bias: [C] for `x` [N, C, H, W], added before the activation if `adds_bias_later(x)`;
                otherwise `x` has it already.
        """
        if not self.enabled:
            return self.before_rounding(x, activation, bias)
        low, high = self.quant_range.quant_min, self.quant_range.quant_max
        values = x.numel() * distributed.world_size()
        settings = (low, high, None, (values * high) ** -0.5, activation)
        bias = bias if adds_bias_later(x) else None
        scale = self.log_scale.exp()
        return ops.lsq_fake_quantize(x, scale, self.zero_point, *settings, bias)


# ---- weights ------------------------------------------------------------------------------------


class TransposedConvolution(nn.Module):
    """A 2D transposed convolution whose weight has its output channels first, as quantizers do.

    Torch keeps [I, O / groups, kH, kW]; here it is [O, I / groups, kH, kW].

    Args:
        layer: whose bias and values are taken.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.stride, self.padding = layer.stride, tuple(int(size) for size in layer.padding)
        self.output_padding, self.dilation = layer.output_padding, layer.dilation
        self.groups, self.kernel_size = layer.groups, layer.kernel_size
        self.weight = nn.Parameter(self.swapped(layer.weight.detach()))
        self.bias = layer.bias

    def swapped(self, weight: Tensor) -> Tensor:
        """Swap input and output channels within each group; done twice, nothing changes."""
        groups, rest = self.groups, weight.shape[2:]
        grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *rest)
        return grouped.transpose(1, 2).flatten(0, 1)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map [N, I, H, W] to [N, O, H', W'] with a weight [O, I / groups, kH, kW]."""
        settings = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        result: Tensor = F.conv_transpose2d(x, self.swapped(weight), bias, *settings)
        return result


# Layers that conversion wraps, and what it wraps.
QUANTIZED_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
WeightedLayer: TypeAlias = nn.Conv1d | nn.Conv2d | TransposedConvolution | nn.Linear


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weight is quantized per output channel.

    It computes with its quantized weight within `QuantizedClassifier.quantized_weights()`, and
    with the weight as it is elsewhere.

    Args:
        layer: a linear layer or convolution whose weight has its output channels first; weight
            and bias stay its parameters.
        quant_range: integers of the weight.
        symmetric: learned symmetric scales; otherwise asymmetric minimum and maximum, taken anew
            from the weight at each step.
    """

    zero_point: Tensor

    def __init__(self, layer: WeightedLayer, quant_range: QuantRange, symmetric: bool) -> None:
        super().__init__()
        self.layer = layer
        self.quant_range = quant_range
        self.symmetric = symmetric
        channels = layer.weight.shape[0]
        self.register_buffer("zero_point", torch.zeros(channels, device=layer.weight.device))
        self.quantized_weight: Tensor | None = None
        if symmetric:
            self.log_scale = nn.Parameter(best_symmetric_scale(layer.weight, quant_range).log())

    def qparams(self) -> QParams:
        """Return scale and zero point of each output channel, [O] each."""
        if self.symmetric:
            return QParams(self.log_scale.exp(), self.zero_point)
        return self.write_min_max_qparams(torch.empty_like(self.zero_point))

    def write_min_max_qparams(self, zero_point: Tensor) -> QParams:
        """Return the scales [O] of the weight's minima and maxima; write their zero points."""
        scale = torch.empty_like(zero_point)
        low, high = self.quant_range.quant_min, self.quant_range.quant_max
        running_min = torch.full_like(scale, torch.inf)
        weight = self.layer.weight
        ops.update_min_max(
            weight, running_min, -running_min, scale, zero_point, 1.0, low, high, False, axis=0
        )
        return QParams(scale, zero_point)

    def quantize_by_min_max(self) -> Tensor:
        """Quantize the weight between the minimum and maximum of each output channel.

        The zero points are kept: they are saved with the layer.
        """
        scale, zero_point = self.write_min_max_qparams(self.zero_point)
        low, high = self.quant_range.quant_min, self.quant_range.quant_max
        return ops.fake_quantize(self.layer.weight, scale, zero_point, low, high, 0)

    def forward(self, x: Tensor, defer_bias: bool = False) -> Tensor:
        """Apply the layer; without its bias if the quantizer of the result adds that."""
        bias = None if defer_bias and adds_bias_later(x) else self.layer.bias
        weight = self.layer.weight if self.quantized_weight is None else self.quantized_weight
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        if is_slow_in_bfloat16(self.layer, x):
            with torch.autocast("cpu", enabled=False):
                wide = self.layer._conv_forward(x.float(), weight, bias)
            return wide.to(x.dtype)
        result: Tensor = self.layer._conv_forward(x, weight, bias)
        return result


def is_slow_in_bfloat16(layer: nn.Module, x: Tensor) -> bool:
    """Return True if oneDNN's gradient of a layer in bfloat16 is slower than in float32.

    It is, by two to ten times, where each channel has a kernel of its own and strides exceed 1.
    """
    return (
        x.is_cpu
        and x.dtype == torch.bfloat16
        and isinstance(layer, nn.Conv2d)
        and is_depthwise(layer)
        and max(layer.stride) > 1
    )


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Return True if each channel of several has a kernel of its own."""
    return 1 < layer.groups == layer.in_channels


def best_symmetric_scale(weight: Tensor, quant_range: QuantRange, candidates: int = 32) -> Tensor:
    """Search, for each output channel, the scale with the least squared quantization error.

    Args:
        weight: [O, ...].
        quant_range: symmetric integers.
        candidates: scales tried, from the one that clips nothing down to a quarter of it.

    Returns:
        Scales [O], float32, positive, with a finite inverse. A channel of zeros has the median of
        all others, so that it stays zero while its weights move little; where all are zeros, that
        of the weights a layer starts from.
    """
    low, high = quant_range.quant_min, quant_range.quant_max
    rows = weight.detach().flatten(1).float()  # [O, elements]
    smallest = SMALLEST_INVERTIBLE / SMALLEST_FRACTION
    largest = (rows.abs().amax(1) / high).clamp(min=smallest)
    is_zero = (rows == 0).all(1)
    if bool(is_zero.all()):
        largest = torch.full_like(largest, rows.shape[1] ** -0.5 / high)
    elif bool(is_zero.any()):
        largest = torch.where(is_zero, largest[~is_zero].median(), largest)
    best, least = largest, torch.full_like(largest, torch.inf)
    zero_point = torch.zeros_like(largest)
    for fraction in torch.linspace(1, SMALLEST_FRACTION, candidates).tolist():
        scale = largest * fraction
        error = (ops.fake_quantize(rows, scale, zero_point, low, high, 0) - rows).square().sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
