"""Ranges of activations, from a few batches of images."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from zscgan_ext.quantization.biases import round_biases
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationMode


@torch.no_grad()
def calibrate(
    model: QuantizedClassifier, batches: Iterator[tuple[Tensor, Tensor]], count: int
) -> None:
    """Set every activation's scale and zero point from some batches.

    The zero point comes from the mean range; the scale is that part of the range's with the least
    squared error on the last batch. Weights are quantized meanwhile, activations are not.
    Afterwards both are, and biases are such as integer kernels add.

    Args:
        model: changed in place.
        batches: images [B, C, H, W] with labels, which are not looked at.
        count: batches to observe, 1 or more; the last is searched.
    """
    for quantizer in model.activation_quantizers:
        quantizer.reset()
    model.set_activation_mode(ActivationMode.OBSERVE)
    for images, _ in islice(batches, count):
        model(images)
    model.set_activation_mode(ActivationMode.SEARCH)
    model(images)
    for quantizer in model.activation_quantizers:
        quantizer.choose_scale()
    model.set_activation_mode(ActivationMode.QUANTIZE)
    round_biases(model)
