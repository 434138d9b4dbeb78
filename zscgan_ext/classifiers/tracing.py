"""From a model to its graph in normal form: `torch.fx`, or `torch.export` where that cannot."""

import contextlib
import copy
import io
import logging

import torch
from torch import fx, nn
from torch.export import Dim

from zscgan_ext.classifiers.exported_program import graph_of
from zscgan_ext.classifiers.graph import device_of
from zscgan_ext.classifiers.graph_passes import normalize
from zscgan_ext.errors import InputError, first_line


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace a model's graph with `torch.fx`; it shares the model's tensors.

    Raises:
        InputError: if torch.fx cannot; the message gives its reason in one line.
    """
    if isinstance(model, fx.GraphModule):  # tracing anew would only lose names
        return normalize(fx.GraphModule(model, copy.deepcopy(model.graph)))
    try:
        graph = fx.symbolic_trace(with_shared_tensors(model))
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"classifier: torch.fx cannot trace its graph ({reason})") from None
    return normalize(graph)


def with_shared_tensors(model: nn.Module) -> nn.Module:
    """Copy a model without its tensors, so that tracing may leave something in its modules."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def traceable(model: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return a model that `trace` can trace: the model itself, or what `torch.export` makes of it.

    Args:
        model: in evaluation mode.
        image_shape: (C, H, W) of its input.

    Raises:
        InputError: if neither can capture it.
    """
    try:
        trace(model)
        return model
    except InputError as error:
        reason_of_fx = str(error).removeprefix("classifier: ")
    images = torch.zeros(2, *image_shape, device=device_of(model))
    logging.disable(logging.WARNING)  # what matters of it is in the error
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it prints graphs
            program = torch.export.export(
                model, (images,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False
            )
    except Exception as error:
        raise InputError(
            f"classifier: {reason_of_fx}, nor can torch.export ({first_line(error)}); "
            "write its forward without branches on values"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return normalize(graph_of(program))
