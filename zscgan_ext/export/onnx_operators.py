"""What a classifier computes between its layers, as ONNX nodes."""

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import stochastic_depth

from zscgan_ext.classifiers.graph import attribute_of

RELU = (F.relu,)
RELU6 = (F.relu6,)
ADDITIONS = (operator.add,)
from zscgan_ext.export.onnx_call import Call, Operator, on_grid, reshaped
from zscgan_ext.export.onnx_graph import Grid, Rectified, Value
from zscgan_ext.export.onnx_pooling import (
    adaptive_average_pool,
    adaptive_maximum_pool,
    average_pool,
    maximum_pool,
    mean,
    reduce,
)
from zscgan_ext.export.onnx_shaping import (
    einsum,
    expand,
    group_norm,
    layer_norm,
    pad,
    pick,
    resize,
    stack,
    unbind,
)


def unary(op: str, **attributes: Any) -> Operator:
    """Return an operator that is one ONNX node of one input."""
    return lambda call: call.graph.node(op, [call.floating()], call.name, **attributes)


def binary(op: str) -> Operator:
    """Return an operator that is one ONNX node of two inputs."""

    def add(call: Call) -> Value:
        if call.node.kwargs.get("alpha", 1) != 1 or call.node.kwargs.get("rounding_mode"):
            raise call.unsupported("has an option that is not exported")
        return call.graph.node(op, [call.floating(0), call.floating(1)], call.name)

    return add


def rectify(low: float, high: float) -> Operator:
    """Return an operator that clamps between two bounds."""
    return lambda call: Rectified(call.graph.floating(call.input()), low, high)


def hardtanh(call: Call) -> Value:
    """Clamp between bounds that are options."""
    low, high = call.option(1, "min_val", -1.0), call.option(2, "max_val", 1.0)
    return Rectified(call.graph.floating(call.input()), low, high)


def silu(call: Call) -> Value:
    """Multiply with the sigmoid."""
    x = call.floating()
    sigmoid = call.graph.node("Sigmoid", [x], f"{call.name}_sigmoid")
    return call.graph.node("Mul", [x, sigmoid], call.name)


def gelu(call: Call) -> Value:
    """Apply GELU, exact or through tanh."""
    approximate = call.option(1, "approximate", "none")
    return call.graph.node("Gelu", [call.floating()], call.name, approximate=approximate)


def leaky_relu(call: Call) -> Value:
    """Multiply negative values with a slope."""
    slope = call.option(1, "negative_slope", 0.01)
    return call.graph.node("LeakyRelu", [call.floating()], call.name, alpha=float(slope))


def elu(call: Call) -> Value:
    """Apply ELU."""
    alpha = call.option(1, "alpha", 1.0)
    return call.graph.node("Elu", [call.floating()], call.name, alpha=float(alpha))


def prelu(call: Call) -> Value:
    """Multiply negative values with the slope of their channel."""
    assert isinstance(call.module, nn.PReLU)
    spread = call.module.weight.reshape(-1, *[1] * (len(call.input_shape()) - 2))
    slope = call.graph.initializer(f"{call.name}_slope", spread)
    return call.graph.node("PRelu", [call.floating(), slope], call.name)


def softplus(call: Call) -> Value:
    """Apply softplus with torch's own options, the only ones that ONNX has."""
    if call.option(1, "beta", 1) != 1 or call.option(2, "threshold", 20) != 20:
        raise call.unsupported("has a beta or threshold of its own")
    return unary("Softplus")(call)


def softmax(call: Call) -> Value:
    """Apply softmax along a dimension.

    Between two quantizers in steps: there ONNX Runtime would put an integer kernel in the place of
    a Softmax node, which rounds otherwise.
    """
    dimension = call.option(1, "dim")
    if dimension is None:
        raise call.unsupported("has no dimension")
    if not isinstance(call.input(), Grid):
        return call.graph.node("Softmax", [call.floating()], call.name, axis=dimension)
    graph, x = call.graph, call.floating()
    axes = graph.initializer(f"{call.name}_axes", np.array([dimension], np.int64))
    largest = graph.node("ReduceMax", [x, axes], f"{call.name}_largest")
    shifted = graph.node("Sub", [x, largest], f"{call.name}_shifted")
    powers = graph.node("Exp", [shifted], f"{call.name}_powers")
    total = graph.node("ReduceSum", [powers, axes], f"{call.name}_total")
    return graph.node("Div", [powers, total], call.name)


def concatenate(call: Call) -> Value:
    """Join tensors along a dimension."""
    tensors = [call.graph.floating(value) for value in call.argument(0, "tensors")]
    return call.graph.node("Concat", tensors, call.name, axis=call.argument(1, "dim", 0))


def reshape(call: Call) -> Value:
    """Give the shape that a trial run gave."""
    return on_grid(call, lambda x: reshaped(call, x, call.shape()))


def transpose(call: Call) -> Value:
    """Swap two dimensions."""
    order = list(range(len(call.input_shape())))
    first, second = call.argument(1, "dim0"), call.argument(2, "dim1")
    order[first], order[second] = order[second], order[first]
    return on_grid(call, lambda x: call.graph.node("Transpose", [x], call.name, perm=order))


def permute(call: Call) -> Value:
    """Order dimensions anew."""
    first = call.argument(1, "dims")
    rest = range(2, len(call.node.args))
    order = [first, *map(call.argument, rest)] if isinstance(first, int) else first
    order = [d % len(order) for d in order]
    return on_grid(call, lambda x: call.graph.node("Transpose", [x], call.name, perm=order))


def channel_shuffle(call: Call) -> Value:
    """Interleave groups of channels."""
    assert isinstance(call.module, nn.ChannelShuffle)
    _, channels, height, width = call.input_shape()
    groups = call.module.groups
    grouped = (None, groups, int(channels or 0) // groups, height, width)

    def add(x: str) -> str:
        x = reshaped(call, x, grouped)
        x = call.graph.node("Transpose", [x], call.name, perm=[0, 2, 1, 3, 4])
        return reshaped(call, x, call.shape())

    return on_grid(call, add)


def split(call: Call) -> Value:
    """Cut a tensor into several, as a trial run did."""
    dimension = call.argument(2, "dim", 0)
    parts = call.results[call.node]
    if any(part.sizes[dimension] is None for part in parts):
        raise call.unsupported("cuts the batch, whose size is not known")
    sizes = np.array([part.sizes[dimension] for part in parts], np.int64)
    sizes_name = call.graph.initializer(f"{call.name}_sizes", sizes)
    value = call.input()
    x = value.integers if isinstance(value, Grid) else call.graph.floating(value)
    names = [f"{call.name}_{index}" for index in range(len(parts))]
    outputs = call.graph.nodes_of("Split", [x, sizes_name], names, axis=dimension)
    if not isinstance(value, Grid):
        return list(outputs)
    grid = (value.scale_name, value.zero_point_name, value.scale, value.zero_point)
    return [Grid(output, *grid) for output in outputs]


def same(call: Call) -> Value:
    """Pass the input on."""
    return call.input()


def constant(call: Call, owner: fx.GraphModule) -> Value:
    """Store a tensor of the classifier."""
    return call.graph.initializer(call.name, attribute_of(owner, call.node).detach().float())


BY_OPERATOR: tuple[tuple[Operator, tuple[Any, ...]], ...] = (
    (rectify(0, float("inf")), RELU),
    (rectify(0, 6), RELU6),
    (hardtanh, (nn.Hardtanh, F.hardtanh)),
    (unary("Sigmoid"), (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid")),
    (unary("Tanh"), (nn.Tanh, torch.tanh, F.tanh, "tanh")),
    (unary("HardSigmoid", alpha=1 / 6, beta=0.5), (nn.Hardsigmoid, F.hardsigmoid)),
    (unary("HardSwish"), (nn.Hardswish, F.hardswish)),
    (unary("Mish"), (nn.Mish, F.mish)),
    (silu, (nn.SiLU, F.silu)),
    (gelu, (nn.GELU, F.gelu)),
    (leaky_relu, (nn.LeakyReLU, F.leaky_relu)),
    (elu, (nn.ELU, F.elu)),
    (prelu, (nn.PReLU,)),
    (unary("Neg"), (operator.neg, torch.neg, "neg")),
    (unary("Exp"), (torch.exp, "exp")),
    (unary("Sqrt"), (torch.sqrt, "sqrt")),
    (softplus, (nn.Softplus, F.softplus)),
    (binary("Pow"), (operator.pow, torch.pow, "pow")),
    (binary("MatMul"), (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm")),
    (einsum, (torch.einsum,)),
    (layer_norm, (nn.LayerNorm,)),
    (group_norm, (nn.GroupNorm,)),
    (pad, (F.pad, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)),
    (resize, (F.interpolate, nn.Upsample, nn.UpsamplingNearest2d)),
    (expand, ("expand", "expand_as")),
    (stack, (torch.stack,)),
    (unbind, (torch.unbind, "unbind")),
    (softmax, (nn.Softmax, torch.softmax, F.softmax, "softmax")),
    (binary("Add"), ADDITIONS),
    (binary("Sub"), (operator.sub, operator.isub, torch.sub, "sub", "sub_")),
    (binary("Mul"), (operator.mul, operator.imul, torch.mul, "mul", "mul_")),
    (binary("Div"), (operator.truediv, operator.itruediv, torch.div, "div", "div_")),
    (concatenate, (torch.cat, torch.concat)),
    (average_pool, (nn.AvgPool2d, F.avg_pool2d)),
    (adaptive_average_pool, (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)),
    (adaptive_maximum_pool, (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d)),
    (mean, (torch.mean, "mean")),
    (reduce("ReduceSum"), (torch.sum, "sum")),
    (reduce("ReduceMax"), (torch.amax, "amax")),
    (maximum_pool, (nn.MaxPool2d, F.max_pool2d)),
    (
        reshape,
        (
            *(nn.Flatten, nn.Unflatten, "unflatten", torch.flatten, torch.reshape, torch.squeeze),
            *(torch.unsqueeze, "flatten", "view", "reshape", "squeeze", "unsqueeze"),
        ),
    ),
    (transpose, (torch.transpose, torch.swapaxes, "transpose", "swapaxes")),
    (permute, (torch.permute, "permute")),
    (channel_shuffle, (nn.ChannelShuffle,)),
    (split, (torch.chunk, torch.split, "chunk", "split")),
    (pick, (operator.getitem,)),
    (
        same,
        (
            *(nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, stochastic_depth),
            *("contiguous", "detach", "clone"),
        ),
    ),
)
OPERATORS: dict[Any, Operator] = {
    kind: operator_ for operator_, kinds in BY_OPERATOR for kind in kinds
}
