"""Nodes that overwrite a tensor, and giving what comes after them their result instead."""

import inspect
import operator
from typing import Any

import torch
from torch import fx

from zscgan_ext.classifiers.operators import is_of_torch

IN_PLACE_ARITHMETIC: tuple[Any, ...] = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
    *(operator.ipow, operator.imod),
)


def is_in_place(node: fx.Node) -> bool:
    """Return True if a node overwrites its first argument."""
    target: Any = node.target
    if node.op == "call_method":
        name = str(target)
        return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    if node.op != "call_function":
        return False
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    if target in IN_PLACE_ARITHMETIC:
        return True
    name = getattr(target, "__name__", "")
    if is_of_torch(target) and name.endswith("_") and not name.endswith("__"):
        return True
    return bool(argument(node, "inplace", False))


def argument(node: fx.Node, name: str, default: Any) -> Any:
    """Return what a node gives for a parameter of a Python function, by position or by name."""
    if name in node.kwargs:
        return node.kwargs[name]
    if not inspect.isfunction(node.target):
        return default
    names = list(inspect.signature(node.target).parameters)
    index = names.index(name) if name in names else len(node.args)
    return node.args[index] if index < len(node.args) else default


def use_results_of_in_place_nodes(graph: fx.GraphModule) -> None:
    """Let what comes after an overwriting node take its result instead of the overwritten tensor.

    The normal form then need not overwrite. Where another tensor shares the memory, a view, that
    is another function: the proof that follows finds it, and another way of tracing is taken.
    """
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        target = node.args[0] if node.args else None
        if isinstance(target, fx.Node) and is_in_place(node):
            for user in list(target.users):
                if order[user] > order[node]:
                    user.replace_input_with(target, node)
