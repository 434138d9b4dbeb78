"""Activation functions as ONNX nodes."""

import math
from typing import Any

from torch import fx

from zscgan_ext.export.onnx.call import Call, Operator, known, reshaped
from zscgan_ext.export.onnx.graph import PendingClamp, QuantizedValue, Value


def rectify(low: float, high: float) -> Operator:
    """Return an operator that clamps between two bounds."""
    return lambda call: PendingClamp(call.floating(), low, high)


def hardtanh(call: Call) -> Value:
    """Clamp between bounds that are options."""
    low, high = call.option("min_val", -1.0), call.option("max_val", 1.0)
    return PendingClamp(call.floating(), low, high)


def clamp(call: Call) -> Value:
    """Clamp between bounds, numbers or tensors, of which one may be missing."""
    return between(call, call.raw("min"), call.raw("max"))


def between(call: Call, low: Any, high: Any) -> Value:
    """Clamp between two bounds: part of a quantizer behind it where they are numbers."""
    x = call.floating()
    if not call.is_tensor(low) and not call.is_tensor(high):
        low, high = (fx.node.map_arg(bound, call.resolved) for bound in (low, high))
        return PendingClamp(
            x, -math.inf if low is None else low, math.inf if high is None else high
        )
    for op, bound in (("Max", low), ("Min", high)):
        if bound is not None:
            x = call.add(op, [x, call.as_floating(bound)])
    return x


def option_node(op: str, attribute: str, name: str, default: float) -> Operator:
    """Return an operator that is one ONNX node with one option."""

    def add(call: Call) -> Value:
        options: dict[str, Any] = {attribute: float(call.option(name, default))}
        return call.add(op, [call.floating()], **options)

    return add


def silu(call: Call) -> Value:
    """Multiply with the sigmoid."""
    x = call.floating()
    return call.add("Mul", [x, call.add("Sigmoid", [x], "sigmoid")])


def gelu(call: Call) -> Value:
    """Apply GELU, exact or through tanh."""
    approximate = call.option("approximate", "none")
    return call.add("Gelu", [call.floating()], approximate=approximate)


def prelu(call: Call) -> Value:
    """Multiply negative values with the slope of their channel."""
    slope, x = call.tensor("weight"), call.floating()
    assert slope is not None
    rank = len(call.input_shape())
    shape = (-1, *[1] * (rank - 2)) if rank > 1 else (-1,)
    return call.add("PRelu", [x, reshaped(call, slope, shape)])


def softplus(call: Call) -> Value:
    """Apply softplus, which is the identity above a threshold."""
    x = call.floating()
    beta, threshold = call.option("beta", 1), call.option("threshold", 20)
    scaled = x if beta == 1 else call.add("Mul", [x, call.number("beta", beta)], "scaled")
    smooth = call.add("Softplus", [scaled])
    if beta != 1:
        smooth = call.add("Div", [smooth, call.number("beta", beta)])
    if threshold == 20:  # torch's own, above which float32 shows no difference
        return smooth
    above = call.add("Greater", [scaled, call.number("threshold", threshold)], "above")
    return call.add("Where", [above, x, smooth])


def log_sigmoid(call: Call) -> Value:
    """Apply the logarithm of the sigmoid."""
    negative = call.add("Neg", [call.floating()], "negative")
    return call.add("Neg", [call.add("Softplus", [negative], "softplus")])


def tanh_shrink(call: Call) -> Value:
    """Subtract the hyperbolic tangent."""
    x = call.floating()
    return call.add("Sub", [x, call.add("Tanh", [x], "tanh")])


def shrink(moves: bool) -> Operator:
    """Return an operator that makes values near zero zero, and moves others or not."""

    def add(call: Call) -> Value:
        bound = float(call.option("lambd", 0.5))
        return call.add("Shrink", [call.floating()], lambd=bound, bias=bound if moves else 0.0)

    return add


def threshold(call: Call) -> Value:
    """Put a number in the place of values up to a threshold."""
    x = call.floating()
    above = call.add("Greater", [x, call.number("threshold", call.option("threshold"))], "above")
    return call.add("Where", [above, x, call.number("value", call.option("value"))])


def glu(call: Call) -> Value:
    """Multiply one half with the sigmoid of the other."""
    dimension = call.option("dim", -1)
    half = known(call.shape()[dimension])
    sizes = call.integers("sizes", [half, half])
    names = [f"{call.name}_values", f"{call.name}_gates"]
    values, gates = call.graph.nodes_of("Split", [call.floating(), sizes], names, axis=dimension)
    return call.add("Mul", [values, call.add("Sigmoid", [gates], "sigmoid")])


def softmax(call: Call) -> Value:
    """Apply softmax along a dimension."""
    return softmax_along(call, call.floating(), softmax_dimension(call))


def softmin(call: Call) -> Value:
    """Apply softmax to negative values."""
    negative = call.add("Neg", [call.floating()], "negative")
    return softmax_along(call, negative, softmax_dimension(call))


def log_softmax(call: Call) -> Value:
    """Apply the logarithm of softmax along a dimension."""
    return call.add("LogSoftmax", [call.floating()], axis=softmax_dimension(call))


def softmax_dimension(call: Call) -> int:
    """Return the dimension along which softmax works, which torch chooses where none is given."""
    dimension = call.option("dim")
    if isinstance(dimension, int):
        return dimension
    return 0 if len(call.input_shape()) in (0, 1, 3) else 1


def softmax_along(call: Call, x: str, dimension: int) -> str:
    """Add softmax.

    In steps for quantized values: there ONNX Runtime would put an integer kernel in the place of
    a Softmax node, which rounds otherwise.
    """
    if not isinstance(call.input(), QuantizedValue):
        return call.add("Softmax", [x], axis=dimension)
    axes = call.integers("axes", [dimension])
    largest = call.add("ReduceMax", [x, axes], "largest")
    powers = call.add("Exp", [call.add("Sub", [x, largest], "shifted")], "powers")
    return call.add("Div", [powers, call.add("ReduceSum", [powers, axes], "total")])
