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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zscgan_ext.classifiers.heads import SINGLE_LABEL, Head
from zscgan_ext.quantization.activation_ranges import search_scale, update_range
from zscgan_ext.quantization.batch_norm_samples import BatchNormSampler
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer

# Of which the result has channels where the argument has them.
AVERAGES: tuple[Any, ...] = (F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean)
# Samples know the extremes of real activations only roughly. With eight bits a range that is too
# wide costs little, and one that is too narrow much; with fewer bits they cost about the same.
BITS_WITH_MARGIN = 8
MARGIN = 1.3
RANGE_SAMPLES = 2**16  # of an activation, at most, that its range is chosen by


class RecordedActivation(NamedTuple):
    """What a quantizer would quantize."""

    quantizer: ActivationQuantizer
    result: Tensor  # has its gradient after a backward pass
    values: Tensor  # that the range is chosen on


class ActivationRecorder(BatchNormSampler):
    """Keeps what each quantizer would quantize.

    The range of an average over places is that of what is averaged: how much places have in common
    is not in the statistics of batch norm, and all of them can be alike.
    """

    recorded: list[RecordedActivation]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        self.recorded = []
        self.averaged: list[tuple[Tensor, Tensor]] = []  # results, and what they average
        return super().run(*args, **kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function, and remember what it averages."""
        result = super().call_function(target, args, kwargs)
        if target in AVERAGES and result.dim() > 1 and result.shape[1] == args[0].shape[1]:
            self.averaged.append((result, args[0].detach()))
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module, or keep the input of a quantizer."""
        module = self.fetch_attr(target)
        if not isinstance(module, ActivationQuantizer):
            return module(*args, **kwargs)
        (x,) = args
        x.retain_grad()
        values = next((of for result, of in self.averaged if result is x), x.detach())
        self.recorded.append(RecordedActivation(module, x, values))
        return x


def set_ranges_by_output_error(
    student: QuantizedClassifier,
    recorder: ActivationRecorder,
    images: Tensor,
    head: Head = SINGLE_LABEL,
) -> None:
    """Give every quantizer of a student the range with the least expected change of the answer.

    Args:
        student: whose quantizers are off and whose weights are not yet rounded.
        recorder: of the same student.
        images: [N, C, H, W], drawn.
        head: what the logits mean.
    """
    with fixed_parameters(student), torch.enable_grad():
        logits = recorder.run(images.clone().requires_grad_())
        labels = head.sampled_labels(logits.detach(), recorder.rng)
        head.label_loss(logits, labels, reduction="sum").backward()
    scales: list[Tensor] = []
    for quantizer, result, values in recorder.recorded:
        assert result.grad is not None
        weights, is_average = importance(result.grad), values.shape != result.shape
        # That of what is averaged is wide enough for an average.
        has_margin = not is_average and quantizer.quant_range.bits >= BITS_WITH_MARGIN
        margin = MARGIN if has_margin else 1.0
        choose_range_by_importance(quantizer, values, weights, recorder.rng, margin)
        if is_average and any(torch.equal(quantizer.log_scale, scale) for scale in scales):
            widen_by_a_step(quantizer)
        scales.append(quantizer.log_scale.detach().clone())
    recorder.recorded.clear()


@torch.no_grad()
def widen_by_a_step(quantizer: ActivationQuantizer) -> None:
    """Give the range of an average another scale than that of what is averaged.

    With the same, an average of four integers lies in the middle between two of them once in four
    times, where the last bits of a float decide, in each runtime otherwise.
    """
    steps = quantizer.quant_range.quant_max - quantizer.quant_range.quant_min
    quantizer.log_scale.add_(math.log1p(1 / steps))


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
    """Return the mean square of a gradient [N, C, ...] over each channel, [C]; [1] of one [N]."""
    if gradient.dim() < 2:
        return gradient.square().mean().reshape(1)
    return gradient.square().transpose(0, 1).flatten(1).mean(1)


@torch.no_grad()
def choose_range_by_importance(
    quantizer: ActivationQuantizer,
    x: Tensor,
    importance: Tensor,
    rng: torch.Generator,
    margin: float = 1.0,
) -> None:
    """Give a quantizer the part of the range of x which has the least weighted squared error.

    Args:
        quantizer: changed in place.
        x: [N, C, ...].
        importance: [C], weights of the channels; where all are zero, all errors count alike.
        rng: chooses values, where there are many; on the device of x.
        margin: how many times as wide the range becomes, but not wider than that of x.
    """
    shape = (1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else (-1,)
    weights = importance.view(shape).expand_as(x)
    x, weights = x.flatten(), weights.flatten()
    if len(x) > RANGE_SAMPLES:
        index = torch.randint(len(x), (RANGE_SAMPLES,), generator=rng, device=x.device)
        x, weights = x[index], weights[index]
    if not bool(weights.any()):
        weights = torch.ones_like(weights)
    update_range(quantizer, x, 1)
    whole = quantizer.log_scale.clone()
    search_scale(quantizer, x, weights=weights)
    quantizer.log_scale.copy_(whole.minimum(quantizer.log_scale + math.log(margin)))
