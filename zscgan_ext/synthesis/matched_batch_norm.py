"""Frozen batch norms that measure their input while they normalize it.

The graph of a frozen classifier is rewritten: batch norm, the residual that is added to it, the
ReLU or ReLU6 after that, and mean and variance of its input become one op, and convolutions forget
their inputs.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext import ops
from zscgan_ext.classifiers.batch_norm import affine, stored, stores_statistics
from zscgan_ext.classifiers.graph import activate, activation_of, calls, module_of, only_user
from zscgan_ext.classifiers.proof import Truth, require_near
from zscgan_ext.classifiers.tracing import copied, image_shape_of
from zscgan_ext.ops.layout import compute_dtype
from zscgan_ext.synthesis.frozen_convolution import FrozenConvolution

MATCHED = "matched_batch_norms"  # submodule of them
Measured = Callable[[_BatchNorm, Tensor, Tensor], None]  # takes a layer's mean and variance


class MatchedBatchNorm(nn.Module):
    """A frozen batch norm, a residual and an activation, and the statistics of the input.

    Args:
        layer: stores statistics; its values at this moment are taken.
        activation: one of `ops.ACTIVATIONS`.
        measured: is handed mean and variance while gradients are wanted.
    """

    multiplier: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, layer: _BatchNorm, activation: str, measured: Measured) -> None:
        super().__init__()
        self.layer = layer
        self.activation = activation
        self.measured = measured
        mean = stored(layer.running_mean)
        multiplier, offset = affine(layer)
        dtype = compute_dtype(mean)
        for name, values in (("multiplier", multiplier), ("offset", offset), ("shift", mean)):
            self.register_buffer(name, values.to(dtype), persistent=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map [N, C, ...], and a residual that broadcasts with it, to the activation's result."""
        if residual is None or residual.shape == x.shape:
            return self.normalize(x, residual, self.activation)
        return activate(self.normalize(x, None, "none") + residual, self.activation)

    def normalize(self, x: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """Normalize x, add a residual of its shape, and apply an activation."""
        if residual is not None:
            residual = residual.to(x.dtype)  # autocast may have left it wider
        if not (torch.is_grad_enabled() and x.requires_grad):
            return ops.frozen_batch_norm(x, self.multiplier, self.offset, activation, residual)
        y, mean, variance = ops.frozen_batch_norm_with_stats(
            x, self.multiplier, self.offset, self.shift, activation, residual
        )
        self.measured(self.layer, mean, variance)
        return y


def matched_graph(model: nn.Module, measured: Measured) -> fx.GraphModule | None:
    """Rewrite a frozen classifier's graph so that its batch norms measure their inputs.

    Args:
        model: what `trace` returned; stays as it is.
        measured: called by each batch norm, in the order of the forward pass.

    Returns:
        The new graph, or None for a model that was not traced.
    """
    image_shape = image_shape_of(model)
    if image_shape is None:
        return None
    graph = rewritten(model, measured)
    truth, remake = Truth(model, image_shape), partial(rewritten, measured=measured)
    require_near(truth, graph, "measuring its batch norms", remake)
    return graph


def rewritten(model: nn.Module, measured: Measured) -> fx.GraphModule:
    """Return a copy of a graph whose batch norms measure their inputs."""
    graph = copied(model)
    for node in list(graph.graph.nodes):
        layer = module_of(graph, node)
        if stores_statistics(layer):
            fuse_batch_norm(graph, node, layer, measured)
        elif isinstance(layer, nn.Conv2d) and FrozenConvolution.can_be_frozen(layer):
            graph.set_submodule(str(node.target), FrozenConvolution(layer))
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def fuse_batch_norm(
    graph: fx.GraphModule, node: fx.Node, layer: _BatchNorm, measured: Measured
) -> None:
    """Put a `MatchedBatchNorm` in the place of a batch norm and of what follows it."""
    arguments, replaced = [node.args[0]], [node]
    residual = residual_of(node)
    if residual is not None:
        arguments.append(residual)
        replaced.append(next(iter(node.users)))
    user = only_user(replaced[-1])
    activation = activation_of(user) if user is not None else "none"
    if user is not None and activation != "none":
        replaced.append(user)
    name = f"{MATCHED}.{node.name}"
    graph.add_submodule(name, MatchedBatchNorm(layer, activation, measured))
    with graph.graph.inserting_before(replaced[-1]):
        fused = graph.graph.call_module(name, tuple(arguments))
    replaced[-1].replace_all_uses_with(fused)
    for old in reversed(replaced):
        graph.graph.erase_node(old)


def residual_of(node: fx.Node) -> Any:
    """Return the node that is added to a node's result and to nothing else, if one is."""
    addition = only_user(node)
    if addition is None or not calls(addition, operator.add):
        return None
    if addition.args[0] is addition.args[1]:
        return None
    other = addition.args[1] if addition.args[0] is node else addition.args[0]
    return other if isinstance(other, fx.Node) else None
