"""From a `torch.export` program to a graph of torch functions, as `torch.fx` would trace it.

A program calls ATen's operators and takes its weights as inputs. Here operators become the
functions that they came from (`aten_operators.py`), and weights attributes of the graph.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from zscgan_ext.classifiers.aten_operators import CALLS
from zscgan_ext.errors import InputError

TENSORS = "tensors"  # submodule of the program's weights and constants
aten = torch.ops.aten
CONVERSIONS = (aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default)


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """Turn a program into a graph of torch functions, with its weights as attributes.

    Raises:
        InputError: if it takes anything but images, or gives anything but logits.
    """
    check_output(program)
    owner = nn.Module()
    owner.add_module(TENSORS, nn.Module())
    graph = fx.Graph()
    inputs: list[Any] = []
    tensors = inputs_of(program)
    for node in program.graph_module.graph.find_nodes(op="placeholder"):
        if node.name in tensors:
            register(owner.get_submodule(TENSORS), node.name, tensors[node.name])
            inputs.append(graph.get_attr(f"{TENSORS}.{node.name}"))
        else:
            inputs.append(graph.placeholder("images"))
    (logits,) = translate(program.graph_module, graph, inputs)
    graph.output(logits)
    return fx.GraphModule(owner, graph).eval()


def translate(module: fx.GraphModule, graph: fx.Graph, inputs: list[Any]) -> Any:
    """Add what a program's graph, or a part of it, computes; return what it gives.

    Args:
        module: the program's graph or that part.
        graph: gets the nodes.
        inputs: nodes of `graph` for the placeholders.
    """
    nodes: dict[fx.Node, Any] = {}
    values = iter(inputs)
    for node in module.graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), nodes.__getitem__)
        if node.op == "placeholder":
            nodes[node] = next(values)
        elif node.op == "output":
            return args[0]
        elif node.op == "get_attr":  # a part that runs under other settings
            nodes[node] = Part(module.get_submodule(str(node.target)))
        elif any(isinstance(value, Part) for value in args):
            index = next(i for i, value in enumerate(args) if isinstance(value, Part))
            nodes[node] = translate(args[index].module, graph, list(args[index + 1 :]))
        elif node.target in CONVERSIONS and not changes_dtype(node):
            nodes[node] = args[0]
        else:
            nodes[node] = translated(graph, node.target, args, kwargs)
    raise AssertionError("a graph without an output")


def changes_dtype(node: fx.Node) -> bool:
    """Tell whether a conversion gives another dtype than it takes."""
    (source,) = node.all_input_nodes
    return bool(node.meta["val"].dtype != source.meta["val"].dtype)


@dataclass(frozen=True)
class Part:
    """A part of a program, which it runs without autocast or without gradients."""

    module: Any


def translated(graph: fx.Graph, target: Any, args: Any, kwargs: Any) -> Any:
    """Add what a node of the program calls; return the new node, or several."""

    def call(function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        create = graph.call_method if isinstance(function, str) else graph.call_function
        made: fx.Node = create(function, args, kwargs)
        return made

    if not isinstance(target, torch._ops.OpOverload):
        if target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        return call(target, *args, **kwargs)
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    if target.namespace == "aten" and name in CALLS:
        return CALLS[name](call, *args, **kwargs)
    if name.startswith(("_assert", "sym_constrain_range")):
        return None
    return call(target, *args, **kwargs)


def inputs_of(program: ExportedProgram) -> dict[str, Tensor]:
    """Return the tensors that a program takes beside the images, by the names of its inputs."""
    tensors: dict[str, Tensor] = {}
    images = 0
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            images += 1
        elif spec.target in program.state_dict:
            tensors[spec.arg.name] = program.state_dict[spec.target]
        else:
            tensors[spec.arg.name] = program.constants[str(spec.target)]
    if images != 1:
        raise InputError(f"classifier: its program takes {images} inputs, needed are images alone")
    return tensors


def images_of(program: ExportedProgram) -> list[int | None]:
    """Return the shape of the images that a program takes, None for sizes that may vary."""
    weights = inputs_of(program)
    for node in program.graph_module.graph.find_nodes(op="placeholder"):
        if node.name not in weights:
            shape = node.meta["val"].shape
            return [size if isinstance(size, int) else None for size in shape]
    return []


def check_output(program: ExportedProgram) -> None:
    """Require logits and nothing else."""
    specs = program.graph_signature.output_specs
    if len(specs) != 1 or specs[0].kind is not OutputKind.USER_OUTPUT:
        kinds = ", ".join(spec.kind.name.lower() for spec in specs)
        raise InputError(
            f"classifier: its program gives {kinds}, needed are logits alone; call .eval() on the "
            "model and let it return one tensor before torch.export.export"
        )


def register(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Keep a tensor as what it is, a parameter or a buffer."""
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor)
