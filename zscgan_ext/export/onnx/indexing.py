"""Parts of tensors as ONNX nodes: by slices, by indices, or all of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from zscgan_ext.export.onnx.call import Call, preserving_qparams, reshaped
from zscgan_ext.export.onnx.graph import QuantizedValue, Value

END = np.iinfo(np.int64).max


def pick(call: Call) -> Value:
    """Take one of several tensors, or a part of one."""
    values, index = call.input(), call.raw("index")
    if isinstance(values, list):
        return pick_value(call, values, fx.node.map_arg(index, call.resolved))
    parts = index if isinstance(index, tuple) else (index,)
    gathered = [part for part in parts if call.is_tensor(part) or isinstance(part, list)]
    parts = fx.node.map_arg(
        tuple(slice(None) if part in gathered else part for part in parts), call.resolved
    )
    if not all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts):
        raise call.unsupported("takes a part of a tensor by what is not exported")
    if gathered:
        return pick_some(call, gathered, parts)
    bounds = slices_of(parts, len(call.input_shape()))
    return preserving_qparams(call, lambda x: reshaped(call, cut(call, x, bounds), call.shape()))


def pick_value(call: Call, values: list[Value], index: Any) -> Value:
    """Take one of several tensors, or some of them."""
    try:
        picked: Value = values[index]
    except IndexError:
        raise call.unsupported("takes the places of maxima, which are not exported") from None
    return picked


def pick_some(call: Call, gathered: list[Any], parts: tuple[Any, ...]) -> Value:
    """Take elements of one dimension by their indices, besides slices of others."""
    raw = call.raw("index")
    places = list(raw) if isinstance(raw, tuple) else [raw]
    is_whole = all(part is Ellipsis or isinstance(part, slice) for part in parts)
    if len(gathered) > 1 or not is_whole:
        raise call.unsupported("takes a part of a tensor by several kinds of indices")
    place = next(i for i, part in enumerate(places) if part in gathered)
    before = places[:place]
    axis = place if Ellipsis not in before else place - len(places)
    indices = index_tensor(call, gathered[0])
    bounds = slices_of(parts, len(call.input_shape()))

    def add(x: str) -> str:
        return call.add("Gather", [cut(call, x, bounds), indices], axis=axis)

    return preserving_qparams(call, add)


def index_tensor(call: Call, raw: Any) -> str:
    """Return indices, which are constant integers or computed ones."""
    if not call.is_tensor(raw):
        indices = fx.node.map_arg(raw, call.resolved)
        if not all(type(index) is int for index in indices):
            raise call.unsupported("takes a part of a tensor by what is not exported")
        return call.integers("indices", indices)
    if call.dtype(raw) not in (torch.int64, torch.int32):
        raise call.unsupported("takes a part of a tensor by truth values")
    return call.graph.floating(call.resolved(raw))


def cut(call: Call, x: str, bounds: list[tuple[int, int, int, int]]) -> str:
    """Add a slice of some dimensions: start, end, axis and step of each."""
    if not bounds:
        return x
    names = ("starts", "ends", "axes", "steps")
    columns = zip(names, zip(*bounds, strict=True), strict=True)
    return call.add("Slice", [x, *(call.integers(name, c) for name, c in columns)], "cut")


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


def index_select(call: Call) -> Value:
    """Take elements of one dimension by their indices."""
    indices = index_tensor(call, call.raw("index"))
    axis = call.argument("dim")
    return preserving_qparams(call, lambda x: call.add("Gather", [x, indices], axis=axis))


def split(call: Call) -> Value:
    """Cut a tensor into several, as a trial run did."""
    dimension = call.argument("dim", 0)
    parts = call.results[call.node]
    if any(part.sizes[dimension] is None for part in parts):
        raise call.unsupported("cuts the batch, whose size is not known")
    sizes = call.integers("sizes", [part.sizes[dimension] for part in parts])
    value = call.input()
    x = value.integers if isinstance(value, QuantizedValue) else call.graph.floating(value)
    names = [f"{call.name}_{index}" for index in range(len(parts))]
    outputs = call.graph.nodes_of("Split", [x, sizes], names, axis=dimension)
    if not isinstance(value, QuantizedValue):
        return list(outputs)
    return [replace(value, integers=output) for output in outputs]


def unbind(call: Call) -> Value:
    """Take a dimension apart."""
    dimension = call.argument("dim", 0) % len(call.input_shape())
    if call.input_shape()[dimension] is None:
        raise call.unsupported("cuts the batch, whose size is not known")
    parts = call.results[call.node]

    def one(index: int) -> Value:
        number = call.integers("index", index)
        return preserving_qparams(call, lambda x: call.add("Gather", [x, number], axis=dimension))

    return [one(index) for index in range(len(parts))]
