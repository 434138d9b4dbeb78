"""Tracing with `torch.export`, and from its programs to graphs.

A program takes its weights as inputs; here they become attributes of the graph. Its ATen operators
stay for the normal form to rename, but for those whose arguments are others (`aten_operators.py`).
"""

import contextlib
import copy
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from zscgan_ext.classifiers.aten_operators import CALLS
from zscgan_ext.classifiers.graph import like_images
from zscgan_ext.classifiers.symbolic_tracing import PREFIX, TakesImages
from zscgan_ext.errors import InputError

LARGEST_BATCH = 2**31 - 1  # images; who has none of them has no bound
TENSORS = "tensors"  # submodule of the program's weights and constants


def export_program(model: nn.Module, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """Let `torch.export` capture a model for any number of images.

    Raises:
        Exception: of torch.export or of the model's code, if it cannot be captured.
    """
    images = like_images(model).expand(2, *image_shape).clone()
    with quiet_export():
        program: ExportedProgram = torch.export.export(
            TakesImages(model), (images,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False
        )
    check_any_number(program)
    return program


def check_any_number(program: ExportedProgram) -> None:
    """Require a program that computes the same whatever the number of images.

    torch.export follows the branch that two images take, and notes how many take the same.

    Raises:
        InputError: if more images take another one.
    """
    for bounds in program.range_constraints.values():
        if bounds.upper < LARGEST_BATCH:
            raise InputError(
                f"classifier: goes another way with more than {bounds.upper} images; write its "
                "forward alike for any number of them"
            )


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep `torch.export` from logging, warning and printing graphs; errors say what matters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def functional(program: ExportedProgram) -> ExportedProgram:
    """Return a program in which no operator overwrites a tensor, nor sees another one overwritten.

    Raises:
        Exception: of torch.export, if it cannot be turned into one.
    """
    with quiet_export():
        result: ExportedProgram = program.run_decompositions({})
    return result


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
        else:
            nodes[node] = translated(graph, node, args, kwargs)
    raise AssertionError("a graph without an output")


@dataclass(frozen=True)
class Part:
    """A part of a program, which it runs without autocast or without gradients."""

    module: Any


def translated(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Add what a node of the program calls; return the new node, or several."""
    target: Any = node.target
    name = name_of_module(node)
    if name is None and isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.partition("::")[2].strip("_")

    def call(function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.create_node("call_function", function, args, kwargs, name)

    if not isinstance(target, torch._ops.OpOverload):
        if target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        return call(target, *args, **kwargs)
    operator_name = target._schema.name.removeprefix("aten::")
    if target.namespace == "aten" and operator_name in CALLS:
        return CALLS[operator_name](call, *by_position(target, args, kwargs))
    return call(target, *args, **kwargs)


def by_position(target: torch._ops.OpOverload, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments of an operator by position, in which torch up to 2.7 keeps names.

    Those that are missing behind the last one that is given are left out, as they have defaults.
    """
    positional = [each for each in target._schema.arguments if not each.kwarg_only]
    given = dict(zip((each.name for each in positional), args, strict=False)) | kwargs
    count = max((i + 1 for i, each in enumerate(positional) if each.name in given), default=0)
    return [given.get(each.name, each.default_value) for each in positional[:count]]


def name_of_module(node: fx.Node) -> str | None:
    """Return the name of the module of `torch.nn` that a node of a program is in, if in one."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    path, kind = stack[-1]
    kind_name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if not kind_name.startswith("torch.nn.") or ".container." in kind_name:
        return None
    return str(path).removeprefix(PREFIX).replace(".", "_") or None


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
        raise InputError(f"classifier: its program takes {images} inputs, expected images only")
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
            f"classifier: its program gives {kinds}, expected logits only; call .eval() on the "
            "model and let it return one tensor before torch.export.export"
        )


def with_one_output(program: ExportedProgram, index: int) -> ExportedProgram:
    """Return a copy of a program that gives one of its outputs; what only others need is gone.

    Args:
        program: that gives several, in whatever they stand.
        index: of the output, counted over all of them.
    """
    module = copy.deepcopy(program.graph_module)
    (output,) = module.graph.find_nodes(op="output")
    output.args = ((output.args[0][index],),)
    module.graph.eliminate_dead_code()
    module.recompile()
    entry = program.module_call_graph[0]
    assert entry.signature is not None
    signature = replace(
        entry.signature,
        outputs=entry.signature.outputs[index : index + 1],  # empty in a program from a file
        out_spec=pytree.tree_structure(0),  # no tuple, list or mapping
    )
    specs = [program.graph_signature.output_specs[index]]
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=replace(program.graph_signature, output_specs=specs),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=[replace(entry, signature=signature), *program.module_call_graph[1:]],
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def user_outputs(program: ExportedProgram) -> list[Any]:
    """Return what a program gives, by its shapes; nothing unless it gives outputs only."""
    specs = program.graph_signature.output_specs
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in specs):
        return []
    (output,) = program.graph.find_nodes(op="output")
    return [value.meta["val"] if isinstance(value, fx.Node) else None for value in output.args[0]]


def register(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Keep a tensor as what it is, a parameter or a buffer."""
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor)
