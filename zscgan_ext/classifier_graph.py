"""The `torch.fx` graph of a classifier: tracing it, and telling what its nodes call."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zscgan_ext.errors import InputError, first_line

RELU: tuple[Any, ...] = (nn.ReLU, torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
RELU6: tuple[Any, ...] = (nn.ReLU6, F.relu6)
IN_PLACE_ADDITIONS: tuple[Any, ...] = (operator.iadd, "add_")
IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv")
ADDITIONS: tuple[Any, ...] = (operator.add, torch.add, "add", *IN_PLACE_ADDITIONS)


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply one of `ops.ACTIVATIONS` with torch's own functions."""
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else F.relu6(x)


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace a model's graph, which shares the model's modules.

    Raises:
        InputError: if torch.fx cannot; the message gives its reason in one line.
    """
    try:
        return fx.symbolic_trace(model)
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"classifier: torch.fx cannot trace its graph ({reason})") from None


def module_of(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    """Return the module that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def is_one_of(graph: fx.GraphModule, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
    """Tell whether a node calls one of these module types, functions or methods."""
    module = module_of(graph, node)
    if module is not None:
        return isinstance(module, tuple(kind for kind in kinds if isinstance(kind, type)))
    return node.op in ("call_function", "call_method") and node.target in kinds


def activation_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """Return the activation of `ops.ACTIVATIONS` that a node is, `none` for any other node."""
    if is_one_of(graph, node, RELU):
        return "relu"
    return "relu6" if is_one_of(graph, node, RELU6) else "none"


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the one node that takes another's result; None for none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def writes_into(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the node whose result another one overwrites; None for one that overwrites nothing."""
    if not node.all_input_nodes:
        return None
    module = module_of(graph, node)
    if module is not None:
        in_place = bool(getattr(module, "inplace", False))
    else:
        name = str(getattr(node.target, "__name__", node.target))
        positional = len(node.args) > 1 and node.args[1] is True  # F.relu(x, True)
        in_place = bool(node.kwargs.get("inplace", positional)) or (
            name in IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
        )
    return node.all_input_nodes[0] if in_place else None
