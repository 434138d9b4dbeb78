"""Pooling and reductions over dimensions, as ONNX nodes."""

from typing import Any

import numpy as np

from zscgan_ext.export.onnx_call import Call, Operator, on_grid, reshaped
from zscgan_ext.export.onnx_graph import Value


def average_pool(call: Call) -> Value:
    """Average windows."""
    if call.option(6, "divisor_override") is not None:
        raise call.unsupported("has a divisor_override")
    counts_padding = call.option(5, "count_include_pad", True)
    return call.graph.node(
        "AveragePool",
        [call.floating()],
        call.name,
        **window(call, ceil_mode_index=4),
        count_include_pad=int(counts_padding),
    )


def maximum_pool(call: Call) -> Value:
    """Take the maxima of windows, of integers where the input is on a grid."""
    attributes = window(call, ceil_mode_index=5)
    dilation = pair(call.option(4, "dilation", 1))
    if call.option(6, "return_indices", False):
        raise call.unsupported("returns indices")
    return on_grid(
        call,
        lambda x: call.graph.node("MaxPool", [x], call.name, **attributes, dilations=dilation),
    )


def window(call: Call, ceil_mode_index: int) -> dict[str, Any]:
    """Return the attributes of windows that slide over an image."""
    kernel = pair(call.option(1, "kernel_size"))
    stride = call.option(2, "stride") or kernel
    return {
        "kernel_shape": kernel,
        "strides": pair(stride),
        "pads": pair(call.option(3, "padding", 0)) * 2,
        "ceil_mode": int(call.option(ceil_mode_index, "ceil_mode", False)),
    }


def pair(value: Any) -> list[int]:
    """Return one number twice, or both of two."""
    return [int(v) for v in value] if isinstance(value, tuple | list) else [int(value)] * 2


def adaptive_average_pool(call: Call) -> Value:
    """Average windows that cover the image."""
    if call.shape()[-2:] == (1, 1):
        return call.graph.node("GlobalAveragePool", [call.floating()], call.name)
    kernel = covering_window(call)
    if kernel is None:
        return average_by_matrices(call)
    return call.graph.node(
        "AveragePool", [call.floating()], call.name, kernel_shape=kernel, strides=kernel
    )


def average_by_matrices(call: Call) -> Value:
    """Average windows of unequal size: rows and columns by a product with constants."""
    before, after = call.input_shape()[-2:], call.shape()[-2:]
    x = call.floating()
    rows, columns = (
        averages(int(old or 0), int(new or 0)) for old, new in zip(before, after, strict=True)
    )
    left = call.graph.initializer(f"{call.name}_rows", rows)
    right = call.graph.initializer(f"{call.name}_columns", columns.T)
    x = call.graph.node("MatMul", [left, x], f"{call.name}_of_rows")
    return call.graph.node("MatMul", [x, right], call.name)


def averages(size: int, count: int) -> np.ndarray:
    """Return the matrix [count, size] that averages the windows of adaptive pooling."""
    matrix = np.zeros((count, size), np.float32)
    for index in range(count):
        start, end = index * size // count, -(-(index + 1) * size // count)
        matrix[index, start:end] = 1 / (end - start)
    return matrix


def adaptive_maximum_pool(call: Call) -> Value:
    """Take the maxima of windows of equal size that cover the image."""
    kernel = covering_window(call)
    if kernel is None:
        raise call.unsupported("takes maxima of windows of unequal size")
    return on_grid(
        call,
        lambda x: call.graph.node("MaxPool", [x], call.name, kernel_shape=kernel, strides=kernel),
    )


def covering_window(call: Call) -> list[int] | None:
    """Return the size of windows that cover the image; None where they are not of one size."""
    pairs = zip(call.input_shape()[-2:], call.shape()[-2:], strict=True)
    sizes = [(int(old or 0), int(new or 0)) for old, new in pairs]  # only the batch has no size
    if any(old % new for old, new in sizes):
        return None
    return [old // new for old, new in sizes]


def mean(call: Call) -> Value:
    """Average over dimensions; over the image by the node that has an integer kernel."""
    axes, keeps = reduced(call)
    if len(call.input_shape()) == 4 and axes == [2, 3]:
        pooled = call.graph.node("GlobalAveragePool", [call.floating()], call.name)
        return pooled if keeps else reshaped(call, pooled, call.shape())
    return reduce("ReduceMean")(call)


def reduced(call: Call) -> tuple[list[int], bool]:
    """Return the dimensions that a reduction takes together, and whether they stay as one."""
    dimensions = call.argument(1, "dim")
    rank = len(call.input_shape())
    dimensions = [dimensions] if isinstance(dimensions, int) else dimensions
    axes = sorted(d % rank for d in (range(rank) if dimensions is None else dimensions))
    return axes, bool(call.argument(2, "keepdim", False))


def reduce(op: str) -> Operator:
    """Return an operator that takes dimensions together."""

    def add(call: Call) -> Value:
        axes, keeps = reduced(call)
        axes_name = call.graph.initializer(f"{call.name}_axes", np.array(axes, np.int64))
        return call.graph.node(op, [call.floating(), axes_name], call.name, keepdims=int(keeps))

    return add
