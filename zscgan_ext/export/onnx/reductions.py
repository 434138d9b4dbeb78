"""Reductions over dimensions as ONNX nodes."""

import math
from typing import Any

from zscgan_ext.export.onnx.call import (
    Call,
    Operator,
    as_list,
    known,
    preserving_qparams,
    reshaped,
    values_only,
)
from zscgan_ext.export.onnx.graph import Value


def mean(call: Call) -> Value:
    """Average over dimensions; over the image by the node that has an integer kernel."""
    axes, keeps = reduced(call)
    if len(call.input_shape()) == 4 and axes == [2, 3]:
        pooled = call.add("GlobalAveragePool", [call.floating()])
        return pooled if keeps else reshaped(call, pooled, call.shape())
    return reduce("ReduceMean")(call)


def reduced(call: Call) -> tuple[list[int], bool]:
    """Return the dimensions that a reduction takes together, and whether they stay as one."""
    dimensions = call.argument("dim")
    rank = len(call.input_shape())
    # No dimensions at all are all of them.
    axes = range(rank) if dimensions in (None, (), []) else as_list(dimensions)
    axes = sorted(axis % rank for axis in axes)
    return axes, bool(call.argument("keepdim", False))


def reduce(op: str) -> Operator:
    """Return an operator that takes dimensions together."""

    def add(call: Call) -> Value:
        axes, keeps = reduced(call)
        return reduce_over(call, op, call.floating(), axes, keeps)

    return add


def reduce_over(
    call: Call, op: str, x: str, axes: list[int], keeps: bool, part: str = "reduced"
) -> str:
    """Add a reduction over some dimensions."""
    return call.add(op, [x, call.integers("axes", axes)], part, keepdims=int(keeps))


def extremes(op: str) -> Operator:
    """Return an operator that takes maxima or minima over dimensions, also of integers."""

    def add(call: Call) -> Value:
        axes, keeps = reduced(call)
        value = preserving_qparams(call, lambda x: reduce_over(call, op, x, axes, keeps))
        return values_only(call, value)

    return add


def position(op: str) -> Operator:
    """Return an operator that gives the index of the largest or smallest value."""

    def add(call: Call) -> Value:
        dimension = call.argument("dim")
        if dimension is None:
            raise call.unsupported("takes all dimensions together, of all images")
        keeps = int(call.argument("keepdim", False))
        return call.add(op, [call.floating()], axis=dimension, keepdims=keeps)

    return add


def variance(call: Call) -> Value:
    """Take the variance over dimensions."""
    return variance_and_mean(call)[0]


def standard_deviation(call: Call) -> Value:
    """Take the standard deviation over dimensions."""
    return call.add("Sqrt", [variance_and_mean(call)[0]])


def variance_with_mean(call: Call) -> Value:
    """Take the variance and the mean over dimensions."""
    return list(variance_and_mean(call))


def standard_deviation_with_mean(call: Call) -> Value:
    """Take the standard deviation and the mean over dimensions."""
    spread, average = variance_and_mean(call)
    return [call.add("Sqrt", [spread]), average]


def variance_and_mean(call: Call) -> tuple[str, str]:
    """Add variance and mean; the count of elements is one less by default."""
    shape = call.input_shape()
    axes, keeps, correction = spread_options(call)
    if any(shape[axis] is None for axis in axes):
        raise call.unsupported("takes all images together, whose count is not known")
    x = call.floating()
    count = math.prod(known(shape[axis]) for axis in axes)
    average = reduce_over(call, "ReduceMean", x, axes, True, "mean")
    centered = call.add("Sub", [x, average], "centered")
    squares = call.add("Mul", [centered, centered], "squares")
    total = reduce_over(call, "ReduceSum", squares, axes, keeps, "total")
    spread = call.add("Div", [total, call.number("count", count - correction)], "variance")
    if not keeps:
        average = reduce_over(call, "ReduceMean", x, axes, False, "mean")
    return spread, average


def spread_options(call: Call) -> tuple[list[int], bool, float]:
    """Return dimensions, whether they stay, and by how much less than their count is divided."""
    axes, keeps = reduced(call)
    unbiased: Any = call.argument("unbiased")
    correction = call.argument("correction")
    if unbiased is not None:
        return axes, keeps, float(bool(unbiased))
    return axes, keeps, 1.0 if correction is None else float(correction)


def vector_norm(call: Call) -> Value:
    """Take the norm of vectors along dimensions (`torch.norm`, `torch.linalg.vector_norm`)."""
    order = call.argument("p", 2)
    axes, keeps = reduced(call)
    return norm_along(call, call.floating(), order, axes, keeps)


def norm_along(call: Call, x: str, order: Any, axes: list[int], keeps: bool) -> str:
    """Add a norm of some order."""
    order = 2.0 if order in (None, "fro") else float(order)
    if order in (1, 2):
        return reduce_over(call, f"ReduceL{order:.0f}", x, axes, keeps)
    x = call.add("Abs", [x], "magnitudes")
    if math.isinf(order):
        return reduce_over(call, "ReduceMax" if order > 0 else "ReduceMin", x, axes, keeps)
    if order == 0:
        raise call.unsupported("counts what is not zero")
    powers = call.add("Pow", [x, call.number("order", order)], "powers")
    total = reduce_over(call, "ReduceSum", powers, axes, keeps, "total")
    return call.add("Pow", [total, call.number("inverse", 1 / order)])


def largest_values(call: Call) -> Value:
    """Take the largest or smallest values along a dimension (`topk`)."""
    count, dimension = call.argument("k"), call.argument("dim", -1)
    return sorted_values(call, count, dimension, bool(call.argument("largest", True)))


def sort(call: Call) -> Value:
    """Sort along a dimension."""
    dimension = call.argument("dim", -1)
    count = call.input_shape()[dimension]
    if count is None:
        raise call.unsupported("sorts images, whose count is not known")
    return sorted_values(call, count, dimension, bool(call.argument("descending", False)))


def sorted_values(call: Call, count: int, dimension: int, largest: bool) -> Value:
    """Add the first values along a dimension, and their indices."""
    inputs = [call.floating(), call.integers("count", [count])]
    names = [call.name, f"{call.name}_indices"]
    options = {"axis": dimension, "largest": int(largest)}
    return list(call.graph.nodes_of("TopK", inputs, names, **options))


def cumulative_sum(call: Call) -> Value:
    """Sum up along a dimension."""
    axis = call.integers("axis", call.argument("dim"))
    return call.add("CumSum", [call.floating(), axis])
