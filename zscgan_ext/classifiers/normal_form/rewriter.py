"""Changing the nodes of a traced graph, and what a trial run knows of them, as rules need it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from zscgan_ext.classifiers.graph import put_value
from zscgan_ext.classifiers.normal_form.operators import OPERATORS, bound_to
from zscgan_ext.classifiers.trials import TensorMetadata, Varying

# Options that say how something is computed, not what.
WITHOUT_MEANING = {
    *("out", "inplace", "_stacklevel", "memory_format", "copy", "non_blocking", "implicit"),
    "return_indices",
}


class Rewriter:
    """Turns nodes of a graph into calls of the operators of the normal form.

    Args:
        graph: changed in place; no node overwrites what later ones take.
        results: what a trial run gave for every node.
    """

    def __init__(self, graph: fx.GraphModule, results: Mapping[fx.Node, Any]) -> None:
        self.graph = graph.graph
        self.results = dict(results)

    # ---- changing nodes -------------------------------------------------------------------------

    def set(self, node: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Let a node call a function."""
        node.op, node.target = "call_function", function
        node.args, node.kwargs = args, kwargs

    def insert(self, node: fx.Node, function: Callable[..., Any], *args: Any, **kw: Any) -> fx.Node:
        """Add a call of a function before a node."""
        with self.graph.inserting_before(node):
            return self.graph.call_function(function, args, kw)

    def replace(self, node: fx.Node, by: Any) -> None:
        """Let the users of a node take another one."""
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)

    def put_value(self, node: fx.Node, value: Any) -> None:
        """Let the users of a node take a value."""
        put_value(node, value)
        self.graph.erase_node(node)

    # ---- asking ---------------------------------------------------------------------------------

    def metadata(self, node: Any) -> TensorMetadata | None:
        """Return what is known of a tensor that a node gave; None for anything else."""
        found = self.results.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, TensorMetadata) else None

    def arguments(self, node: fx.Node, name: str) -> dict[str, Any]:
        """Return the arguments of a node by the names that its operator gives them."""
        return OPERATORS[name].bind(node.args, node.kwargs)

    # ---- operators ------------------------------------------------------------------------------

    def call_operator(self, node: fx.Node, name: str) -> None:
        """Call the operator of this name with its inputs by position and options by name."""
        called = OPERATORS[name]
        bound = called.bind(node.args, node.kwargs)
        found = self.metadata(node)
        if found is not None and bound.get("dtype") in (None, found.dtype):
            bound.pop("dtype", None)
        inputs = [bound.pop(key, None) for key in called.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        kept = {k: v for k, v in bound.items() if k not in WITHOUT_MEANING and v is not None}
        self.set(node, called.function, *inputs, **kept)


def is_fixed(result: Any) -> bool:
    """Return True if a result is no tensor, holds none, and does not depend on the images."""
    if isinstance(result, list):
        return all(map(is_fixed, result))
    return not isinstance(result, TensorMetadata | Varying)


def free_size(sizes: Sequence[int | None]) -> list[int] | None:
    """Return a shape with -1 where a size depends on the number of images; None for several."""
    if sum(size is None for size in sizes) > 1:
        return None
    return [-1 if size is None else size for size in sizes]


def named(node: fx.Node, *names: str) -> dict[str, Any]:
    """Return a node's arguments by these names, which are also those of its keywords."""
    return bound_to(names, node.args, node.kwargs)


def parameter_of(node: fx.Node, name: str, default: Any) -> Any:
    """Return what a node gives for a parameter of a Python function, by position or by name."""
    if name in node.kwargs:
        return node.kwargs[name]
    if not inspect.isfunction(node.target):
        return default
    names = list(inspect.signature(node.target).parameters)
    index = names.index(name) if name in names else len(node.args)
    return node.args[index] if index < len(node.args) else default
