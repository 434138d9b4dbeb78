"""Batch norm becomes part of the layer before it or behind it, where that is exact."""

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext.classifiers.batch_norm import affine, stores_statistics
from zscgan_ext.classifiers.graph import module_of, only_user

Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def fold_batch_norm(graph: fx.GraphModule) -> None:
    """Fold batch norms, in place, into the convolutions and linear layers beside them.

    Behind a layer that always is exact. Before one it is so only without zero padding, since zeros
    would have to be padded before batch norm. What follows a linear layer is folded where the graph
    was run with `ShapeProp`, which tells that it maps vectors.

    Args:
        graph: in normal form and in evaluation mode.
    """
    for fold in (fold_into_layer_before, fold_into_layer_behind):
        for node in list(graph.graph.nodes):
            norm = module_of(graph, node)
            if stores_statistics(norm):
                fold(graph, node, norm)
    graph.delete_all_unused_submodules()
    graph.recompile()


def fold_into_layer_before(graph: fx.GraphModule, node: fx.Node, norm: _BatchNorm) -> None:
    """Fold a batch norm into the layer whose result it takes, in all places where both stand."""
    source: Any = node.args[0]
    layer = module_of(graph, source)
    if not isinstance(layer, Layer) or not maps_channels(source, layer):
        return
    sources = calls(graph, source.target)
    followers = [only_user(call) for call in sources]
    if set(followers) != set(calls(graph, node.target)):
        return  # its other uses are followed by something else
    multiplier, offset = affine(norm)
    replacement = copy.deepcopy(layer)
    shape = [1] * layer.weight.dim()
    if isinstance(layer, nn.ConvTranspose2d):  # weight [I, O / groups, kH, kW]
        by_group = multiplier.view(layer.groups, 1, -1)
        spread = by_group.expand(-1, layer.in_channels // layer.groups, -1)
        scaled = layer.weight.double() * spread.reshape(*layer.weight.shape[:2], 1, 1)
    else:
        scaled = layer.weight.double() * multiplier.view(-1, *shape[1:])
    bias = 0 if layer.bias is None else layer.bias.double()
    set_values(replacement, scaled, bias * multiplier + offset)
    graph.set_submodule(str(source.target), replacement)
    for call, follower in zip(sources, followers, strict=True):
        assert follower is not None
        follower.replace_all_uses_with(call)
        graph.graph.erase_node(follower)


def fold_into_layer_behind(graph: fx.GraphModule, node: fx.Node, norm: _BatchNorm) -> None:
    """Fold a batch norm into the only layer that takes its result, if that pads nothing."""
    user = only_user(node)
    layer = None if user is None else module_of(graph, user)
    if user is None or not isinstance(layer, Layer) or not maps_channels(node, layer):
        return
    if isinstance(layer, nn.ConvTranspose2d) or pads(layer):
        return
    if len(calls(graph, user.target)) > 1:
        return
    multiplier, offset = affine(norm)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    weight = layer.weight.double()  # [O, I / groups, ...]
    outputs = weight.shape[0] // groups

    def of_inputs(values: Tensor) -> Tensor:
        spread = values.view(groups, -1).repeat_interleave(outputs, 0)  # [O, I / groups]
        return spread.view(*weight.shape[:2], *[1] * (weight.dim() - 2))

    bias = 0 if layer.bias is None else layer.bias.double()
    replacement = copy.deepcopy(layer)
    shift = (weight * of_inputs(offset)).flatten(1).sum(1)
    set_values(replacement, weight * of_inputs(multiplier), bias + shift)
    graph.set_submodule(str(user.target), replacement)
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.graph.erase_node(node)


def calls(graph: fx.GraphModule, target: Any) -> list[fx.Node]:
    """Return the nodes that call a module."""
    return [n for n in graph.graph.nodes if n.op == "call_module" and n.target == target]


def maps_channels(node: fx.Node, layer: Layer) -> bool:
    """Return True if a layer's channels are those of batch norm, the second dimension."""
    if not isinstance(layer, nn.Linear):
        return True
    meta = node.meta.get("tensor_meta")
    return meta is not None and len(meta.shape) == 2


def pads(layer: Layer) -> bool:
    """Return True if a convolution pads its input."""
    if isinstance(layer, nn.Linear) or layer.padding == "valid":
        return False
    if layer.padding == "same":
        return any(size != 1 for size in layer.kernel_size)
    return any(size != 0 for size in layer.padding)


@torch.no_grad()
def set_values(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    """Give a layer another weight and bias, in the dtype of its own."""
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.detach().to(dtype), layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.detach().to(dtype), layer.weight.requires_grad)
