"""The normal form of a classifier's graph, on which everything else relies.

Layers with weights are modules, whatever function or subclass the classifier called. Everything
else is one function for each operator (`operators.py`). What depends on no image is a constant, no
node overwrites a tensor, what does nothing is gone, and the number of images stands nowhere.
"""

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from zscgan_ext.classifiers.graph import attribute_of, put_value, submodule
from zscgan_ext.classifiers.normal_form.functional_layers import turn_functions_into_layers
from zscgan_ext.classifiers.normal_form.operators import is_of_torch
from zscgan_ext.classifiers.normal_form.rewriter import parameter_of
from zscgan_ext.classifiers.normal_form.rules import rewrite_nodes
from zscgan_ext.classifiers.trials import try_out

CONSTANTS = "constants"  # submodule of the tensors that were computed in advance


def normalize(graph: fx.GraphModule, image_shape: tuple[int, int, int]) -> fx.GraphModule:
    """Bring a graph, in place, into its normal form.

    Args:
        graph: in evaluation mode; takes images.
        image_shape: (C, H, W) of one.

    Raises:
        InputError: naming a node that cannot be converted.
    """
    pass_inputs_by_position(graph)
    results = try_out(graph, image_shape)
    use_results_of_in_place_nodes(graph)
    graph.graph.eliminate_dead_code()
    rewrite_nodes(graph, results)
    graph.graph.eliminate_dead_code()
    rename_nodes(graph)
    compute_constants(graph)
    turn_functions_into_layers(graph, results)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    delete_unused_tensors(graph)
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
            put_value(node, value)
    graph.graph.eliminate_dead_code()


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
    """Return True if a value is, or a sequence holds, a tensor."""
    if isinstance(value, tuple | list):
        return any(map(contains_tensors, value))
    return isinstance(value, Tensor)


def delete_unused_tensors(graph: fx.GraphModule) -> None:
    """Delete tensors that no node takes, such as weights that a layer has by now."""
    taken = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    for path, module in list(graph.named_modules()):
        if any(path == target or path.startswith(f"{target}.") for target in called):
            continue
        for name in [*module._parameters, *module._buffers]:
            if (f"{path}.{name}" if path else name) not in taken:
                delattr(module, name)


def rename_nodes(graph: fx.GraphModule) -> None:
    """Let no node have the name of an attribute of modules, as a submodule is called after it."""
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output") and hasattr(nn.ModuleDict, node.name):
            node.name = f"{node.name}_"


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
    return bool(parameter_of(node, "inplace", False))


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
