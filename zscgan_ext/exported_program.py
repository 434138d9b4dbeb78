"""From a `torch.export` program to a graph of torch functions, as `torch.fx` would trace it.

A program calls ATen's operators and takes its weights as inputs. Here operators become the
functions of `torch` and `torch.nn.functional` that they came from, weights attributes of the graph.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from zscgan_ext.errors import InputError

TENSORS = "tensors"  # submodule of the program's weights and constants
aten = torch.ops.aten


def first(arguments: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls a function with the first arguments of an operator alone."""
    return lambda call, *args, **kwargs: call(function, *args[:arguments], **kwargs)


def convolution(call: Any, x: Any, weight: Any, bias: Any, *options: Any) -> Any:
    """Call the convolution that ATen's general one is."""
    stride, padding, dilation, transposed, output_padding, groups = options
    if transposed:
        rest = (stride, padding, output_padding, groups, dilation)
        return call(F.conv_transpose2d, x, weight, bias, *rest)
    function = F.conv1d if len(stride) == 1 else F.conv2d
    return call(function, x, weight, bias, stride, padding, dilation, groups)


def batch_norm(call: Any, x: Any, *options: Any) -> Any:
    """Call batch norm, whose arguments have another order."""
    weight, bias, mean, variance, training, momentum, eps, *_ = options
    return call(F.batch_norm, x, mean, variance, weight, bias, training, momentum, eps)


def batch_norm_of_several(call: Any, x: Any, *options: Any) -> Any:
    """Call batch norm where the operator gives two more results, which nobody takes."""
    weight, bias, mean, variance, momentum, eps = options
    normalized = call(F.batch_norm, x, mean, variance, weight, bias, False, momentum, eps)
    return [normalized, None, None]


def hardtanh(call: Any, x: Any, low: float = -1.0, high: float = 1.0) -> Any:
    """Call ReLU6 where the bounds are its."""
    return call(F.relu6, x) if (low, high) == (0, 6) else call(F.hardtanh, x, low, high)


def softmax(call: Any, x: Any, dim: int, *_: Any) -> Any:
    """Call softmax; its dtype is that of x."""
    return call(torch.softmax, x, dim)


def elu(call: Any, x: Any, alpha: float = 1.0, *_: Any) -> Any:
    """Call ELU; torch's own has no other scales."""
    return call(F.elu, x, alpha)


def cut(call: Any, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """Call the indexing that a slice is."""
    if start in (None, 0) and step == 1 and (end is None or end == torch.iinfo(torch.int64).max):
        return x
    whole = (slice(None),) * dim
    return call(operator.getitem, x, (*whole, slice(start, end, step)))


def select(call: Any, x: Any, dim: int, index: int) -> Any:
    """Call the indexing that takes one of a dimension."""
    return call(operator.getitem, x, (*(slice(None),) * dim, index))


def same(call: Any, x: Any, *_: Any, **__: Any) -> Any:
    """Pass the input on."""
    return x


def dropout(call: Any, x: Any, p: float, training: bool) -> Any:
    """Call dropout."""
    return call(F.dropout, x, p, training)


def pad_with_constant(call: Any, x: Any, pad: Any, value: float = 0.0) -> Any:
    """Call padding."""
    return call(F.pad, x, pad, "constant", value)


def resize(mode: str) -> Callable[..., Any]:
    """Return what calls `interpolate` in a mode."""

    def calls(call: Any, x: Any, size: Any, *options: Any) -> Any:
        corners = {} if mode == "nearest" else {"align_corners": bool(options[0])}
        scales = options[-1] if isinstance(options[-1], list | tuple) else None
        size = None if scales else size
        return call(F.interpolate, x, size, scale_factor=scales, mode=mode, **corners)

    return calls


def maxima(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls pooling where the operator gives indices too, which nobody takes."""
    return lambda call, *args: [call(function, *args), None]


def method(name: str) -> Callable[..., Any]:
    """Return what calls a tensor's method."""
    return lambda call, *args, **kwargs: call(name, *args, **kwargs)


# By the operator's name, without its overload and the underscore of what works in place.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv1d": F.conv1d,
    "conv2d": F.conv2d,
    "conv_transpose2d": F.conv_transpose2d,
    "linear": F.linear,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "prelu": F.prelu,
    "softplus": F.softplus,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "pow": torch.pow,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "clamp": torch.clamp,
    "matmul": torch.matmul,
    "bmm": torch.bmm,
    "einsum": torch.einsum,
    "cat": torch.cat,
    "stack": torch.stack,
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "mean": torch.mean,
    "sum": torch.sum,
    "amax": torch.amax,
    "flatten": torch.flatten,
    "reshape": torch.reshape,
    "permute": torch.permute,
    "transpose": torch.transpose,
    "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze,
    "chunk": torch.chunk,
    "unbind": torch.unbind,
    "split": torch.split,
    "split_with_sizes": torch.split,
    "roll": torch.roll,
    "flip": torch.flip,
    "pad": F.pad,
    "pixel_shuffle": F.pixel_shuffle,
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
}
CALLS: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm_of_several,
    "layer_norm": first(5, F.layer_norm),
    "group_norm": first(5, F.group_norm),
    "hardtanh": hardtanh,
    "elu": elu,
    "softmax": softmax,
    "_softmax": softmax,
    "slice": cut,
    "select": select,
    "view": method("reshape"),
    "_unsafe_view": method("reshape"),
    "expand": method("expand"),
    "expand_as": method("expand_as"),
    "adaptive_max_pool2d": maxima(F.adaptive_max_pool2d),
    "max_pool2d_with_indices": maxima(F.max_pool2d),
    "repeat": method("repeat"),
    "contiguous": method("contiguous"),
    "clone": method("contiguous"),
    "dropout": dropout,
    "feature_dropout": dropout,
    "alias": same,
    "detach": same,
    "lift_fresh_copy": same,
    "constant_pad_nd": pad_with_constant,
    "upsample_nearest2d": resize("nearest"),
    "upsample_bilinear2d": resize("bilinear"),
    "upsample_bicubic2d": resize("bicubic"),
    **{name: first(100, function) for name, function in FUNCTIONS.items()},
}

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
