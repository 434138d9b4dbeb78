"""One node of a classifier's graph, as the functions see it that turn nodes into ONNX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx, nn

from zscgan_ext.classifiers.normal_form.operators import arguments_of
from zscgan_ext.classifiers.trials import TensorMetadata, Varying
from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx.graph import OnnxGraph, QuantizedValue, Value

ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.bool: TensorProto.BOOL,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.uint8: TensorProto.UINT8,
}


@dataclass(frozen=True)
class Call:
    """One node of a classifier's graph, with what its inputs became."""

    graph: OnnxGraph
    node: fx.Node
    module: nn.Module | None  # that the node calls, if it calls one
    values: Mapping[fx.Node, Value]  # of tensors
    results: Mapping[fx.Node, Any]  # TensorMetadata of a tensor, else what the node gave in a trial

    @property
    def name(self) -> str:
        """The name for the node's output."""
        return self.node.name

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments by their names, as they stand in the graph."""
        return arguments_of(self.node)

    def raw(self, name: str, default: Any = None) -> Any:
        """Return an argument as it stands in the graph."""
        return self.arguments.get(name, default)

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument: a `Value` for a tensor, otherwise what it was in a trial run."""
        resolved: Any = fx.node.map_arg(self.raw(name, default), self.resolved)
        return resolved

    def resolved(self, node: fx.Node) -> Any:
        """Return what another node gives."""
        if node in self.values:
            return self.values[node]
        result = self.results[node]
        if isinstance(result, Varying):
            raise self.unsupported("takes a number that depends on the images or on their count")
        return result

    def input(self) -> Value:
        """Return the first argument."""
        value: Value = self.argument("input")
        return value

    def floating(self, name: str = "input") -> str:
        """Return a tensor argument in float32, or a number as a constant."""
        return self.as_floating(self.raw(name))

    def as_floating(self, raw: Any) -> str:
        """Return a node's tensor in float32, or a number as a constant."""
        value = fx.node.map_arg(raw, self.resolved)
        if isinstance(value, int | float):
            return self.number("constant", value)
        name = self.graph.floating(value)
        if isinstance(raw, fx.Node) and not self.dtype(raw).is_floating_point:
            return self.add("Cast", [name], "float", to=TensorProto.FLOAT)
        return name

    def several_floating(self, name: str) -> list[str]:
        """Return an argument that is several tensors, in float32 each."""
        raw = self.raw(name)
        if isinstance(raw, fx.Node):
            return [self.graph.floating(value) for value in self.resolved(raw)]
        return [self.as_floating(part) for part in raw]

    def tensor(self, name: str) -> str | None:
        """Return a weight: a module's, or a function's argument; None where there is none."""
        if self.module is None:
            raw = self.raw(name)
            return None if raw is None else self.as_floating(raw)
        held = getattr(self.module, name)
        return None if held is None else self.graph.initializer(f"{self.name}_{name}", held)

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option: a module's attribute, or a function's argument."""
        if self.module is not None:
            return getattr(self.module, name)
        return self.argument(name, default)

    def result(self, node: Any = None) -> TensorMetadata:
        """Return shape and type of the result, or of another node's; of the first of several."""
        result = self.results[self.node if node is None else node]
        result = result[0] if isinstance(result, list) else result
        if not isinstance(result, TensorMetadata):
            raise self.unsupported("gives no tensor")
        return result

    def shape(self, node: Any = None) -> tuple[int | None, ...]:
        """Return the shape of the result, or of another node's."""
        return self.result(node).sizes

    def dtype(self, node: Any = None) -> torch.dtype:
        """Return the type of the result, or of another node's."""
        return self.result(node).dtype

    def input_shape(self) -> tuple[int | None, ...]:
        """Return the shape of the first argument."""
        return self.shape(self.raw("input"))

    def is_tensor(self, raw: Any) -> bool:
        """Return True if an argument is a tensor."""
        return isinstance(raw, fx.Node) and isinstance(self.results[raw], TensorMetadata)

    def add(self, op: str, inputs: Sequence[str], part: str = "", **attributes: Any) -> str:
        """Add an ONNX node, for a part of what this node computes or for all of it."""
        name = f"{self.name}_{part}" if part else self.name
        return self.graph.node(op, inputs, name, **attributes)

    def number(self, part: str, value: float) -> str:
        """Add a constant number."""
        return self.graph.initializer(f"{self.name}_{part}", np.float32(value))

    def integers(self, part: str, values: Any) -> str:
        """Add constant integers."""
        return self.graph.initializer(f"{self.name}_{part}", np.array(values, np.int64))

    def unsupported(self, reason: str) -> InputError:
        """Return the error that names this node."""
        return InputError(
            f"export: {describe(self.node, self.module)} {reason}; "
            "write it with other operations, or export to safetensors only"
        )


Operator = Callable[[Call], Value]  # adds what a node computes


def describe(node: fx.Node, module: nn.Module | None) -> str:
    """Name a node and what it calls."""
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{node.name} ({called or node.target})"


def preserving_qparams(call: Call, add: Callable[[str], str]) -> Value:
    """Apply what preserves scale and zero point to a quantized value's integers, or to floats."""
    value = call.input()
    if isinstance(value, QuantizedValue):
        return replace(value, integers=add(value.integers))
    return add(call.graph.floating(value))


def reshaped(call: Call, x: str, shape: Sequence[int | None]) -> str:
    """Add a reshape to a shape in which at most the batch is unknown."""
    if list(shape).count(None) > 1:
        raise call.unsupported("makes a shape of which more than one size depends on the batch")
    sizes = [-1 if size is None else size for size in shape]
    return call.add("Reshape", [x, call.integers("shape", sizes)])


def values_only(call: Call, value: Value) -> Value:
    """Return a value as the first of several where torch gives indices beside it."""
    return [value] if isinstance(call.results[call.node], list) else value


def as_list(value: Any) -> list[Any]:
    """Return one value, or the several of a tuple, as a list."""
    return list(value) if isinstance(value, tuple | list) else [value]


def known(size: int | None) -> int:
    """Return a size that is not the batch's."""
    return int(size or 0)
