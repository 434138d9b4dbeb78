"""Biases as integer kernels add them: int32, on the grid of the products they are added to."""

import torch
from torch import fx

from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.quantization.conversion import QuantizedClassifier, source_of_values
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer


@torch.no_grad()
def round_biases(student: QuantizedClassifier) -> None:
    """Round biases, in place, to multiples of input scale times weight scale.

    An integer kernel can add no other. At 4 bits these multiples are coarse enough to move the
    integers of a later layer. Biases of asymmetric weights, and of layers whose input is not
    quantized, stay as they are: no integer kernel takes those layers.

    Args:
        student: calibrated.
    """
    for node in student.graph.graph.nodes:
        layer = module_of(student.graph, node)
        if not isinstance(layer, QuantizedLayer) or not layer.symmetric:
            continue
        quantizer = input_quantizer(student.graph, node)
        bias = layer.layer.bias
        if quantizer is None or bias is None:
            continue
        step = layer.weight_scale().double() * quantizer.scale().double()  # [O]
        bias.copy_(torch.round(bias / step) * step)


def input_quantizer(graph: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    """Return the quantizer on whose grid the input of a node lies, if it lies on one."""
    module = module_of(graph, source_of_values(node.args[0]))
    return module if isinstance(module, ActivationQuantizer) else None
