"""Ordering, joining, repeating and padding of tensors as ONNX nodes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from zscgan_ext.classifiers.trials import Varying
from zscgan_ext.export.onnx.call import Call, as_list, known, preserving_qparams, reshaped
from zscgan_ext.export.onnx.graph import PADDING_MODES, QuantizedValue, Value
from zscgan_ext.export.onnx.indexing import END, cut
from zscgan_ext.export.onnx.pooling import each
from zscgan_ext.export.onnx.runtime import INPUT


def reshape(call: Call) -> Value:
    """Give the shape that a trial run gave."""
    return preserving_qparams(call, lambda x: reshaped(call, x, call.shape()))


def permute(call: Call) -> Value:
    """Order dimensions anew."""
    return in_order(call, [d % len(call.input_shape()) for d in call.argument("dims")])


def in_order(call: Call, order: list[int]) -> Value:
    """Permute dimensions, keeping the input's scale and zero point."""
    return preserving_qparams(call, lambda x: call.add("Transpose", [x], perm=order))


def regrouped(call: Call, shape: Sequence[int | None], order: list[int]) -> Value:
    """Take dimensions apart, order them and put them together."""

    def add(x: str) -> str:
        x = call.add("Transpose", [reshaped(call, x, shape)], perm=order)
        return reshaped(call, x, call.shape())

    return preserving_qparams(call, add)


def channel_shuffle(call: Call) -> Value:
    """Interleave groups of channels."""
    batch, channels, *image = call.input_shape()
    groups = call.option("groups")
    rest = range(3, len(image) + 3)
    return regrouped(call, (batch, groups, known(channels) // groups, *image), [0, 2, 1, *rest])


def pixel_shuffle(call: Call) -> Value:
    """Spread channels over more pixels."""
    factor = call.option("upscale_factor")
    batch, channels, height, width = call.input_shape()
    shape = (batch, known(channels) // factor**2, factor, factor, height, width)
    return regrouped(call, shape, [0, 1, 4, 2, 5, 3])


def pixel_unshuffle(call: Call) -> Value:
    """Turn blocks of pixels into channels."""
    factor = call.option("downscale_factor")
    batch, channels, height, width = call.input_shape()
    shape = (batch, channels, known(height) // factor, factor, known(width) // factor, factor)
    return regrouped(call, shape, [0, 1, 3, 5, 2, 4])


def concatenate(call: Call) -> Value:
    """Join tensors along a dimension."""
    tensors = call.several_floating("tensors")
    return call.add("Concat", tensors, axis=call.argument("dim", 0))


def stack(call: Call) -> Value:
    """Join tensors along a new dimension."""
    dimension = call.argument("dim", 0) % len(call.shape())
    axes = call.integers("axes", [dimension])
    tensors = [
        call.add("Unsqueeze", [tensor, axes], "part") for tensor in call.several_floating("tensors")
    ]
    return call.add("Concat", tensors, axis=dimension)


def flip(call: Call) -> Value:
    """Reverse dimensions."""
    return flipped(call, as_list(call.argument("dims")))


def flipped(call: Call, dimensions: list[int]) -> Value:
    """Reverse dimensions, keeping the input's scale and zero point."""
    bounds = [(-1, -END, dimension, -1) for dimension in dimensions]
    return preserving_qparams(call, lambda x: cut(call, x, bounds))


def roll(call: Call) -> Value:
    """Shift along dimensions; what leaves at one end enters at the other."""
    shifts, dimensions = call.argument("shifts"), call.argument("dims")
    if dimensions is None:
        raise call.unsupported("rolls all dimensions as one")
    pairs = list(zip(as_list(shifts), as_list(dimensions), strict=True))

    def add(x: str) -> str:
        for shift, axis in pairs:
            place = -shift % known(call.shape()[axis])
            if place:
                parts = [cut(call, x, [b]) for b in ((place, END, axis, 1), (0, place, axis, 1))]
                x = call.add("Concat", parts, axis=axis)
        return x

    if any(call.shape()[axis] is None for _, axis in pairs):
        raise call.unsupported("rolls images, whose count is not known")
    return preserving_qparams(call, add)


def expand(call: Call) -> Value:
    """Repeat along dimensions of size one."""
    return preserving_qparams(call, lambda x: expanded(call, x, call.input_shape(), call.shape()))


def expanded(call: Call, x: str, before: Sequence[int | None], after: Sequence[int | None]) -> str:
    """Repeat along dimensions of size one, that of the images among them."""
    before = [*[1] * (len(after) - len(before)), *before]
    pairs = list(zip(before, after, strict=True))
    sizes = [1 if new is None else new for _, new in pairs]
    along = [axis for axis, (old, new) in enumerate(pairs) if new is None and old is not None]
    if any(pairs[axis][0] != 1 for axis in along) or len(along) > 1:
        raise call.unsupported("repeats along the batch")
    if not along:
        return call.add("Expand", [x, call.integers("sizes", sizes)])
    count = call.graph.node("Shape", [INPUT], f"{call.name}_images", start=0, end=1)
    (axis,) = along
    parts = [call.integers("sizes", part) for part in (sizes[:axis], sizes[axis + 1 :])]
    whole = call.add("Concat", [parts[0], count, parts[1]], "shape", axis=0)
    return call.add("Expand", [x, whole])


def repeat(call: Call) -> Value:
    """Put copies side by side (`repeat`, `tile`)."""
    raw = list(call.raw("dims"))
    raw = [1] * (len(call.shape()) - len(raw)) + raw
    before = [*[1] * (len(raw) - len(call.input_shape())), *call.input_shape()]

    def is_count(number: Any) -> bool:
        return isinstance(number, fx.Node) and isinstance(call.results[number], Varying)

    # As often as there are images: only one image, or what every image has, is repeated so.
    along_batch = [is_count(number) for number in raw]
    factors = [
        1 if varies else fx.node.map_arg(number, call.resolved)
        for number, varies in zip(raw, along_batch, strict=True)
    ]
    middle = [
        None if size is None else size * factor
        for size, factor in zip(before, factors, strict=True)
    ]

    def add(x: str) -> str:
        if len(before) != len(call.input_shape()):
            x = reshaped(call, x, before)
        if any(factor != 1 for factor in factors):
            x = call.add("Tile", [x, call.integers("repeats", factors)])
        return expanded(call, x, middle, call.shape()) if any(along_batch) else x

    return preserving_qparams(call, add)


def repeat_elements(call: Call) -> Value:
    """Put copies of each element of a dimension beside it (`repeat_interleave`)."""
    count, dimension = call.argument("repeats"), call.argument("dim")
    shape = call.input_shape()
    if not isinstance(count, int) or dimension is None:
        raise call.unsupported("repeats elements of all dimensions, or each as often as it likes")
    axis = dimension % len(shape)
    factors = [count if i == axis + 1 else 1 for i in range(len(shape) + 1)]
    tiled = [*shape[: axis + 1], 1, *shape[axis + 1 :]]

    def add(x: str) -> str:
        x = call.add("Tile", [reshaped(call, x, tiled), call.integers("repeats", factors)])
        return reshaped(call, x, call.shape())

    return preserving_qparams(call, add)


def pad(call: Call) -> Value:
    """Pad the last dimensions; integers stay integers where the padding is one of them."""
    pads, mode = list(call.argument("pad")), call.argument("mode", "constant")
    number = call.argument("value")
    pairs = [(0, 0)] * (len(call.input_shape()) - len(pads) // 2)
    pairs += list(zip(pads[0::2], pads[1::2], strict=True))[::-1]
    inputs = [call.integers("pads", [*(a for a, _ in pairs), *(b for _, b in pairs)])]
    mode_name = PADDING_MODES.get(mode, "constant")
    value = call.input()
    if mode_name == "constant":
        number = number or 0
        if isinstance(value, QuantizedValue) and number in (0, -math.inf):
            constant: Any = np.uint8(value.zero_point if number == 0 else 0)
        else:
            value, constant = call.floating(), np.float32(number)
        inputs.append(call.graph.initializer(f"{call.name}_value", constant))

    def add(x: str) -> str:
        return call.add("Pad", [x, *inputs], mode=mode_name)

    return (
        preserving_qparams(call, add)
        if isinstance(value, QuantizedValue)
        else add(call.graph.floating(value))
    )


def unfold(call: Call) -> Value:
    """Put the pixels of each window of an image into one column (`F.unfold`)."""
    names = (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))
    kernel, dilation, padding, stride = (each(call.option(*pair), 2) for pair in names)
    sizes = call.input_shape()[-2:]
    places = []
    for i in range(2):
        reach = known(sizes[i]) + 2 * padding[i] - dilation[i] * (kernel[i] - 1)
        starts = range(0, reach, stride[i])
        places.append([[s + k * dilation[i] for s in starts] for k in range(kernel[i])])
    value = call.input()
    zero = np.uint8(value.zero_point) if isinstance(value, QuantizedValue) else np.float32(0)

    def add(x: str) -> str:
        if any(padding):
            pads = call.integers("pads", [0, 0, *padding] * 2)
            x = call.add("Pad", [x, pads, call.graph.initializer(f"{call.name}_zero", zero)])
        x = call.add("Gather", [x, call.integers("rows", places[0])], axis=2)
        x = call.add("Gather", [x, call.integers("columns", places[1])], axis=4)
        x = call.add("Transpose", [x], perm=[0, 1, 2, 4, 3, 5])
        return reshaped(call, x, call.shape())

    return preserving_qparams(call, add)


def unfold_dimension(call: Call) -> Value:
    """Put windows of one dimension into a new one (the method `unfold`)."""
    rank = len(call.input_shape())
    axis = call.argument("dimension") % rank
    size, step = call.argument("size"), call.argument("step")
    places = [[i * step + k for k in range(size)] for i in range(known(call.shape()[axis]))]
    order = [d for d in range(rank + 1) if d != axis + 1] + [axis + 1]

    def add(x: str) -> str:
        x = call.add("Gather", [x, call.integers("windows", places)], axis=axis)
        return call.add("Transpose", [x], perm=order)

    return preserving_qparams(call, add)
