"""Layers in the place of functions that a classifier calls with constant weights."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zscgan_ext.classifiers.graph import attribute_of, submodule
from zscgan_ext.errors import InputError

LAYERS = "functional_layers"  # submodule of the layers that the classifier called as functions


def turn_functions_into_layers(graph: fx.GraphModule) -> None:
    """Put a module in the place of each function that takes constant weights."""
    submodule(graph, LAYERS)
    made: dict[Any, str] = {}
    for node in list(graph.graph.nodes):
        make = LAYER_OF_FUNCTION.get(node.target) if node.op == "call_function" else None
        if make is None:
            continue
        values = Arguments(graph, node)
        layer = make(values)
        key = (type(layer), str(layer), *(id(value) for value in values.tensors))
        if key not in made:
            made[key] = f"{LAYERS}.{node.name}"
            graph.add_submodule(made[key], layer.eval())
        with graph.graph.inserting_before(node):
            called = graph.graph.call_module(made[key], (values.input,))
        node.replace_all_uses_with(called)
        called.name = node.name
        graph.graph.erase_node(node)


class Arguments:
    """The arguments of a function that is called with constant weights.

    Args:
        graph: holds the weights.
        node: calls the function.
    """

    def __init__(self, graph: fx.GraphModule, node: fx.Node) -> None:
        self.graph = graph
        self.node = node
        self.input = self.value(0, "input")
        self.tensors: list[Tensor] = []

    def value(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument that is no tensor."""
        if index < len(self.node.args):
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def tensor(self, index: int, name: str) -> Tensor | None:
        """Return a weight, or None where none is given.

        Raises:
            InputError: if it is computed from the images.
        """
        value = self.value(index, name)
        if value is None:
            return None
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            raise InputError(
                f"classifier: {self.node.name} ({getattr(self.node.target, '__name__', '')}) takes "
                f"a {name} that depends on the images, which cannot be quantized; "
                "write it with layers whose weights are constant"
            )
        found: Tensor = attribute_of(self.graph, value)
        self.tensors.append(found)
        return found

    def weight(self) -> Tensor:
        """Return the weight, which has to be there."""
        weight = self.tensor(1, "weight")
        assert weight is not None
        return weight


def on_meta(make: Callable[..., nn.Module], *arguments: Any, **options: Any) -> Any:
    """Build a layer whose parameters take no memory; others will stand in their place."""
    return make(*arguments, **options, device="meta")


def with_parameters(layer: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    """Give a layer parameters that share the memory of these, and return it."""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        setattr(layer, name, value)
    return layer


def convolution(make: Any, dimensions: int) -> Callable[[Arguments], nn.Module]:
    """Return what turns a call of a convolution into its layer."""

    def layer_of(call: Arguments) -> nn.Module:
        weight, bias = call.weight(), call.tensor(2, "bias")
        groups = call.value(6, "groups", 1)
        padding = call.value(4, "padding", 0)
        layer = on_meta(
            make,
            *(weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])),
            stride=sizes(call.value(3, "stride", 1), dimensions),
            padding=padding if isinstance(padding, str) else sizes(padding, dimensions),
            dilation=sizes(call.value(5, "dilation", 1), dimensions),
            groups=groups,
            bias=bias is not None,
        )
        return with_parameters(layer, weight, bias)

    return layer_of


def sizes(value: Any, dimensions: int) -> tuple[int, ...]:
    """Return one size for each dimension."""
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) * (dimensions // len(value))


def transposed_convolution(make: Any, dimensions: int) -> Callable[[Arguments], nn.Module]:
    """Return what turns a call of a transposed convolution into its layer."""

    def layer_of(call: Arguments) -> nn.Module:
        weight, bias = call.weight(), call.tensor(2, "bias")
        groups = call.value(6, "groups", 1)
        layer = on_meta(
            make,
            *(weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:])),
            stride=sizes(call.value(3, "stride", 1), dimensions),
            padding=sizes(call.value(4, "padding", 0), dimensions),
            output_padding=sizes(call.value(5, "output_padding", 0), dimensions),
            groups=groups,
            dilation=sizes(call.value(7, "dilation", 1), dimensions),
            bias=bias is not None,
        )
        return with_parameters(layer, weight, bias)

    return layer_of


def linear(call: Arguments) -> nn.Module:
    """Return the layer of a call of `linear`."""
    weight, bias = call.weight(), call.tensor(2, "bias")
    layer = on_meta(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    return with_parameters(layer, weight, bias)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of any number of dimensions, called as a function."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept all."""


def batch_norm(call: Arguments) -> nn.Module:
    """Return the layer of a call of `batch_norm`.

    Raises:
        InputError: if it normalizes with the statistics of the batch.
    """
    mean, variance = call.tensor(1, "running_mean"), call.tensor(2, "running_var")
    weight, bias = call.tensor(3, "weight"), call.tensor(4, "bias")
    if call.value(5, "training", False) or mean is None or variance is None:
        raise InputError(
            f"classifier: {call.node.name} normalizes with the statistics of the batch, needed are "
            "stored ones; call .eval() before the model is traced or exported"
        )
    layer = on_meta(BatchNorm, len(mean), eps=call.value(7, "eps", 1e-5), affine=weight is not None)
    if weight is not None and bias is None:
        bias = torch.zeros_like(weight)
    layer.running_mean, layer.running_var = mean, variance
    layer.num_batches_tracked = None
    return with_parameters(layer, weight, bias)


def layer_norm(call: Arguments) -> nn.Module:
    """Return the layer of a call of `layer_norm`."""
    weight, bias = call.tensor(2, "weight"), call.tensor(3, "bias")
    layer = on_meta(
        nn.LayerNorm,
        tuple(call.value(1, "normalized_shape")),
        eps=call.value(4, "eps", 1e-5),
        elementwise_affine=weight is not None,
        bias=bias is not None,
    )
    return with_parameters(layer, weight, bias)


def group_norm(call: Arguments) -> nn.Module:
    """Return the layer of a call of `group_norm` with a weight and a bias."""
    groups = call.value(1, "num_groups")
    weight, bias = call.tensor(2, "weight"), call.tensor(3, "bias")
    if weight is None or bias is None:
        raise InputError(
            f"classifier: {call.node.name} normalizes groups without weight and bias, whose number "
            "of channels is not known; give it both, or use nn.GroupNorm"
        )
    layer = on_meta(nn.GroupNorm, groups, len(weight), eps=call.value(4, "eps", 1e-5))
    return with_parameters(layer, weight, bias)


LAYER_OF_FUNCTION: dict[Any, Callable[[Arguments], nn.Module]] = {
    F.conv1d: convolution(nn.Conv1d, 1),
    F.conv2d: convolution(nn.Conv2d, 2),
    F.conv3d: convolution(nn.Conv3d, 3),
    F.conv_transpose1d: transposed_convolution(nn.ConvTranspose1d, 1),
    F.conv_transpose2d: transposed_convolution(nn.ConvTranspose2d, 2),
    F.conv_transpose3d: transposed_convolution(nn.ConvTranspose3d, 3),
    F.linear: linear,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
}
