"""The quantized classifier in fewer passes over memory: quantizers do what stands before them."""

import copy

from torch import fx, nn

from zscgan_ext.classifiers.graph import activation_of, module_of, only_user
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer


def fuse(graph: fx.GraphModule) -> fx.GraphModule:
    """Let quantizers apply the ReLU or ReLU6 before them, and add a convolution's bias before that.

    Args:
        graph: a classifier with quantizers, which is left as it is.

    Returns:
        Another graph with the same results on the same modules.
    """
    fused = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in list(fused.graph.nodes):
        if isinstance(module_of(fused, node), ActivationQuantizer):
            fuse_activation(fused, node)
    fused.graph.lint()
    fused.recompile()
    return fused


def fuse_activation(graph: fx.GraphModule, quantizer: fx.Node) -> None:
    """Take out the activation before a quantizer if nobody else sees it or its input."""
    node = quantizer.all_input_nodes[0]
    activation = activation_of(node)
    if activation == "none" or only_user(node) is None:
        return
    source = node.all_input_nodes[0]
    if only_user(source) is None:
        return
    quantizer.replace_input_with(node, source)
    quantizer.kwargs = {"activation": activation}
    graph.graph.erase_node(node)
    fuse_bias(graph, source, quantizer)


def fuse_bias(graph: fx.GraphModule, source: fx.Node, quantizer: fx.Node) -> None:
    """Hand the bias of a convolution, called once, to the quantizer behind it."""
    layer = module_of(graph, source)
    if not isinstance(layer, QuantizedLayer) or not isinstance(layer.layer, nn.Conv2d):
        return
    if layer.layer.bias is None:
        return
    with graph.graph.inserting_before(quantizer):
        bias = graph.graph.get_attr(f"{source.target}.layer.bias")
    source.kwargs = {"bias_follows": True}
    quantizer.kwargs = {**quantizer.kwargs, "bias": bias}
