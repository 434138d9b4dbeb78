"""Ranges of activations, from a few batches of images, or from batch norm where there is one."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from zscgan_ext.quantization.batch_norm_ranges import follow_batch_norm
from zscgan_ext.quantization.biases import round_biases
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationMode


@torch.no_grad()
def calibrate(
    model: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    classifier: nn.Module | None = None,
) -> None:
    """Set every activation's scale and zero point from some batches.

    The zero point comes from the mean range; the scale is that part of the range's with the least
    squared error on the last batch. Weights are quantized meanwhile, activations are not.
    Afterwards both are, and biases are such as integer kernels add.

    Images of which most activations are small give ranges that clip the large ones, and generated
    images can have larger extremes than real ones. Batch norm knows of neither: with a classifier
    given, it tells the range of every activation that follows one.

    Args:
        model: changed in place.
        batches: images [B, C, H, W] with labels, which are not looked at.
        count: batches to observe, 1 or more; the last is searched.
        classifier: the float one that the model was converted from; None for images alone.
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
    if classifier is not None:
        follow_batch_norm(model, classifier, images)
    model.set_activation_mode(ActivationMode.QUANTIZE)
    round_biases(model)
