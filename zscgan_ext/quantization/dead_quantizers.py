"""Quantizers that let nothing through: everything clipped, or everything rounded to zero."""

import torch
from torch import Tensor

from zscgan_ext.errors import some_of
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer

ROUNDS = "it rounds every value to zero"
CLIPS = "it clips every value but zero"
SCALE = "its scale is no positive number"
# What is said of several.
FAULTS = {
    ROUNDS: "round every value to zero",
    CLIPS: "clip every value but zero",
    SCALE: "have scales that are no positive numbers",
}


@torch.no_grad()
def dead_quantizers(student: QuantizedClassifier, images: Tensor) -> list[str]:
    """Return a line for each kind of fault that activation quantizers or weights have.

    Args:
        student: calibrated.
        images: [N, C, H, W], on which activations are looked at.
    """
    return [*dead_activations(student, images), *dead_weights(student)]


def dead_activations(student: QuantizedClassifier, images: Tensor) -> list[str]:
    """Return a line for each kind of fault of activation quantizers, on these images."""
    named = student.named_activation_quantizers()
    names = {quantizer: name for name, quantizer in named.items()}
    faulty: dict[str, dict[str, float]] = {}  # by the fault, scales by the names of quantizers

    def inspect(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        y: Tensor = quantizer(x)
        fault = activation_fault(quantizer, x, y)
        if fault:
            scale = quantizer.qparams().scale.item()
            faulty.setdefault(fault, {})[names[quantizer]] = scale
        return y

    student.forward_with(inspect, images)
    return [activation_line(fault, scales) for fault, scales in faulty.items()]


def activation_line(fault: str, scales: dict[str, float]) -> str:
    """Return the line that names the activation quantizers with a fault."""
    if len(scales) > 1:
        named = [f"{name} (its scale is {scale:.1e})" for name, scale in scales.items()]
        return f"{len(scales)} activation quantizers {FAULTS[fault]}: {some_of(named)}"
    ((name, scale),) = scales.items()
    reason = {SCALE: f"its scale is {scale}", CLIPS: f"{CLIPS}, its scale is {scale:.1e}"}
    return f"activation quantizer {name}: {reason.get(fault, fault)}"


def dead_weights(student: QuantizedClassifier) -> list[str]:
    """Return a line that counts the dead output channels of quantized layers, if there are any."""
    found: dict[str, tuple[int, int]] = {}
    for name, layer in student.named_layers().items():
        dead = int(dead_channels(layer).sum())
        if dead:
            found[name] = (dead, layer.layer.weight.shape[0])
    fault = "are clipped or rounded to zero altogether"
    if len(found) == 1:
        ((name, (dead, count)),) = found.items()
        return [f"weight quantizer {name}: {dead} of {count} output channels {fault}"]
    if not found:
        return []
    places = some_of([f"{name} ({dead} of {count})" for name, (dead, count) in found.items()])
    total = sum(dead for dead, _ in found.values())
    return [f"{len(found)} weight quantizers: {total} output channels {fault}: {places}"]


def activation_fault(quantizer: ActivationQuantizer, x: Tensor, y: Tensor) -> str:
    """Return the fault of a quantizer that maps `x` to `y`, an empty text if it has none."""
    scale, zero_point = (value.item() for value in quantizer.qparams())
    quant_range = quantizer.quant_range
    low = (quant_range.quant_min - zero_point) * scale
    high = (quant_range.quant_max - zero_point) * scale
    if not 0 < scale < float("inf"):
        return SCALE
    if not bool((x != 0).any()):
        return ""  # a branch that gives zeros
    others = y.float()[y != 0]
    if not others.numel():
        return ROUNDS
    tolerance = scale / 4
    clipped = ((others - low).abs() < tolerance) | ((others - high).abs() < tolerance)
    return CLIPS if clipped.all() else ""


def dead_channels(layer: QuantizedLayer) -> Tensor:
    """Return bool [O]: output channels whose weight is wholly clipped or rounded to zero."""
    weight = layer.layer.weight.detach().flatten(1).float()  # [O, elements]
    scale, zero_point = (values[:, None] for values in layer.qparams())
    scale = scale.float()
    integers = weight / scale + zero_point
    low, high = layer.quant_range.quant_min - 0.5, layer.quant_range.quant_max + 0.5
    is_zero = weight == 0
    clipped = (is_zero | (integers < low) | (integers > high)).all(1)
    rounded_away = (weight.abs() < scale / 2).all(1)
    return (clipped | rounded_away) & ~is_zero.all(1)
