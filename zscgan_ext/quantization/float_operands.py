"""What must stay in floats: operands of roots, logarithms and divisions, infinite at zero.

A classifier keeps them away from zero, by `clamp(min=1e-6)` or by adding 1e-6, and a quantizer
would round that to zero: gradients would be infinite, and so would quotients. Generalized-mean
pooling, root-mean-square pooling and normalization by a norm are of this kind.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from zscgan_ext.classifiers.graph import calls, module_of
from zscgan_ext.quantization.quantizers import QuantizedLayer

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
