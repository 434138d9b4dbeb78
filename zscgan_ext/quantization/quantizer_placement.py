"""Where activation quantizers stand: behind which nodes of a classifier's graph, and which not."""

import math
import operator
from collections.abc import Iterator, Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from zscgan_ext.classifiers.graph import calls, device_of, module_of
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer
from zscgan_ext.quantization.scheme import Scheme

# Part of the operation before them, whose result is not quantized then.
ACTIVATIONS: tuple[Any, ...] = (
    *(F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.mish),
    *(F.leaky_relu, F.elu, F.celu, F.selu, F.softplus, F.softsign, F.logsigmoid),
    *(torch.sigmoid, torch.tanh, torch.clamp, F.threshold),
    *(F.hardshrink, F.softshrink, F.tanhshrink),
)
RECTIFIERS: tuple[Any, ...] = (F.relu, F.relu6)
# The integers of the result are some of those of the input, with the same scale and zero point.
PRESERVES_QPARAMS: tuple[Any, ...] = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.amax, torch.amin, operator.getitem),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.reshape, torch.permute),
    *(torch.split, torch.unbind, torch.broadcast_to, torch.tile, torch.repeat_interleave),
    *(torch.roll, torch.flip, torch.index_select, torch.topk, torch.sort, F.unfold),
    torch.Tensor.unfold,
)
ACTIVATION_QUANTIZERS = "activation_quantizers"  # the submodule that holds them


def insert_activation_quantizers(
    graph: fx.GraphModule, scheme: Scheme, ends: tuple[fx.Node, fx.Node]
) -> None:
    """Put a quantizer behind every node whose result the scheme quantizes."""
    quantizers = nn.ModuleDict()
    graph.add_submodule(ACTIVATION_QUANTIZERS, quantizers)
    first, last = ends
    read_by_ends = {*computed_before(first), source_of_values(last.args[0])}
    layers = [n for n in graph.graph.nodes if isinstance(module_of(graph, n), QuantizedLayer)]
    before_layers = set().union(*map(computed_before, layers))
    floats = float_operands(graph)
    float_layers = [n for n in graph.graph.nodes if is_float_layer(graph, n, scheme)]
    for node in list(graph.graph.nodes):
        # What no layer reads any more are logits, whatever the classifier makes of them.
        wanted = node in before_layers and node not in floats
        if not wanted or not is_quantized(graph, node, scheme, floats):
            continue
        readers = readers_of(node)
        if readers and readers <= set(float_layers):
            continue
        names = [str(reader.target) for reader in readers if reader in layers]
        quant_range = scheme.activation_range(names, is_first_or_last=node in read_by_ends)
        quantizers[node.name] = ActivationQuantizer(quant_range)
        with graph.graph.inserting_after(node):
            inserted = graph.graph.call_module(f"{ACTIVATION_QUANTIZERS}.{node.name}", (node,))
            inserted.meta = dict(node.meta)
        node.replace_all_uses_with(
            inserted, lambda user, new=inserted: user is not new and user not in float_layers
        )
    quantizers.to(device_of(graph))


def is_float_layer(graph: fx.GraphModule, node: fx.Node, scheme: Scheme) -> bool:
    """Return True if a node calls a layer that the scheme leaves in floats."""
    return node.op == "call_module" and scheme.is_float(str(node.target))


def readers_of(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that take a node's values, those behind reshaping and the like included."""
    found: set[fx.Node] = set()
    waiting = list(node.users)
    while waiting:
        user = waiting.pop()
        if user in found:
            continue
        if preserves_qparams(user):
            waiting += user.users
        else:
            found.add(user)
    return found


def computed_before(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that a node's inputs are computed from."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            waiting += source.all_input_nodes
    return found


def source_of_values(node: Any) -> Any:
    """Follow a node back to the one that computed its values."""
    while preserves_qparams(node):
        node = node.args[0]
    return node


def preserves_qparams(node: Any) -> bool:
    """Return True if the values of a node's result are some of its input's, or zero."""
    if calls(node, F.interpolate):
        return bool(node.kwargs.get("mode", "nearest") == "nearest")
    if calls(node, F.pad):
        # Minus infinity is padded before maxima, which it never is.
        return node.kwargs.get("value") in (None, 0, -math.inf)
    if calls(node, operator.getitem) and not gives_a_tensor(node.args[0]):
        return preserves_qparams(node.args[0])
    return calls(node, *PRESERVES_QPARAMS)


def gives_a_tensor(node: Any) -> bool:
    """Return True if a node gives one tensor of real numbers."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return isinstance(meta, TensorMetadata) and meta.dtype.is_floating_point


def is_quantized(
    graph: fx.GraphModule, node: fx.Node, scheme: Scheme, floats: Set[fx.Node]
) -> bool:
    """Return True if the scheme quantizes a node's result."""
    if node.op == "output" or not gives_a_tensor(node):
        return False
    if scheme.quantizes_only_rectifiers:
        return calls(node, *RECTIFIERS)
    if preserves_qparams(node) or node.op == "get_attr":
        return False
    if scheme.symmetric_activations:
        return feeds_a_layer(graph, node) or meets_a_layer(graph, node)
    return not all(is_activation(graph, user) and user not in floats for user in node.users)


def is_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if a node is an activation function, part of the operation before it."""
    return calls(node, *ACTIVATIONS) or isinstance(module_of(graph, node), nn.PReLU)


# ---- operands that stay in floats ---------------------------------------------------------------
#
# Roots, logarithms and quotients are infinite where an operand is zero. A classifier keeps such
# operands away from zero, by `clamp(min=1e-6)` or by adding 1e-6, and a quantizer would round that
# to zero. Generalized-mean pooling, root-mean-square pooling and normalization by a norm are of
# this kind.

# Without a value or a finite derivative where their argument is zero.
SINGULAR: tuple[Any, ...] = (
    *(torch.sqrt, torch.rsqrt, torch.log, torch.log2, torch.log10, torch.reciprocal),
)
# What such an operand is computed by, from what may be quantized.
COMPUTING: tuple[Any, ...] = (
    *(*SINGULAR, operator.pow, torch.abs, torch.exp, torch.mean, torch.sum, torch.var, torch.std),
    *(torch.norm, torch.clamp, torch.maximum, F.avg_pool2d, F.adaptive_avg_pool2d),
    *(torch.reshape, torch.broadcast_to, operator.getitem, operator.matmul),
)
# The same where all but the first argument are constants.
COMPUTING_WITH_CONSTANTS: tuple[Any, ...] = (
    *(operator.add, operator.sub, operator.mul, operator.truediv),
)


def float_operands(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose results are operands as above, or are on the way to one.

    Not those that a quantized layer reads as well.
    """
    found: set[fx.Node] = set()
    waiting = [operand for node in graph.graph.nodes for operand in operands_of(node)]
    while waiting:
        node = waiting.pop()
        if node in found or not computes(node) or is_read_by_a_layer(graph, node):
            continue
        found.add(node)
        waiting += node.all_input_nodes
    return found


def operands_of(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the operands of a node that must not become zero by rounding."""
    if calls(node, *SINGULAR) or has_a_root(node):
        yield from (a for a in node.args[:1] if isinstance(a, fx.Node))
    elif calls(node, operator.truediv):
        yield from (a for a in node.args[1:2] if isinstance(a, fx.Node))


def has_a_root(node: fx.Node) -> bool:
    """Return True if a node is a power whose exponent may be below 1."""
    if not calls(node, operator.pow):
        return False
    exponent = node.args[1]
    return not (isinstance(exponent, int | float) and exponent >= 1)


def computes(node: fx.Node) -> bool:
    """Return True if a node is one of those that operands are computed by."""
    others = node.all_input_nodes[1:]
    is_simple = calls(node, *COMPUTING_WITH_CONSTANTS)
    return calls(node, *COMPUTING) or (
        is_simple and all(other.op == "get_attr" for other in others)
    )


def is_read_by_a_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if a quantized layer takes a node's result."""
    return any(isinstance(module_of(graph, user), QuantizedLayer) for user in node.users)


# ---- what TensorRT wants quantized --------------------------------------------------------------


def feeds_a_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if a quantized layer takes a node's values, reshaped or not."""
    return any(isinstance(module_of(graph, reader), QuantizedLayer) for reader in readers_of(node))


def meets_a_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if a node's values are added to the result of a layer, which adds them itself.

    Of two results of layers, the one with more computed before it adds the other, a shortcut's.
    """
    for user in node.users:
        if preserves_qparams(user) and meets_a_layer(graph, user):
            return True
        if calls(user, operator.add) and len(user.all_input_nodes) == 2:
            layers = [each for each in user.all_input_nodes if is_added_to(graph, each)]
            if layers and node is not max(layers, key=lambda a: len(computed_before(a))):
                return True
    return False


def is_added_to(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if a node is a layer whose result one sum alone takes."""
    return len(node.users) == 1 and isinstance(module_of(graph, node), QuantizedLayer)
