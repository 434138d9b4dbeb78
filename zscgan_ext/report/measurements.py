"""What the page measures: quantization errors, batch-norm statistics, changed predictions."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext import ops
from zscgan_ext.classifiers.batch_norm import stored, stores_statistics
from zscgan_ext.ops.layout import broadcast_per_channel
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
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
    half = broadcast_per_channel(scale, x, 0) / 2
    return 100 * int(((x - quantized).abs() > 1.001 * half).sum()) / x.numel()


@torch.no_grad()
def weight_errors(student: QuantizedClassifier) -> list[MeasuredTensor]:
    """Measure the weight of every quantized layer, in the order of the modules."""
    errors = []
    named = student.named_layers().items()
    for (name, layer), quantized in zip(named, student.quantize_weights(), strict=True):
        tensors = layer.layer.weight, quantized, layer.qparams().scale
        errors.append(measured(name, "weight", layer.quant_range.bits, *tensors))
    return errors


@torch.no_grad()
def activation_errors(student: QuantizedClassifier, images: Tensor) -> list[MeasuredTensor]:
    """Measure every quantized activation, in the order of the forward pass.

    Args:
        student: its activation quantizers on.
        images: normalized [N, C, H, W].
    """
    errors: list[MeasuredTensor] = []
    names = {module: name for name, module in student.named_activation_quantizers().items()}

    def measure(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        quantized: Tensor = quantizer(x)
        scale, bits = quantizer.qparams().scale, quantizer.quant_range.bits
        errors.append(measured(names[quantizer], "activation", bits, x, quantized, scale))
        return quantized

    student.forward_with(measure, images)
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


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of one batch-norm layer's input, [C] each."""

    layer: str
    mean: Tensor
    variance: Tensor
    stored_mean: Tensor
    stored_variance: Tensor
    eps: float

    def distance(self, kind: str) -> float:
        """Return one of `ops.DISTANCES` between the statistics and the stored ones."""
        return float(
            ops.batch_norm_distance(
                [self.mean],
                [self.variance],
                [self.stored_mean],
                [self.stored_variance],
                [self.eps],
                kind,
            )
        )


@torch.no_grad()
def layer_statistics(model: nn.Module, images: Tensor) -> list[LayerStatistics]:
    """Measure the input of every batch-norm layer, in the order of the forward pass.

    Args:
        model: in evaluation mode.
        images: normalized [N, C, H, W].
    """
    measured: list[LayerStatistics] = []

    def watch(name: str, layer: _BatchNorm) -> Any:
        def measure(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            mean, variance = ops.batch_norm_statistics(inputs[0], stored(layer.running_mean))
            stored_values = stored(layer.running_mean), stored(layer.running_var)
            measured.append(LayerStatistics(name, mean, variance, *stored_values, layer.eps))

        return layer.register_forward_pre_hook(measure)

    hooks = [
        watch(name, module) for name, module in model.named_modules() if stores_statistics(module)
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return measured


@dataclass(frozen=True)
class Change:
    """Images that the float classifier puts in one class and the quantized one in another."""

    float_class: int
    quantized_class: int
    images: int


def confusion(float_classes: Tensor, quantized_classes: Tensor, num_classes: int) -> Tensor:
    """Count images by the class of the float classifier and of the quantized one.

    Args:
        float_classes: int64 [N].
        quantized_classes: int64 [N].
        num_classes: of both.

    Returns:
        int64 [num_classes, num_classes], the rows those of the float classifier.
    """
    index = float_classes * num_classes + quantized_classes
    return torch.bincount(index, minlength=num_classes**2).view(num_classes, num_classes)


def most_frequent_changes(
    float_classes: Tensor, quantized_classes: Tensor, count: int
) -> list[Change]:
    """Return the pairs of different classes that occur most often, most frequent first.

    Args:
        float_classes: int64 [N].
        quantized_classes: int64 [N].
        count: pairs at most.
    """
    changed = float_classes != quantized_classes
    # Of pairs that occur, not of all that there may be: these are as many as classes, squared.
    pairs = torch.stack([float_classes[changed], quantized_classes[changed]])
    found, images = pairs.unique(dim=1, return_counts=True)
    order = images.argsort(descending=True, stable=True)[:count].tolist()
    return [
        Change(int(found[0, index]), int(found[1, index]), int(images[index])) for index in order
    ]
