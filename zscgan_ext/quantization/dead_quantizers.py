"""Quantizers that let nothing through: everything clipped, or everything rounded to zero."""

import torch
from torch import Tensor, nn

from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer


@torch.no_grad()
def dead_quantizers(student: QuantizedClassifier, images: Tensor) -> list[str]:
    """Return a line for each activation quantizer and each layer with dead channels.

    Args:
        student: calibrated.
        images: [N, C, H, W], on which activations are looked at.
    """
    lines: list[str] = []
    named = student.named_activation_quantizers()
    names: dict[nn.Module, str] = {quantizer: name for name, quantizer in named.items()}

    def look(quantizer: nn.Module, _: object, y: Tensor) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        fault = activation_fault(quantizer, y)
        if fault:
            lines.append(f"activation quantizer {names[quantizer]}: {fault}")

    handles = [q.register_forward_hook(look) for q in named.values()]
    try:
        student(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in student.named_layers().items():
        dead = int(dead_channels(layer).sum())
        if dead:
            count = layer.layer.weight.shape[0]
            lines.append(
                f"weight quantizer {name}: {dead} of {count} output channels "
                "are clipped or rounded to zero altogether"
            )
    return lines


def activation_fault(quantizer: ActivationQuantizer, y: Tensor) -> str:
    """Say what is wrong with what a quantizer gives, nothing for a sound one."""
    scale, low, high = quantizer.scale().item(), *ends(quantizer)
    if not 0 < scale < float("inf"):
        return f"its scale is {scale}"
    others = y.float()[y != 0]
    if not others.numel():
        return "it rounds every value to zero"
    tolerance = scale / 4
    at_an_end = ((others - low).abs() < tolerance) | ((others - high).abs() < tolerance)
    return f"it clips every value but zero, its scale is {scale:.1e}" if at_an_end.all() else ""


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
