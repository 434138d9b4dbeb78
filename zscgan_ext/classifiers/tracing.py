"""From a model to its graph in normal form, which is proven to compute what the model does.

`torch.fx` is tried first. It is fast and keeps the names of modules, but it cannot see everything:
another name of an overwritten tensor, say. `torch.export` runs the code and sees more.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from zscgan_ext.classifiers.exported_program import export_program, functional, graph_of
from zscgan_ext.classifiers.normal_form.functional_layers import name_layers
from zscgan_ext.classifiers.normal_form.normalize import normalize
from zscgan_ext.classifiers.proof import Truth, check_repeats, require_same
from zscgan_ext.classifiers.symbolic_tracing import symbolic_graph, with_shared_tensors
from zscgan_ext.errors import InputError, first_line

ImageShape = tuple[int, int, int]  # (C, H, W)
# The name of a way of tracing, and what gives its graph, which is not yet in normal form.
Way = tuple[str, Callable[[], fx.GraphModule]]
# A key of `GraphModule.meta`: the image shape that a graph in normal form was made for.
NORMAL_FORM = "zscgan_ext normal form"


@torch.no_grad()
def trace(model: nn.Module, image_shape: ImageShape) -> fx.GraphModule:
    """Return the graph of a model in normal form; it shares the model's tensors.

    Args:
        model: in evaluation mode, or a graph that this function returned for such images, which is
            copied.
        image_shape: (C, H, W) of its input.

    Raises:
        InputError: if no way of tracing gives a graph that computes what the model does, or the
            model answers differently each time.
    """
    if image_shape_of(model) == tuple(image_shape):
        return copied(model)
    truth = Truth(model, image_shape)
    check_repeats(truth)
    program = cache(lambda: export_program(model, image_shape))  # takes seconds
    ways: list[Way] = [
        ("torch.fx", lambda: symbolic_graph(model)),
        ("torch.export", lambda: graph_of(program())),
        ("torch.export", lambda: graph_of(functional(program()))),
    ]
    return first_proven(truth, ways, image_shape, dict(model.named_parameters()))


@torch.no_grad()
def trace_program(program: ExportedProgram, image_shape: ImageShape) -> fx.GraphModule:
    """Return the graph of a program in normal form.

    Args:
        program: of `torch.export`, for any number of images.
        image_shape: (C, H, W) of its input.

    Raises:
        InputError: if it takes anything but images, or gives anything but logits, or as `trace`.
    """
    plain = graph_of(program)  # raises what is wrong with its inputs and outputs
    truth = Truth(program.module(), image_shape)
    check_repeats(truth)
    ways: list[Way] = [
        ("torch.export", lambda: plain),
        ("torch.export", lambda: graph_of(functional(program))),
    ]
    return first_proven(truth, ways, image_shape, program.state_dict)


def first_proven(
    truth: Truth, ways: list[Way], image_shape: ImageShape, tensors: Mapping[str, Tensor]
) -> fx.GraphModule:
    """Return the graph of the first way of tracing whose graph is proven to be right.

    Args:
        truth: what it has to compute.
        ways: to trace.
        image_shape: (C, H, W) of its input.
        tensors: of the model, by the names that it gives them.

    Raises:
        InputError: if there is no such way.
    """
    reasons: list[str] = []
    for name, capture in ways:
        try:
            graph = normalize(capture(), image_shape)
            require_same(truth, graph)
        except Exception as error:  # a model's own code may raise anything
            reasons.append(reason_of(name, error))
            continue
        graph.meta[NORMAL_FORM] = tuple(image_shape)
        name_layers(graph, tensors)
        return graph
    raise InputError(f"classifier: {'; '.join(dict.fromkeys(reasons))}{advice(reasons)}")


def image_shape_of(model: nn.Module) -> ImageShape | None:
    """Return the image shape that `trace` was given; None for a model that it did not return."""
    return model.meta.get(NORMAL_FORM) if isinstance(model, fx.GraphModule) else None


def copied(graph: nn.Module) -> fx.GraphModule:
    """Copy a graph and its modules, but not their tensors, nor the hooks that measure it."""
    result = with_shared_tensors(graph)
    assert isinstance(result, fx.GraphModule)
    for module in result.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return result


def reason_of(way: str, error: Exception) -> str:
    """Return in one line why a way of tracing gave no graph."""
    if isinstance(error, InputError):
        return str(error).removeprefix("classifier: ")
    return f"{way} cannot trace it ({first_line(error)})"


def advice(reasons: list[str]) -> str:
    """Return what to do, where a way of tracing failed."""
    if any("cannot trace" in reason for reason in reasons):
        return "; write its forward without branches on values"
    return ""
