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
from torch import fx, nn

from zscgan_ext.classifiers.graph import ADDITIONS, is_one_of, module_of
from zscgan_ext.quantization.quantizers import QuantizedLayer

POWERS: tuple[Any, ...] = (operator.pow, torch.pow, "pow")
DIVISIONS: tuple[Any, ...] = (
    *(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide),
    *("div", "div_", "divide", "true_divide"),
)
# Without a value or a finite derivative where their argument is zero.
SINGULAR: tuple[Any, ...] = (
    *(torch.sqrt, torch.rsqrt, torch.log, torch.log2, torch.log10, torch.reciprocal),
    *("sqrt", "sqrt_", "rsqrt", "rsqrt_", "log", "log2", "log10", "reciprocal"),
)
# What such an operand is computed by, from what may be quantized.
COMPUTING: tuple[Any, ...] = (
    *(*POWERS, *SINGULAR, torch.square, "square", torch.abs, "abs", torch.exp, "exp"),
    *(torch.mean, "mean", torch.sum, "sum", torch.var, "var", torch.std, "std"),
    *(torch.norm, "norm", torch.linalg.vector_norm, torch.linalg.norm),
    *(torch.clamp, torch.clamp_min, torch.clip, torch.maximum),
    *("clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "maximum"),
    *(nn.AvgPool2d, F.avg_pool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
    *(nn.Flatten, torch.flatten, torch.squeeze, torch.unsqueeze, torch.reshape),
    *("flatten", "squeeze", "unsqueeze", "view", "reshape", "expand", "expand_as"),
    *(operator.getitem, operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"),
)
# The same where all but the first argument are constants.
COMPUTING_WITH_CONSTANTS: tuple[Any, ...] = (
    *(*ADDITIONS, operator.sub, torch.sub, "sub", operator.mul, torch.mul, "mul"),
    *(*DIVISIONS,),
)


def float_operands(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose results are operands as above, or are on the way to one.

    Not those that a quantized layer reads as well.
    """
    found: set[fx.Node] = set()
    waiting = [operand for node in graph.graph.nodes for operand in operands_of(graph, node)]
    while waiting:
        node = waiting.pop()
        if node in found or not computes(graph, node) or is_read_by_a_layer(graph, node):
            continue
        found.add(node)
        waiting += node.all_input_nodes
    return found


def operands_of(graph: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the operands of a node that must not become zero by rounding."""
    arguments = [*node.args, *node.kwargs.values()]
    if is_one_of(graph, node, SINGULAR) or has_a_root(graph, node):
        yield from (a for a in arguments[:1] if isinstance(a, fx.Node))
    elif is_one_of(graph, node, DIVISIONS):
        yield from (a for a in arguments[1:2] if isinstance(a, fx.Node))


def has_a_root(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is a power whose exponent may be below 1."""
    if not is_one_of(graph, node, POWERS):
        return False
    exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
    return not (isinstance(exponent, int | float) and exponent >= 1)


def computes(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is one of those that operands are computed by."""
    if is_one_of(graph, node, COMPUTING):
        return True
    others = node.all_input_nodes[1:]
    is_simple = is_one_of(graph, node, COMPUTING_WITH_CONSTANTS)
    return is_simple and all(other.op == "get_attr" for other in others)


def is_read_by_a_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a quantized layer takes a node's result."""
    return any(isinstance(module_of(graph, user), QuantizedLayer) for user in node.users)
