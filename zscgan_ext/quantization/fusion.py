"""The quantized classifier in fewer passes over memory: quantizers do what stands before them."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from zscgan_ext.classifier_graph import ADDITIONS, IN_PLACE_ADDITIONS, RELU, RELU6
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer

FUSED_ACTIVATIONS: dict[Any, str] = {**dict.fromkeys(RELU, "relu"), **dict.fromkeys(RELU6, "relu6")}


def fuse(graph: fx.GraphModule) -> fx.GraphModule:
    """Let quantizers apply the ReLU or ReLU6 before them, and add a convolution's bias before that.

    Args:
        graph: a classifier with quantizers, which is left as it is.

    Returns:
        Another graph with the same results on the same modules.
    """
    fused = copy.deepcopy(graph.graph)
    modules = dict(graph.named_modules())
    for node in list(fused.nodes):
        if isinstance(called(modules, node), ActivationQuantizer):
            fuse_activation(fused, modules, node)
    fused.lint()
    return fx.GraphModule(graph, fused)


def called(modules: dict[str, nn.Module], node: fx.Node) -> Any:
    """Return what a node calls: a module, a function, the name of a method, or None."""
    if node.op == "call_module":
        return modules[str(node.target)]
    return node.target if node.op in ("call_function", "call_method") else None


def fuse_activation(graph: fx.Graph, modules: dict[str, nn.Module], quantizer: fx.Node) -> None:
    """Take out the activation before a quantizer if nobody else sees it or its input."""
    activation = quantizer.all_input_nodes[0]
    function = called(modules, activation)
    name = FUSED_ACTIVATIONS.get(type(function) if isinstance(function, nn.Module) else function)
    if name is None or len(activation.users) > 1:
        return
    source = activation.all_input_nodes[0]
    if len(source.users) > 1:
        return
    if is_in_place(function, activation) and not owns_memory(modules, source):
        return
    quantizer.replace_input_with(activation, source)
    quantizer.kwargs = {"activation": name}
    graph.erase_node(activation)
    fuse_bias(graph, modules, source, quantizer)


def fuse_bias(
    graph: fx.Graph, modules: dict[str, nn.Module], source: fx.Node, quantizer: fx.Node
) -> None:
    """Hand the bias of a convolution, called once, to the quantizer behind it."""
    layer = called(modules, source)
    if not isinstance(layer, QuantizedLayer) or not isinstance(layer.layer, nn.Conv2d):
        return
    if layer.layer.bias is None:
        return
    with graph.inserting_before(quantizer):
        bias = graph.get_attr(f"{source.target}.layer.bias")
    source.kwargs = {"bias_follows": True}
    quantizer.kwargs = {**quantizer.kwargs, "bias": bias}


def is_in_place(function: Any, node: fx.Node) -> bool:
    """Tell whether an activation overwrites its input."""
    if isinstance(function, nn.Module):
        return bool(getattr(function, "inplace", False))
    positional = node.args[1] if len(node.args) > 1 else False
    return function in ("relu_", torch.relu_, F.relu_) or bool(
        node.kwargs.get("inplace", positional)
    )


def owns_memory(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Tell whether nobody but a node's users sees the memory of its result.

    Overwriting such memory, or not, makes no difference to anybody else.
    """
    function = called(modules, node)
    if function in IN_PLACE_ADDITIONS:
        target = node.all_input_nodes[0]
        return len(target.users) == 1 and owns_memory(modules, target)
    return function in ADDITIONS or isinstance(function, QuantizedLayer | nn.BatchNorm2d)
