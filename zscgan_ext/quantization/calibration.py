"""Ranges of activations, from a few batches of images, and from batch norm where there is one."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from zscgan_ext.quantization.batch_norm_ranges import follow_batch_norm
from zscgan_ext.quantization.biases import round_biases
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationMode

RANGES = ("narrower", "batch_norm", "images")
# Most values of a tensor are small, but the large ones decide: their errors have to weigh more.
POWER_BESIDE_BATCH_NORM = 5
SQUARED = 2


@torch.no_grad()
def calibrate(
    model: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    ranges: str = "images",
    classifier: nn.Module | None = None,
) -> None:
    """Set every activation's scale and zero point.

    `images`: the zero point comes from the mean range of some batches; the scale is that part of
    the range's with the least squared error on the last batch. Weights are quantized meanwhile,
    activations are not.

    `batch_norm`: so for what follows no batch norm; all others have the range that it tells.

    `narrower`: whichever of the two is narrower. Large values weigh more in the search than their
    squares, and where generated images have larger extremes than real ones would, batch norm
    bounds the range.

    Afterwards activations are quantized too, and biases are such as integer kernels add.

    Args:
        model: changed in place.
        batches: images [B, C, H, W] with labels, which are not looked at.
        count: batches to observe, 1 or more; the last is searched.
        ranges: as above.
        classifier: the float one that the model was converted from, whose batch norm is asked;
            needed for all but `images`.
    """
    settle_ranges(model, observe_ranges(model, batches, count), ranges, classifier)


@torch.no_grad()
def observe_ranges(
    model: QuantizedClassifier, batches: Iterator[tuple[Tensor, Tensor]], count: int
) -> Tensor:
    """Average the range of every activation over `count` batches; return the last one's images."""
    for quantizer in model.activation_quantizers:
        quantizer.reset()
    model.set_activation_mode(ActivationMode.OBSERVE)
    for images, _ in islice(batches, count):
        model(images)
    return images


@torch.no_grad()
def settle_ranges(
    model: QuantizedClassifier, images: Tensor, ranges: str, classifier: nn.Module | None
) -> None:
    """Choose scales within the ranges that were observed, as `calibrate` says, and quantize.

    Args:
        model: that has observed batches; changed in place.
        images: [N, C, H, W] of the last batch.
        ranges: as for `calibrate`.
        classifier: as for `calibrate`.
    """
    for quantizer in model.activation_quantizers:
        quantizer.error_power = POWER_BESIDE_BATCH_NORM if ranges == "narrower" else SQUARED
    model.set_activation_mode(ActivationMode.SEARCH)
    model(images)
    for quantizer in model.activation_quantizers:
        quantizer.choose_scale()
    if ranges != "images":
        assert classifier is not None
        follow_batch_norm(model, classifier, images, only_narrower=ranges == "narrower")
    model.set_activation_mode(ActivationMode.QUANTIZE)
    round_biases(model)
