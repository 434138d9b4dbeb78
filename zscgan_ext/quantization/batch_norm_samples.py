"""Samples of every activation that have the statistics which batch norm stores, without any image.

The input is drawn: pixels are normal with the mean and deviation of the training images, within the
range that pixels have. What a batch norm normalizes is given exactly the mean and variance that
it stores, whatever the layers before it made of the draws. So the samples of each channel have the
first two moments of real activations, and those of different channels and places are correlated as
weights, activation functions, sums and pooling make them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zscgan_ext.classifiers.batch_norm import affine, stored, stores_statistics
from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import QUANTIZED_LAYERS

SAMPLED_PIXELS = 64 * 28**2  # of the input, about
FEWEST, MOST = 8, 64  # samples of the input
IN_COMMON = 0.9  # of the variance of a pixel's channels
CONTRASTS = 0.3  # standard deviation of the logarithm of images' contrast
# Stored deviations from the mean, at most. Zero padding makes a few values at borders far larger in
# some classifiers, real ones too; ranges that hold them are too coarse for all others.
FARTHEST = 7.0
CONSTANT = 1e-10  # of the stored variance: below, a sampled channel is constant


class Statistics(NamedTuple):
    """Mean and variance of each channel, [C] each."""

    mean: Tensor
    variance: Tensor


def known_statistics(model: nn.Module, student: QuantizedClassifier) -> dict[str, Statistics]:
    """Return what batch norms tell of results in a student's graph, by the names of the nodes.

    Of a batch norm that was folded into the layer before it, that is its result; of every other
    one, its input.

    Args:
        model: the float classifier that the student was converted from.
        student: whose nodes are named.
    """
    graph = trace(model, student.image_shape)
    kept = {node.name for node in student.graph.graph.nodes}
    found = {}
    for node in graph.graph.nodes:
        norm = module_of(graph, node)
        if not stores_statistics(norm):
            continue
        source = node.all_input_nodes[0]
        mean, variance = stored(norm.running_mean), stored(norm.running_var)
        is_folded = node.name not in kept
        if is_folded and isinstance(module_of(graph, source), QUANTIZED_LAYERS):
            multiplier, offset = affine(norm)
            mean, variance = multiplier * mean + offset, multiplier.square() * variance
        found[source.name] = Statistics(mean.detach().float(), variance.detach().float())
    return found


def drawn_input(preprocessing: Preprocessing, rng: torch.Generator) -> Tensor:
    """Draw the input of a classifier, [N, C, H, W], the more of it the smaller it is.

    Normalized pixels have the mean 0 and the deviation 1 over the training images. Neighbouring
    pixels are alike, and so are the channels of one, as in photographs, whose power is about the
    same in each octave of scale (Field, 1987). Without that, pooled features would hardly vary.

    Images differ in contrast, which all layers pass on: so activations have heavier tails than
    normal ones (a scale mixture, Wainwright and Simoncelli, NeurIPS 1999). Without that, ranges
    clip what the images of most contrast give.
    """
    channels, *size = preprocessing.shape
    count = max(FEWEST, min(MOST, SAMPLED_PIXELS // preprocessing.pixels))
    common = octaves(count, 1, size, rng)
    own = octaves(count, channels, size, rng)
    x = math.sqrt(IN_COMMON) * common + math.sqrt(1 - IN_COMMON) * own
    contrast = torch.randn((count, 1, 1, 1), generator=rng, device=rng.device)
    x = x * (CONTRASTS * contrast).exp()
    low, high = preprocessing.black_and_white(rng.device)
    return torch.maximum(torch.minimum(x / x.std(), high), low)


def octaves(count: int, channels: int, size: Sequence[int], rng: torch.Generator) -> Tensor:
    """Draw maps [count, channels, *size] with as much variance at each scale, 1 in all."""
    total: Tensor = torch.zeros((), device=rng.device)
    (height, width), number = size, 0
    while max(height, width) >= 1:
        shape = (count, channels, max(height, 1), max(width, 1))
        coarse = torch.randn(shape, generator=rng, device=rng.device)
        fine = F.interpolate(coarse, size=list(size), mode="bilinear", align_corners=False)
        total, number = total + fine / fine.std(), number + 1
        height, width = height // 2, width // 2
    return total / math.sqrt(number)


class Standardization(NamedTuple):
    """An affine map of the channels of a result within bounds, [1, C, ...] each."""

    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    is_constant: Tensor
    noise: Tensor | None  # [N, C, ...], stands in the place of constant channels; None for none

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [N, C, ...]."""
        if self.noise is not None:
            x = torch.where(self.is_constant, self.noise, x)
        x = x * self.scale + self.offset
        return torch.maximum(torch.minimum(x, self.high), self.low)


class BatchNormSampler(fx.Interpreter):
    """Runs a student's graph on a drawn input, each result with the statistics known of it.

    Args:
        student: converted, its quantizers off and its weights not yet rounded.
        statistics: of results by the names of their nodes, as `known_statistics` returns them.
        rng: draws what the input leaves constant; on the device of the student.
    """

    def __init__(
        self,
        student: QuantizedClassifier,
        statistics: dict[str, Statistics],
        rng: torch.Generator,
    ) -> None:
        super().__init__(student.graph)
        self.graph_module = student.graph
        self.extra_traceback = False
        self.statistics = statistics
        self.rng = rng

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node's result, and standardize it where its statistics are known."""
        result = super().run_node(n)
        known = self.statistics.get(n.name)
        return result if known is None else self.standardized(result, known)

    def standardized(self, x: Tensor, known: Statistics) -> Tensor:
        """Shift and scale the channels of x [N, C, ...] to a mean and variance."""
        return self.standardization(x, known)(x)

    def standardization(self, x: Tensor, known: Statistics) -> "Standardization":
        """Return what gives the channels of x [N, C, ...] a mean and variance."""
        dims, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        deviation = known.variance.sqrt()
        is_constant = variance <= CONSTANT * known.variance
        noise = None
        if bool(is_constant.any()):
            noise = torch.randn(x.shape, generator=self.rng, device=x.device)
            mean = mean.masked_fill(is_constant, 0)
            variance = variance.masked_fill(is_constant, 1)
        scale = torch.where(known.variance > 0, deviation * variance.rsqrt(), 0)
        low, high = known.mean - FARTHEST * deviation, known.mean + FARTHEST * deviation
        return Standardization(
            scale.view(shape),
            (known.mean - mean * scale).view(shape),
            low.view(shape),
            high.view(shape),
            is_constant.view(shape),
            noise,
        )
