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
    """Set every activation's scale and zero point from the mean range of some batches.

    Weights are quantized meanwhile, activations are not. Afterwards both are, and biases are
    such as integer kernels add.

    Args:
        model: changed in place.
        batches: images [B, C, H, W] with labels, which are not looked at.
        count: batches to observe.
    """
    for quantizer in model.activation_quantizers:
        quantizer.reset()
    model.set_activation_mode(ActivationMode.OBSERVE)
    for images, _ in islice(batches, count):
        model(images)
    model.set_activation_mode(ActivationMode.QUANTIZE)
    round_biases(model)
