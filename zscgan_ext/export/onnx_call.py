"""One node of a classifier's graph, as the functions see it that turn nodes into ONNX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx_graph import Grid, OnnxGraph, Value


@dataclass(frozen=True)
class TensorShape:
    """The shape of a tensor, None for the size of the batch."""

    sizes: tuple[int | None, ...]


@dataclass(frozen=True)
class Call:
    """One node of a classifier's graph, with what its inputs became."""

    graph: OnnxGraph
    node: fx.Node
    module: nn.Module | None  # that the node calls, if it calls one
    values: Mapping[fx.Node, Value]  # of tensors
    results: Mapping[fx.Node, Any]  # TensorShape of a tensor, else what the node gave in a trial

    @property
    def name(self) -> str:
        """The name for the node's output."""
        return self.node.name

    def argument(self, index: int, name: str = "", default: Any = None) -> Any:
        """Return an argument: a `Value` for a tensor, otherwise what it was in a trial run."""
        if index < len(self.node.args):
            found: Any = self.node.args[index]
        else:
            found = self.node.kwargs.get(name, default)
        resolve: Callable[[fx.Node], Any] = lambda node: (  # noqa: E731
            self.values[node] if node in self.values else self.results[node]
        )
        resolved: Any = fx.node.map_arg(found, resolve)
        return resolved

    def input(self) -> Value:
        """Return the first argument."""
        value: Value = self.argument(0, "input")
        return value

    def floating(self, index: int = 0) -> str:
        """Return a tensor argument in float32, or a number as a constant."""
        value = self.argument(index, ("input", "other")[index])
        if isinstance(value, int | float):
            return self.graph.initializer(f"{self.name}_constant", np.float32(value))
        return self.graph.floating(value)

    def option(self, index: int, name: str, default: Any = None) -> Any:
        """Return an option: a module's attribute, or a function's argument."""
        if self.module is not None:
            return getattr(self.module, name)
        return self.argument(index, name, default)

    def shape(self, node: Any = None) -> tuple[int | None, ...]:
        """Return the shape of the result, or of another node's."""
        result = self.results[self.node if node is None else node]
        if not isinstance(result, TensorShape):
            raise self.unsupported("gives no tensor")
        return result.sizes

    def input_shape(self) -> tuple[int | None, ...]:
        """Return the shape of the first argument."""
        return self.shape(self.node.args[0])

    def unsupported(self, reason: str) -> InputError:
        """Return the error that names this node."""
        return InputError(
            f"export: {describe(self.node, self.module)} {reason}; "
            "write it with other operations, or export to safetensors alone"
        )


Operator = Callable[[Call], Value]  # adds what a node computes


def describe(node: fx.Node, module: nn.Module | None) -> str:
    """Name a node and what it calls."""
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{node.name} ({called or node.target})"


def on_grid(call: Call, add: Callable[[str], str]) -> Value:
    """Apply what keeps the grid of its input to integers where there are any."""
    value = call.input()
    if isinstance(value, Grid):
        integers = add(value.integers)
        return Grid(
            integers, value.scale_name, value.zero_point_name, value.scale, value.zero_point
        )
    return add(call.graph.floating(value))


def reshaped(call: Call, x: str, shape: tuple[int | None, ...]) -> str:
    """Add a reshape to a shape in which at most the batch is unknown."""
    if shape.count(None) > 1:
        raise call.unsupported("makes a shape of which more than one size depends on the batch")
    sizes = np.array([-1 if size is None else size for size in shape], np.int64)
    return call.graph.node(
        "Reshape", [x, call.graph.initializer(f"{call.name}_shape", sizes)], call.name
    )
