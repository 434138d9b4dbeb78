"""Ranges of activations, from a few batches of images, and from batch norm where there is one."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.quantization.batch_norm_ranges import choose_range, follow_batch_norm
from zscgan_ext.quantization.biases import round_biases
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationMode, ActivationQuantizer

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
    cover_pixels(model, images)
    round_biases(model)


def cover_pixels(model: QuantizedClassifier, images: Tensor) -> None:
    """Give what is computed of the images before any layer a range for all pixels there may be.

    Generated images tell the least of it: the first batch norm sees what a convolution makes of
    them, and how a classifier scales or joins its channels before is not in its statistics.

    Args:
        model: calibrated; changed in place.
        images: [N, C, H, W], which range over the pixels that there may be.
    """
    nodes = nodes_before_layers(model)
    if not nodes:
        return
    low, high = images.amin(), images.amax()  # of all channels: few images lack some values
    random = torch.Generator(images.device).manual_seed(0)
    uniform = torch.rand(images.shape, generator=random, device=images.device)
    model.quantize_weights()
    PixelRanges(model.graph, nodes).run(low + (high - low) * uniform.to(images.dtype))
    model.release_weights()


def nodes_before_layers(model: QuantizedClassifier) -> set[fx.Node]:
    """Return the quantizers of what is computed of the images, but not of a layer or batch norm."""
    graph = model.graph
    pointwise: set[fx.Node] = set()
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        is_layer = module is not None and not isinstance(module, ActivationQuantizer)
        if not is_layer and all(s in pointwise or s.op == "get_attr" for s in node.all_input_nodes):
            pointwise.add(node)
    return {
        node
        for node in pointwise
        if isinstance(module_of(graph, node), ActivationQuantizer)
        and node.all_input_nodes[0].op not in ("placeholder", "get_attr")
    }


class PixelRanges(fx.Interpreter):
    """Runs a student and chooses the ranges of some of its quantizers.

    Args:
        graph: of the student, its weights quantized.
        nodes: that call these quantizers.
    """

    def __init__(self, graph: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(graph)
        self.nodes = nodes

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; choose the range first if it calls one of these quantizers."""
        if n in self.nodes:
            quantizer = self.fetch_attr(str(n.target))
            (values, *_), _ = self.fetch_args_kwargs_from_env(n)
            choose_range(quantizer, values)
            quantizer.mode = ActivationMode.QUANTIZE
        return super().run_node(n)
