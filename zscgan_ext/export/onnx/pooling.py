"""Pooling as ONNX nodes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zscgan_ext.export.onnx.call import (
    Call,
    Operator,
    as_list,
    known,
    preserving_qparams,
    reshaped,
    values_only,
)
from zscgan_ext.export.onnx.graph import QuantizedValue, Value


@dataclass(frozen=True)
class Windows:
    """Windows that slide over images, with one number for each dimension."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]  # before each dimension, and behind it
    dilation: list[int]
    # How far the last window reaches beyond the padding, where `ceil_mode` adds one.
    overhang: list[int]

    def attributes(self) -> dict[str, Any]:
        """Return what ONNX calls them; the overhang is padding there."""
        behind = [p + o for p, o in zip(self.padding, self.overhang, strict=True)]
        return {
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "pads": [*self.padding, *behind],
        }


def windows_of(call: Call, dimensions: int, options: tuple[Any, ...]) -> Windows:
    """Return the windows of a kernel size, stride, padding and dilation as torch takes them."""
    kernel, stride, padding, dilation = (
        each(kernel_or_other, dimensions) for kernel_or_other in (options[0], *options[1:])
    )
    before, after = call.input_shape()[-dimensions:], call.shape()[-dimensions:]
    overhang = []
    for i in range(dimensions):
        covered = (known(after[i]) - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1
        overhang.append(max(0, covered - known(before[i]) - 2 * padding[i]))
    return Windows(kernel, stride, padding, dilation, overhang)


def each(value: Any, dimensions: int) -> list[int]:
    """Return one number for each dimension."""
    numbers = as_list(value)
    return [int(v) for v in numbers * (dimensions // len(numbers))]


def with_batch(call: Call, dimensions: int, add: Callable[[str], str]) -> Callable[[str], str]:
    """Return what pools tensors without a batch too, whose first dimension are channels then."""
    if len(call.input_shape()) == dimensions + 2:
        return add

    def add_all(x: str) -> str:
        x = call.add("Unsqueeze", [x, call.integers("batch", [0])], "batch")
        return reshaped(call, add(x), call.shape())

    return add_all


def average_pool(dimensions: int) -> Operator:
    """Return an operator that averages windows."""

    def add(call: Call) -> Value:
        kernel = call.option("kernel_size")
        stride = call.option("stride") or kernel
        windows = windows_of(call, dimensions, (kernel, stride, call.option("padding", 0), 1))
        counts_padding = bool(call.option("count_include_pad", True))
        divisor = call.option("divisor_override") if dimensions > 1 else None
        average: Callable[[str], str] = lambda x: average_windows(  # noqa: E731
            call, x, windows, counts_padding, divisor
        )
        return with_batch(call, dimensions, average)(call.floating())

    return add


def average_windows(
    call: Call, x: str, windows: Windows, counts_padding: bool = True, divisor: int | None = None
) -> str:
    """Add averages of windows.

    By products with constants where the last window reaches beyond the padding: there ONNX and
    torch count otherwise, and the integer kernel of ONNX Runtime is wrong.
    """
    if divisor is None and not any(windows.overhang):
        counts = int(counts_padding)
        return call.add("AveragePool", [x], count_include_pad=counts, **windows.attributes())
    dimensions = len(windows.kernel)
    before, after = call.input_shape()[-dimensions:], call.shape()[-dimensions:]
    for i in range(dimensions):
        size, count = known(before[i]), known(after[i])
        matrix = np.zeros((count, size), np.float32)
        for index in range(count):
            start = index * windows.stride[i] - windows.padding[i]
            end = min(start + windows.kernel[i], size + windows.padding[i])
            counted = end - start if counts_padding else min(end, size) - max(start, 0)
            weight = 1 / counted if divisor is None else (1 if i else 1 / divisor)
            matrix[index, max(start, 0) : min(end, size)] = weight
        x = multiply_along(call, x, i - dimensions, matrix)
    return x


def multiply_along(call: Call, x: str, axis: int, matrix: np.ndarray) -> str:
    """Multiply every vector along one of the last three dimensions with a constant matrix."""
    if axis == -2:
        return call.add("MatMul", [call.graph.initializer(f"{call.name}_matrix", matrix), x])
    right = call.graph.initializer(f"{call.name}_matrix", matrix.T)
    if axis == -1:
        return call.add("MatMul", [x, right])
    order = [0, 1, 4, 3, 2]  # of three dimensions behind batch and channels
    x = call.add("Transpose", [x], "swapped", perm=order)
    x = call.add("MatMul", [x, right])
    return call.add("Transpose", [x], perm=order)


def power_average_pool(dimensions: int) -> Operator:
    """Return an operator that takes the norm of windows (`lp_pool2d`)."""

    def add(call: Call) -> Value:
        kernel = call.option("kernel_size")
        windows = windows_of(call, dimensions, (kernel, call.option("stride") or kernel, 0, 1))
        norm = float(call.option("norm_type"))
        count = math.prod(windows.kernel)

        def norms(x: str) -> str:
            x = call.add("Pow", [x, call.number("norm", norm)], "powers")
            x = average_windows(call, x, windows)
            x = call.add("Mul", [x, call.number("count", count)], "sums")
            return call.add("Pow", [x, call.number("inverse", 1 / norm)])

        return with_batch(call, dimensions, norms)(call.floating())

    return add


def maximum_pool(dimensions: int) -> Operator:
    """Return an operator that takes the maxima of windows, of integers where there are any."""

    def add(call: Call) -> Value:
        kernel = call.option("kernel_size")
        stride, padding = call.option("stride") or kernel, call.option("padding", 0)
        options = (kernel, stride, padding, call.option("dilation", 1))
        windows = windows_of(call, dimensions, options)
        lowest = np.uint8(0) if isinstance(call.input(), QuantizedValue) else np.float32(-math.inf)

        def maxima(x: str) -> str:
            slid = windows
            behind = map(sum, zip(windows.padding, windows.overhang, strict=True))
            if any(p >= k for p, k in zip(behind, windows.kernel, strict=True)):
                # More than ONNX Runtime pads by itself, with a dilation.
                pads = call.integers("pads", [0] * (dimensions + 4) + windows.overhang)
                value = call.graph.initializer(f"{call.name}_lowest", lowest)
                x = call.add("Pad", [x, pads, value], "padded")
                slid = replace(windows, overhang=[0] * dimensions)
            return call.add("MaxPool", [x], dilations=slid.dilation, **slid.attributes())

        return values_only(call, preserving_qparams(call, with_batch(call, dimensions, maxima)))

    return add


def adaptive_average_pool(dimensions: int) -> Operator:
    """Return an operator that averages as many windows as asked for, which cover the image."""

    def add(call: Call) -> Value:
        after = call.shape()[-dimensions:]
        kernel = covering_window(call, dimensions)

        def averages(x: str) -> str:
            if all(size == 1 for size in after):
                return call.add("GlobalAveragePool", [x])
            if kernel is not None:
                return call.add("AveragePool", [x], kernel_shape=kernel, strides=kernel)
            for axis in range(-dimensions, 0):
                matrix = adaptive_averages(*sizes_along(call, axis))
                x = multiply_along(call, x, axis, matrix)
            return x

        return with_batch(call, dimensions, averages)(call.floating())

    return add


def sizes_along(call: Call, axis: int) -> tuple[int, int]:
    """Return the sizes of a dimension before and after the node."""
    return known(call.input_shape()[axis]), known(call.shape()[axis])


def adaptive_windows(size: int, count: int) -> list[tuple[int, int]]:
    """Return start and end of each window of adaptive pooling."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def adaptive_averages(size: int, count: int) -> np.ndarray:
    """Return the matrix [count, size] that averages the windows of adaptive pooling."""
    matrix = np.zeros((count, size), np.float32)
    for index, (start, end) in enumerate(adaptive_windows(size, count)):
        matrix[index, start:end] = 1 / (end - start)
    return matrix


def adaptive_maximum_pool(dimensions: int) -> Operator:
    """Return an operator that takes the maxima of windows that cover the image."""

    def add(call: Call) -> Value:
        kernel = covering_window(call, dimensions)

        def maxima(x: str) -> str:
            if kernel is not None:
                return call.add("MaxPool", [x], kernel_shape=kernel, strides=kernel)
            for axis in range(2, dimensions + 2):
                x = maxima_along(call, x, axis, *sizes_along(call, axis - dimensions - 2))
            return x

        return values_only(call, preserving_qparams(call, with_batch(call, dimensions, maxima)))

    return add


def maxima_along(call: Call, x: str, axis: int, size: int, count: int) -> str:
    """Take maxima of windows of unequal size: a shorter one repeats its last element."""
    windows = adaptive_windows(size, count)
    longest = max(end - start for start, end in windows)
    indices = [[min(s + i, e - 1) for i in range(longest)] for s, e in windows]
    x = call.add("Gather", [x, call.integers("windows", indices)], "windows", axis=axis)
    return call.add("ReduceMax", [x, call.integers("axes", [axis + 1])], keepdims=0)


def covering_window(call: Call, dimensions: int) -> list[int] | None:
    """Return the size of windows that cover the image; None where they are not of one size."""
    sizes = [sizes_along(call, axis) for axis in range(-dimensions, 0)]
    if any(old % new for old, new in sizes):
        return None
    return [old // new for old, new in sizes]
