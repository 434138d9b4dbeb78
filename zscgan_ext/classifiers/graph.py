"""The `torch.fx` graph of a classifier: what its nodes call, and finding its parts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

# Submodules that are added to graphs; a classifier's own of the same name are renamed.
ADDED_MODULES = ("constants", "functional_layers", "activation_quantizers", "matched_batch_norms")


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply one of `ops.ACTIVATIONS` with torch's own functions."""
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else F.relu6(x)


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


def calls(node: Any, *functions: Any) -> bool:
    """Return True if a node calls one of these functions."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in functions


def activation_of(node: Any) -> str:
    """Return the activation of `ops.ACTIVATIONS` that a node is, `none` for any other node."""
    if calls(node, F.relu):
        return "relu"
    return "relu6" if calls(node, F.relu6) else "none"


def put_value(source: fx.Node, value: Any) -> None:
    """Put a value in the place of a node among the arguments of all that use it."""

    def replaced(node: fx.Node) -> Any:
        return value if node is source else node

    for user in list(source.users):
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), replaced)


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the one node that takes another's result; None for none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return like_images(model).device


def like_images(model: nn.Module) -> Tensor:
    """Return a scalar of the device and dtype that a model computes with."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return torch.zeros((), device=tensor.device, dtype=tensor.dtype)
    return torch.zeros(())
