"""Initial ranges of activations: from a few batches of images, from batch norm, or chosen by KL.

No way to take ranges is the best for every classifier and width: batch norm has to bound what is
coarse or sensitive, and elsewhere such bounds cut off what the classifier needs. The logits of the
student with each of them show which one fits. Its feature maps do not: their distance is mostly
that of the largest activations, which generated images may have and real ones not.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor, fx, nn

from zscgan_ext import distributed
from zscgan_ext.classifiers.graph import device_of, module_of
from zscgan_ext.classifiers.heads import SINGLE_LABEL, Head
from zscgan_ext.quantization.activation_ranges import (
    SQUARED,
    choose_range,
    search_scale,
    update_range,
)
from zscgan_ext.quantization.batch_norm_ranges import set_ranges_from_batch_norm
from zscgan_ext.quantization.fine_tuning import logit_divergence
from zscgan_ext.quantization.quantized_classifier import (
    QuantizedClassifier,
    round_biases_to_int32,
)
from zscgan_ext.quantization.quantizers import ActivationQuantizer
from zscgan_ext.quantization.scheme import QuantRange

RANGES = ("narrower", "batch_norm", "images")
# Most values of a tensor are small, but the large ones decide: their errors have to weigh more.
POWER_BESIDE_BATCH_NORM = 5
# Of the divergence of the first way: nearer ones say nothing about the fine-tuned students.
CLEARLY_LESS = 0.75
BITS_OF_PIXEL = 8
# So near to the middle between two integers, the last bits of a float can decide; in steps.
LAST_BITS = 1e-3


@torch.no_grad()
def calibrate(
    student: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    ranges: str = "images",
    classifier: nn.Module | None = None,
    input_range: tuple[float, float] | None = None,
) -> None:
    """Set every activation's scale and zero point.

    `images`: the zero point comes from the mean range of some batches; the scale is that part of
    the range's with the least squared error on the last batch. Weights are quantized meanwhile,
    activations are not.

    `batch_norm`: so for what follows no batch norm; all others have the range of its statistics.

    `narrower`: whichever of the two is narrower. Large values weigh more in the search than their
    squares, and where generated images have larger extremes than real ones would, batch norm
    bounds the range.

    The input, and what is computed of it before any layer, covers all pixels in each of the ways.

    Afterwards activations are quantized too, and biases are such as integer kernels add.

    Args:
        student: changed in place.
        batches: images [B, C, H, W] with labels, which are ignored.
        count: batches to observe, 1 or more; the last is searched.
        ranges: as above.
        classifier: the float one that the student was converted from; needed for all but `images`.
        input_range: what images may range over; None for the range of the last batch.
    """
    images = observe_ranges(student, batches, count)
    finalize_ranges(student, images, ranges, classifier, input_range)


@torch.no_grad()
def choose_initial_ranges(
    student: QuantizedClassifier,
    classifier: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    temperature: float,
    input_range: tuple[float, float] | None = None,
    head: Head = SINGLE_LABEL,
) -> dict[str, float]:
    """Calibrate a student in each of the ways of `calibrate`, and keep the ranges `least` names.

    Images are observed once for all ways. The divergence of the student's logits from the
    classifier's, as in the loss of fine-tuning, is that on the last batch of all processes.

    Args:
        student: converted, its weights rounded; changed in place.
        classifier: the float one that it was converted from.
        batches: images [B, C, H, W], with labels, which are ignored.
        count: batches to observe.
        temperature: of the divergence, as in the loss of fine-tuning.
        input_range: as for `calibrate`.
        head: what the logits mean.

    Returns:
        The divergence of each way.
    """
    images = observe_ranges(student, batches, count)
    logits = classifier(images)  # [B, num_classes]
    observed = copy.deepcopy(student.state_dict())
    divergences, states = {}, {}
    for ranges in RANGES:
        student.load_state_dict(observed)
        finalize_ranges(student, images, ranges, classifier, input_range)
        divergence = logit_divergence(student(images), logits, temperature, head)
        divergences[ranges] = float(distributed.all_reduce_mean(divergence))
        states[ranges] = copy.deepcopy(student.state_dict())
    student.load_state_dict(states[least(divergences)])
    return divergences


def least(divergences: Mapping[str, float]) -> str:
    """Name the ranges of clearly the least divergence, or the first of `RANGES` if none are."""
    best, first = min(divergences, key=lambda ranges: divergences[ranges]), RANGES[0]
    return best if divergences[best] < CLEARLY_LESS * divergences[first] else first


@torch.no_grad()
def observe_ranges(
    student: QuantizedClassifier, batches: Iterator[tuple[Tensor, Tensor]], count: int
) -> Tensor:
    """Average the range of every activation over `count` batches; return the last one's images."""
    for number, (images, _) in enumerate(islice(batches, count), 1):
        update_ranges(student, images, 1 / number)
    return images


@torch.no_grad()
def update_ranges(student: QuantizedClassifier, images: Tensor, averaging_constant: float) -> None:
    """Average the ranges of float activations into those of all quantizers, see `update_range`."""

    def observe(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        update_range(quantizer, x, averaging_constant)
        return x

    student.forward_with(observe, images)


@torch.no_grad()
def finalize_ranges(
    student: QuantizedClassifier,
    images: Tensor,
    ranges: str,
    classifier: nn.Module | None,
    input_range: tuple[float, float] | None = None,
) -> None:
    """Choose scales within the ranges that were observed, as `calibrate` says, and quantize.

    Args:
        student: that has observed batches; changed in place.
        images: [N, C, H, W] of the last batch.
        ranges: as for `calibrate`.
        classifier: as for `calibrate`.
        input_range: as for `calibrate`.
    """
    error_power = POWER_BESIDE_BATCH_NORM if ranges == "narrower" else SQUARED

    def search(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        search_scale(quantizer, x, error_power)
        return x

    student.forward_with(search, images)
    if ranges != "images":
        assert classifier is not None
        set_ranges_from_batch_norm(student, classifier, images, only_narrower=ranges == "narrower")
    student.quantize_activations()
    cover_pixels(student, images, input_range)
    round_biases_to_int32(student)


def cover_pixels(
    student: QuantizedClassifier, images: Tensor, input_range: tuple[float, float] | None
) -> None:
    """Give the input and what is computed of it before any layer a range for all pixels.

    Generated images show the least of it: the first batch norm sees what a convolution makes of
    them, and how a classifier scales or joins its channels before is not in its statistics.

    Args:
        student: calibrated; changed in place.
        images: [N, C, H, W].
        input_range: what images may range over; None for the range of these, where the input keeps
            the range that it has.
    """
    if input_range is not None:
        cover_input(student, input_range)
    before_layers = quantizers_before_layers(student.graph)
    if not before_layers:
        return

    def quantize(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        if quantizer in before_layers:
            choose_range(quantizer, x)
        quantized: Tensor = quantizer(x)
        return quantized

    # Of all channels: few images lack some values.
    low, high = input_range or (float(images.amin()), float(images.amax()))
    rng = torch.Generator(images.device).manual_seed(0)
    uniform = torch.rand(images.shape, generator=rng, device=images.device)
    student.forward_with(quantize, low + (high - low) * uniform.to(images.dtype))


def cover_input(student: QuantizedClassifier, input_range: tuple[float, float]) -> None:
    """Give the quantizer of the images, if there is one, the range that images may have.

    That of the images it observed, if any, is a part of it, whoever gave them.
    """
    named = student.named_activation_quantizers()
    low, high = torch.tensor(input_range, device=device_of(student.graph))
    for node in student.graph.graph.find_nodes(op="placeholder"):
        if node.name in named:
            quantizer = named[node.name]
            observed = quantizer.running_min.squeeze(), quantizer.running_max.squeeze()
            ends = torch.stack([low.minimum(observed[0]), high.maximum(observed[1])])
            update_range(quantizer, without_ties(ends, quantizer.quant_range), 1)


def without_ties(ends: Tensor, quant_range: QuantRange) -> Tensor:
    """Widen a range a little where its ends lie in the middle between two integers.

    As far apart as the integers, all pixels would then lie there, as with the usual mean of 0.5,
    which is 127.5 levels: rounding would cost half a step each time, and the last bits of a float
    would decide in which direction, in each runtime otherwise.

    Args:
        ends: the least and the largest value, [2].
        quant_range: the integers.
    """
    steps = quant_range.quant_max - quant_range.quant_min
    low, high = ends.double()
    step = (high - low) / (steps - 1)  # of one integer fewer
    zero = -low * steps / (high - low)  # in steps from the least integer
    is_between = abs(float(zero.frac()) - 0.5) <= LAST_BITS
    if quant_range.bits != BITS_OF_PIXEL or not is_between:
        return ends
    # Around the zero point 0, the end is as far away on the other side.
    return torch.stack([low, high + (step / 2 if quant_range.signed else step)]).to(ends.dtype)


def quantizers_before_layers(graph: fx.GraphModule) -> set[ActivationQuantizer]:
    """Return the quantizers of what is computed of the images, but not of a layer or batch norm."""
    found: set[ActivationQuantizer] = set()
    pointwise: set[fx.Node] = set()
    for node in graph.graph.nodes:
        module, sources = module_of(graph, node), node.all_input_nodes
        is_layer = module is not None and not isinstance(module, ActivationQuantizer)
        if is_layer or not all(s in pointwise or s.op == "get_attr" for s in sources):
            continue
        pointwise.add(node)
        is_computed = bool(sources) and sources[0].op not in ("placeholder", "get_attr")
        if isinstance(module, ActivationQuantizer) and is_computed:
            found.add(module)
    return found
