"""The normal form of a classifier's graph, on which everything else relies.

Layers are modules, whatever function or subclass the classifier called; what depends on no image is
a constant; what does nothing is gone; and no node sees a tensor that another overwrote.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import stochastic_depth

from zscgan_ext.classifiers.functional_layers import turn_functions_into_layers
from zscgan_ext.classifiers.graph import attribute_of, is_in_place, is_one_of, submodule

ASSERTIONS: tuple[Any, ...] = (torch._assert, torch._check, torch._assert_async)
DROPOUTS: tuple[Any, ...] = (F.dropout, F.dropout2d, stochastic_depth)
NOTHING: tuple[Any, ...] = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout),
    *("detach", "requires_grad_"),
)
CONSTANTS = "constants"  # submodule of the tensors that were computed in advance


def normalize(graph: fx.GraphModule) -> fx.GraphModule:
    """Bring a graph, in place, into its normal form.

    Raises:
        InputError: naming a node that cannot be converted.
    """
    pass_inputs_by_position(graph)
    use_results_of_in_place_nodes(graph)
    remove_what_does_nothing(graph)
    compute_constants(graph)
    turn_functions_into_layers(graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph


def pass_inputs_by_position(graph: fx.GraphModule) -> None:
    """Call modules with positional arguments, where `layer(input=x)` names them."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.kwargs:
            forward = inspect.signature(graph.get_submodule(str(node.target)).forward)
            bound = forward.bind(*node.args, **node.kwargs)
            node.args, node.kwargs = bound.args, bound.kwargs


def use_results_of_in_place_nodes(graph: fx.GraphModule) -> None:
    """Let what comes after an overwriting node take its result instead of the overwritten tensor.

    Most programs do so anyway; `nn.ReLU(inplace=True)(x)` followed by another use of x does not.
    """
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        target = node.args[0] if node.args else None
        if isinstance(target, fx.Node) and is_in_place(graph, node):
            for user in list(target.users):
                if order[user] > order[node]:
                    user.replace_input_with(target, node)


def remove_what_does_nothing(graph: fx.GraphModule) -> None:
    """Remove assertions, and what passes its input on in evaluation mode."""
    for node in reversed(graph.graph.nodes):
        if is_one_of(graph, node, ASSERTIONS):
            graph.graph.erase_node(node)
        elif is_one_of(graph, node, NOTHING) or is_idle_dropout(graph, node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()


def is_idle_dropout(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node calls a dropout function that is not training."""
    if not is_one_of(graph, node, DROPOUTS):
        return False
    index = 3 if node.target is stochastic_depth else 2
    training = node.args[index] if len(node.args) > index else node.kwargs.get("training", True)
    return training is False


@torch.no_grad()
def compute_constants(graph: fx.GraphModule) -> None:
    """Compute what depends on no image: standardized weights, tables of positions, and the like."""
    known: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            known[node] = attribute_of(graph, node)
        elif node.op in ("call_function", "call_method", "call_module") and all(
            source in known for source in node.all_input_nodes
        ):
            known[node] = computed(graph, node, known)
    constants = submodule(graph, CONSTANTS)
    for node, value in known.items():
        if node.op == "get_attr" or all(user in known for user in node.users):
            continue
        if isinstance(value, Tensor):
            constants.register_buffer(node.name, value.detach())
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(f"{CONSTANTS}.{node.name}"))
        elif not contains_tensors(value):
            for user in list(node.users):
                put_value(user, node, value)
    graph.graph.eliminate_dead_code()


def put_value(user: fx.Node, source: fx.Node, value: Any) -> None:
    """Put a value in the place of a node among the arguments of one that uses it."""

    def replaced(node: fx.Node) -> Any:
        return value if node is source else node

    user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), replaced)


def computed(graph: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Return what a node gives for known inputs."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    if node.op == "call_function":
        assert callable(node.target)
        return node.target(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return graph.get_submodule(str(node.target))(*args, **kwargs)


def contains_tensors(value: Any) -> bool:
    """Tell whether a value is, or a sequence holds, a tensor."""
    if isinstance(value, tuple | list):
        return any(map(contains_tensors, value))
    return isinstance(value, Tensor)
