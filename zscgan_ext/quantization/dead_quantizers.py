"""Quantizers that let nothing through: everything clipped, or everything rounded to zero."""

from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.errors import some_of
from zscgan_ext.quantization.conversion import QuantizedClassifier
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
    names: dict[nn.Module, str] = {quantizer: name for name, quantizer in named.items()}
    faulty: dict[str, dict[str, float]] = {}  # by the fault, scales by the names of quantizers

    def look(quantizer: nn.Module, given: tuple[Any, ...], options: Any, y: Tensor) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        fault = activation_fault(quantizer, quantizer.before_rounding(*given, **options), y)
        if fault:
            faulty.setdefault(fault, {})[names[quantizer]] = quantizer.scale().item()

    handles = [q.register_forward_hook(look, with_kwargs=True) for q in named.values()]
    try:
        student(images)
    finally:
        for handle in handles:
            handle.remove()
    return [activation_line(fault, scales) for fault, scales in faulty.items()]


def activation_line(fault: str, scales: dict[str, float]) -> str:
    """Tell which activation quantizers have a fault."""
    told = {name: f"{name} (its scale is {scale:.1e})" for name, scale in scales.items()}
    if len(scales) > 1:
        return f"{len(scales)} activation quantizers {FAULTS[fault]}: {some_of([*told.values()])}"
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
    """Say what a quantizer does wrong with what it is given, nothing for a sound one.

    Args:
        quantizer: of the activation.
        x: what it rounds.
        y: what it gives.
    """
    scale, low, high = quantizer.scale().item(), *ends(quantizer)
    if not 0 < scale < float("inf"):
        return SCALE
    if not bool((x != 0).any()):
        return ""  # a branch that gives zeros
    others = y.float()[y != 0]
    if not others.numel():
        return ROUNDS
    tolerance = scale / 4
    at_an_end = ((others - low).abs() < tolerance) | ((others - high).abs() < tolerance)
    return CLIPS if at_an_end.all() else ""


def ends(quantizer: ActivationQuantizer) -> tuple[float, float]:
    """Return the smallest and the largest number on a quantizer's grid."""
    scale, zero_point = quantizer.scale().item(), quantizer.integer_zero_point().item()
    integers = quantizer.integers
    return (integers.quant_min - zero_point) * scale, (integers.quant_max - zero_point) * scale


def dead_channels(layer: QuantizedLayer) -> Tensor:
    """Tell, for each output channel [O], whether its quantized weight says nothing of its own."""
    weight = layer.layer.weight.detach().flatten(1).float()  # [O, elements]
    scale = layer.weight_scale().float()[:, None]
    integers = weight / scale + layer.zero_point[:, None]
    low, high = layer.integers.quant_min - 0.5, layer.integers.quant_max + 0.5
    is_zero = weight == 0
    clipped = (is_zero | (integers < low) | (integers > high)).all(1)
    rounded_away = (weight.abs() < scale / 2).all(1)
    return (clipped | rounded_away) & ~is_zero.all(1)
