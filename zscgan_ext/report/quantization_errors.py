"""What quantization does to every weight and activation of a student: range, clipping, SQNR."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.ops.layout import spread
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer


@dataclass(frozen=True)
class MeasuredTensor:
    """One tensor, before and after its quantizer.

    `sqnr` is the ratio of the tensor's power to the power of its error, in decibels.
    """

    name: str
    kind: str  # weight or activation
    bits: int
    minimum: float
    maximum: float
    clipped: float  # percent of the values that no integer is near
    sqnr: float


def signal_to_noise(x: Tensor, quantized: Tensor) -> float:
    """Return 10 log10(sum x^2 / sum (x - quantized)^2) in decibels; infinite without an error."""
    # Float64 sums without float64 copies of what may be large.
    signal, noise = (
        float(torch.linalg.vector_norm(values, dtype=torch.float64))
        for values in (x, x - quantized)
    )
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal / noise) if signal > 0 else -math.inf


def clipped_percent(x: Tensor, quantized: Tensor, scale: Tensor) -> float:
    """Return the percentage of values that are further from their integer than rounding moves.

    Args:
        x: any shape.
        quantized: of the same shape.
        scale: one, or one for each index of the first dimension.
    """
    half = spread(scale, x, 0) / 2
    return 100 * int(((x - quantized).abs() > 1.001 * half).sum()) / x.numel()


@torch.no_grad()
def weight_errors(student: QuantizedClassifier) -> list[MeasuredTensor]:
    """Measure the weight of every quantized layer, in the order of the modules."""
    student.quantize_weights()
    errors = []
    for name, layer in student.named_layers().items():
        assert layer.quantized_weight is not None
        tensors = layer.layer.weight, layer.quantized_weight, layer.weight_scale()
        errors.append(measured(name, "weight", layer.integers.bits, *tensors))
    student.release_weights()
    return errors


@torch.no_grad()
def activation_errors(student: QuantizedClassifier, images: Tensor) -> list[MeasuredTensor]:
    """Measure every quantized activation, in the order of the forward pass.

    Args:
        student: its activation quantizers on.
        images: normalized [N, C, H, W].
    """
    errors: list[MeasuredTensor] = []

    def watch(name: str, quantizer: ActivationQuantizer) -> Any:
        def measure(_: nn.Module, inputs: tuple[Any, ...], quantized: Tensor) -> None:
            scale, bits = quantizer.scale(), quantizer.integers.bits
            errors.append(measured(name, "activation", bits, inputs[0], quantized, scale))

        return quantizer.register_forward_hook(measure)

    hooks = [
        watch(name, quantizer) for name, quantizer in student.named_activation_quantizers().items()
    ]
    student.quantize_weights()
    try:
        # This graph, unlike the fused one, shows each quantizer the very tensor it quantizes.
        student.graph(images)
    finally:
        for hook in hooks:
            hook.remove()
        student.release_weights()
    return errors


def measured(
    name: str, kind: str, bits: int, x: Tensor, quantized: Tensor, scale: Tensor
) -> MeasuredTensor:
    """Compare a tensor with its quantized values."""
    return MeasuredTensor(
        name,
        kind,
        bits,
        float(x.min()),
        float(x.max()),
        clipped_percent(x, quantized, scale),
        signal_to_noise(x, quantized),
    )


def worst(errors: list[MeasuredTensor], count: int) -> list[MeasuredTensor]:
    """Return the tensors with the lowest SQNR, worst first."""
    return sorted(errors, key=lambda error: error.sqnr)[:count]
