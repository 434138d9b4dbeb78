"""Ranges of activations by how much the classifier's answer changes, to second order.

Where a few channels of a tensor have large values that hardly anything depends on, a range with the
least squared error is far too wide for all others. So the error of each channel counts by the mean
square of the gradient of the log-likelihood, which is the diagonal of the Fisher information: what
an error costs in KL divergence of the answers, to second order (as BRECQ, Li et al., ICLR 2021,
equation 10, weighs the errors of its blocks). Labels are drawn from the classifier's own answers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zscgan_ext import ops
from zscgan_ext.quantization.activation_ranges import SCALE_FRACTIONS, update_range
from zscgan_ext.quantization.batch_norm_samples import BatchNormSampler
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer

RANGE_SAMPLES = 2**16  # of an activation, at most, that its range is chosen by


class ActivationRecorder(BatchNormSampler):
    """Keeps what each quantizer would quantize, with its gradient after a backward pass."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module, or keep the input of a quantizer."""
        module = self.fetch_attr(target)
        if not isinstance(module, ActivationQuantizer):
            return module(*args, **kwargs)
        (x,) = args
        x.retain_grad()
        self.recorded.append((module, x))
        return x

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        self.recorded: list[tuple[ActivationQuantizer, Tensor]] = []
        return super().run(*args, **kwargs)


def set_ranges_by_output_error(
    student: QuantizedClassifier, recorder: ActivationRecorder, images: Tensor
) -> None:
    """Give every quantizer of a student the range with the least expected change of the answer.

    Args:
        student: whose quantizers are off and whose weights are not yet rounded.
        recorder: of the same student.
        images: [N, C, H, W], drawn.
    """
    with fixed_parameters(student), torch.enable_grad():
        logits = recorder.run(images.clone().requires_grad_())
        probabilities = logits.detach().float().softmax(1)
        labels = torch.multinomial(probabilities, 1, generator=recorder.rng).squeeze(1)
        F.cross_entropy(logits.float(), labels, reduction="sum").backward()
    for quantizer, x in recorder.recorded:
        assert x.grad is not None
        choose_range_by_importance(quantizer, x.detach(), importance(x.grad), recorder.rng)
    recorder.recorded.clear()


@contextmanager
def fixed_parameters(student: QuantizedClassifier) -> Iterator[None]:
    """Let no parameter take a gradient for a while."""
    learned = [each for each in student.parameters() if each.requires_grad]
    student.requires_grad_(False)
    try:
        yield
    finally:
        for each in learned:
            each.requires_grad_(True)


def importance(gradient: Tensor) -> Tensor:
    """Return the mean square of a gradient [N, C, ...] over each channel, in the same shape."""
    dims = [dim for dim in range(gradient.dim()) if dim != 1 or gradient.dim() < 2]
    return gradient.square().mean(dims, keepdim=True).expand_as(gradient)


@torch.no_grad()
def choose_range_by_importance(
    quantizer: ActivationQuantizer, x: Tensor, weights: Tensor, rng: torch.Generator
) -> None:
    """Give a quantizer the part of the range of x which has the least weighted squared error.

    Args:
        quantizer: changed in place.
        x: of any shape.
        weights: of the same shape; where all are zero, all errors count alike.
        rng: chooses values, where there are many; on the device of x.
    """
    x, weights = x.flatten(), weights.flatten()
    if len(x) > RANGE_SAMPLES:
        index = torch.randint(len(x), (RANGE_SAMPLES,), generator=rng, device=x.device)
        x, weights = x[index], weights[index]
    if not bool(weights.any()):
        weights = torch.ones_like(weights)
    update_range(quantizer, x, 1)
    low, high = quantizer.quant_range.quant_min, quantizer.quant_range.quant_max
    whole, zero_point = quantizer.qparams()
    sums = []
    for fraction in SCALE_FRACTIONS:
        error = ops.fake_quantize(x, whole * fraction, zero_point, low, high) - x
        sums.append((weights * error.square()).sum())
    best = SCALE_FRACTIONS[int(torch.stack(sums).argmin())]
    quantizer.log_scale.add_(math.log(best))
