"""Cutting, padding, resizing and multiplying of tensors as ONNX nodes."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from zscgan_ext.export.onnx_call import Call, on_grid, reshaped
from zscgan_ext.export.onnx_graph import PADDING_MODES, Grid, Value

END = np.iinfo(np.int64).max


def pick(call: Call) -> Value:
    """Take one of several tensors, or a part of one."""
    values, index = call.input(), call.argument(1)
    if isinstance(values, list):
        picked: Value = values[index]
        return picked
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts):
        raise call.unsupported("takes a part of a tensor by tensors, which is not exported")
    bounds = slices_of(parts, len(call.input_shape()))

    def add(x: str) -> str:
        cut = x
        if bounds:
            starts, ends, axes, steps = zip(*bounds, strict=True)
            inputs = [
                call.graph.initializer(f"{call.name}_{name}", np.array(numbers, np.int64))
                for name, numbers in (
                    *(("starts", starts), ("ends", ends)),
                    *(("axes", axes), ("steps", steps)),
                )
            ]
            cut = call.graph.node("Slice", [x, *inputs], f"{call.name}_cut")
        return reshaped(call, cut, call.shape())

    return on_grid(call, add)


def slices_of(parts: tuple[Any, ...], rank: int) -> list[tuple[int, int, int, int]]:
    """Return start, end, axis and step of each dimension of which an index takes a part."""
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    bounds, axis = [], 0
    for part in parts:
        if part is Ellipsis:
            axis += rank - taken
        elif isinstance(part, slice):
            if part != slice(None):
                end = END if part.stop is None else part.stop
                bounds.append((part.start or 0, end, axis, part.step or 1))
            axis += 1
        elif part is not None:
            bounds.append((part, part + 1 if part != -1 else END, axis, 1))
            axis += 1
    return bounds


def pad(call: Call) -> Value:
    """Pad the last dimensions; on the grid of the input where what is padded lies on it."""
    if call.module is None:
        pads, mode = call.argument(1, "pad"), call.argument(2, "mode", "constant")
        number = call.argument(3, "value")
    else:
        pads, mode, number = call.module.padding, "constant", getattr(call.module, "value", 0)
        mode = next((m for m in PADDING_MODES if m in type(call.module).__name__.lower()), mode)
        mode = "replicate" if isinstance(call.module, nn.ReplicationPad2d) else mode
        mode = "reflect" if isinstance(call.module, nn.ReflectionPad2d) else mode
    pairs = [(0, 0)] * (len(call.input_shape()) - len(pads) // 2)
    pairs += list(zip(pads[0::2], pads[1::2], strict=True))[::-1]
    sizes = np.array([*(a for a, _ in pairs), *(b for _, b in pairs)], np.int64)
    inputs = [call.graph.initializer(f"{call.name}_pads", sizes)]
    mode_name = PADDING_MODES.get(mode, "constant")
    value = call.input()
    if mode_name == "constant":
        number = number or 0
        if isinstance(value, Grid) and number in (0, -math.inf):
            constant: Any = np.uint8(value.zero_point if number == 0 else 0)
        else:
            value, constant = call.graph.floating(value), np.float32(number)
        inputs.append(call.graph.initializer(f"{call.name}_value", constant))

    def add(x: str) -> str:
        return call.graph.node("Pad", [x, *inputs], call.name, mode=mode_name)

    return on_grid(call, add) if isinstance(value, Grid) else add(call.graph.floating(value))


def resize(call: Call) -> Value:
    """Resize images: nearest, on the grid of the input if it has one, or bilinear."""
    mode = call.option(3, "mode", "nearest")
    corners = call.option(4, "align_corners", None)
    smooths = call.module is None and call.argument(6, "antialias", False)
    if mode not in ("nearest", "bilinear") or smooths:
        raise call.unsupported(f"resizes in the mode {mode!r}, which is not exported")
    scales = np.array([1, 1, *resizing_factors(call)], np.float32)
    inputs = ["", call.graph.initializer(f"{call.name}_scales", scales)]
    if mode == "nearest":
        options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return on_grid(
            call,
            lambda x: call.graph.node("Resize", [x, *inputs], call.name, mode=mode, **options),
        )
    transformation = "align_corners" if corners else "half_pixel"
    return call.graph.node(
        "Resize",
        [call.floating(), *inputs],
        call.name,
        mode="linear",
        coordinate_transformation_mode=transformation,
    )


def resizing_factors(call: Call) -> list[float]:
    """Return how much higher and wider images become: as given, else by the trial run's sizes."""
    before, after = call.input_shape()[-2:], call.shape()[-2:]
    given = call.option(2, "scale_factor", None)
    if given is not None and not call.option(5, "recompute_scale_factor", None):
        return [float(f) for f in (given if isinstance(given, tuple | list) else (given, given))]
    return [int(b or 0) / int(a or 1) for a, b in zip(before, after, strict=True)]


def expand(call: Call) -> Value:
    """Repeat along dimensions of size one."""
    sizes = [1 if size is None else size for size in call.shape()]
    rank = len(call.input_shape())
    if len(sizes) != rank or call.input_shape()[0] != call.shape()[0]:
        raise call.unsupported("repeats along the batch")
    name = call.graph.initializer(f"{call.name}_shape", np.array(sizes, np.int64))
    return on_grid(call, lambda x: call.graph.node("Expand", [x, name], call.name))


def stack(call: Call) -> Value:
    """Join tensors along a new dimension."""
    dimension = call.argument(1, "dim", 0) % len(call.shape())
    axes = call.graph.initializer(f"{call.name}_axes", np.array([dimension], np.int64))
    tensors = [
        call.graph.node("Unsqueeze", [call.graph.floating(value), axes], f"{call.name}_part")
        for value in call.argument(0, "tensors")
    ]
    return call.graph.node("Concat", tensors, call.name, axis=dimension)


def unbind(call: Call) -> Value:
    """Take a dimension apart."""
    dimension = call.argument(1, "dim", 0) % len(call.input_shape())
    parts = call.results[call.node]

    def one(index: int) -> Value:
        number = call.graph.initializer(f"{call.name}_index", np.array(index, np.int64))
        return on_grid(
            call, lambda x: call.graph.node("Gather", [x, number], call.name, axis=dimension)
        )

    return [one(index) for index in range(len(parts))]


def einsum(call: Call) -> Value:
    """Sum products over the dimensions that an equation names."""
    equation, *operands = (call.argument(index) for index in range(len(call.node.args)))
    names = [call.graph.floating(operand) for operand in operands]
    return call.graph.node("Einsum", names, call.name, equation=equation.replace(" ", ""))


def layer_norm(call: Call) -> Value:
    """Normalize the last dimensions of each vector."""
    assert isinstance(call.module, nn.LayerNorm)
    layer = call.module
    weight = torch.ones(layer.normalized_shape) if layer.weight is None else layer.weight
    inputs = [call.floating(), call.graph.initializer(f"{call.name}_weight", weight)]
    if layer.bias is not None:
        inputs.append(call.graph.initializer(f"{call.name}_bias", layer.bias))
    axis = -len(layer.normalized_shape)
    return call.graph.node("LayerNormalization", inputs, call.name, axis=axis, epsilon=layer.eps)


def group_norm(call: Call) -> Value:
    """Normalize groups of channels of each image."""
    assert isinstance(call.module, nn.GroupNorm)
    layer, shape = call.module, call.input_shape()
    size = math.prod(int(s or 0) for s in shape[1:]) // layer.num_groups
    grouped = reshaped(call, call.floating(), (None, layer.num_groups, size))
    ones, zeros = torch.ones(layer.num_groups), torch.zeros(layer.num_groups)
    inputs = [
        grouped,
        call.graph.initializer(f"{call.name}_ones", ones),
        call.graph.initializer(f"{call.name}_zeros", zeros),
    ]
    x = call.graph.node("InstanceNormalization", inputs, f"{call.name}_whole", epsilon=layer.eps)
    x = reshaped(call, x, shape)
    if layer.weight is None:
        return x
    spread = (-1, *[1] * (len(shape) - 2))
    scale = call.graph.initializer(f"{call.name}_weight", layer.weight.reshape(spread))
    shift = call.graph.initializer(f"{call.name}_bias", layer.bias.reshape(spread))
    x = call.graph.node("Mul", [x, scale], f"{call.name}_scaled")
    return call.graph.node("Add", [x, shift], call.name)
