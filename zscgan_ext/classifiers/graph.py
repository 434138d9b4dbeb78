"""The `torch.fx` graph of a classifier: what its nodes call, and finding its parts."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

RELU: tuple[Any, ...] = (nn.ReLU, torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
RELU6: tuple[Any, ...] = (nn.ReLU6, F.relu6)
IN_PLACE_ADDITIONS: tuple[Any, ...] = (operator.iadd, "add_")
ADDITIONS: tuple[Any, ...] = (operator.add, torch.add, "add", *IN_PLACE_ADDITIONS)


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply one of `ops.ACTIVATIONS` with torch's own functions."""
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else F.relu6(x)


# What changes its first argument. (`+=` and its like are functions of the operator module.)
IN_PLACE_FUNCTIONS: tuple[Any, ...] = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.relu_, F.relu_, F.leaky_relu_, F.elu_, F.hardtanh_, torch.sigmoid_, torch.tanh_),
)


def is_in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node overwrites its first argument."""
    module = module_of(graph, node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    rectifies = node.target in (*RELU, *RELU6) and len(node.args) > 1
    positional = node.args[1] if rectifies else False
    return node.target in IN_PLACE_FUNCTIONS or bool(node.kwargs.get("inplace", positional))


def attribute_of(graph: fx.GraphModule, node: fx.Node) -> Any:
    """Return what a `get_attr` node gives."""
    found: Any = graph
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found


def submodule(graph: fx.GraphModule, name: str) -> nn.Module:
    """Return a submodule, which a graph in normal form may have already."""
    if name not in graph._modules:
        graph.add_module(name, nn.Module())
    return graph.get_submodule(name)


def module_of(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    """Return the module that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def is_one_of(graph: fx.GraphModule, node: Any, kinds: tuple[Any, ...]) -> bool:
    """Tell whether a node calls one of these module types, functions or methods."""
    module = module_of(graph, node)
    if module is not None:
        return isinstance(module, tuple(kind for kind in kinds if isinstance(kind, type)))
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return False
    return node.target in kinds


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
    return node.all_input_nodes[0] if is_in_place(graph, node) else None


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return next(model.parameters()).device
