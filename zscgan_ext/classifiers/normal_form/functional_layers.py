"""Layers in the place of functions that a classifier calls with constant weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zscgan_ext.classifiers.graph import attribute_of, submodule
from zscgan_ext.classifiers.normal_form.operators import arguments_of
from zscgan_ext.classifiers.trials import TensorMetadata
from zscgan_ext.errors import InputError

LAYERS = "functional_layers"  # submodule of the layers that the classifier called as functions
NAMES = "zscgan_ext layer names"  # a key of `GraphModule.meta`: the model's names of such layers


def turn_functions_into_layers(graph: fx.GraphModule, results: Mapping[fx.Node, Any]) -> None:
    """Put a module in the place of each function that takes constant weights.

    Args:
        graph: whose nodes call the operators of the normal form.
        results: of a trial run, in which the nodes gave what they give now.
    """
    submodule(graph, LAYERS)
    made: dict[Any, str] = {}
    for node in list(graph.graph.nodes):
        make = LAYER_OF_FUNCTION.get(node.target) if node.op == "call_function" else None
        if make is None:
            continue
        values = Arguments(graph, node, results)
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


def name_layers(graph: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Note what the model itself calls the layers above, for `name_in_model`.

    Args:
        graph: whose layers share the memory of the model's tensors.
        tensors: of the model, by the names that it gives them.
    """
    if not hasattr(graph, LAYERS):
        return
    owners = {
        (tensor.data_ptr(), tensor.shape): name.removesuffix(".weight")
        for name, tensor in reversed(list(tensors.items()))
        if name.endswith(".weight")
    }
    graph.meta[NAMES] = {
        f"{LAYERS}.{name}": owners[place]
        for name, layer in graph.get_submodule(LAYERS).named_children()
        if isinstance(weight := getattr(layer, "weight", None), Tensor)
        and (place := (weight.data_ptr(), weight.shape)) in owners
    }


def name_in_model(graph: fx.GraphModule, target: str) -> str:
    """Return what the model itself calls a layer of its graph."""
    names: Mapping[str, str] = graph.meta.get(NAMES, {})
    return names.get(target, target)


class Arguments:
    """The arguments of a function that is called with constant weights.

    Args:
        graph: holds the weights.
        node: calls the function.
        results: of a trial run.
    """

    def __init__(
        self, graph: fx.GraphModule, node: fx.Node, results: Mapping[fx.Node, Any]
    ) -> None:
        self.graph = graph
        self.node = node
        self.results = results
        self.arguments = arguments_of(node)
        self.input = self.value("input")
        self.tensors: list[Tensor] = []

    def value(self, name: str, default: Any = None) -> Any:
        """Return an argument that is no tensor."""
        return self.arguments.get(name, default)

    def tensor(self, name: str) -> Tensor | None:
        """Return a weight, or None where none is given.

        Raises:
            InputError: if it is computed from the images.
        """
        value = self.value(name)
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

    def channels(self) -> int:
        """Return the number of channels of the input."""
        found = self.results[self.node]
        assert isinstance(found, TensorMetadata)
        assert isinstance(found.sizes[1], int)
        return found.sizes[1]

    def weight(self) -> Tensor:
        """Return the weight, which has to be there."""
        weight = self.tensor("weight")
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
        weight, bias = call.weight(), call.tensor("bias")
        groups = call.value("groups", 1)
        padding = call.value("padding", 0)
        layer = on_meta(
            make,
            *(weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])),
            stride=sizes(call.value("stride", 1), dimensions),
            padding=padding if isinstance(padding, str) else sizes(padding, dimensions),
            dilation=sizes(call.value("dilation", 1), dimensions),
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
        weight, bias = call.weight(), call.tensor("bias")
        groups = call.value("groups", 1)
        layer = on_meta(
            make,
            *(weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:])),
            stride=sizes(call.value("stride", 1), dimensions),
            padding=sizes(call.value("padding", 0), dimensions),
            output_padding=sizes(call.value("output_padding", 0), dimensions),
            groups=groups,
            dilation=sizes(call.value("dilation", 1), dimensions),
            bias=bias is not None,
        )
        return with_parameters(layer, weight, bias)

    return layer_of


def linear(call: Arguments) -> nn.Module:
    """Return the layer of a call of `linear`."""
    weight, bias = call.weight(), call.tensor("bias")
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
    mean, variance = call.tensor("running_mean"), call.tensor("running_var")
    weight, bias = call.tensor("weight"), call.tensor("bias")
    if call.value("training", False) or mean is None or variance is None:
        raise InputError(
            f"classifier: {call.node.name} normalizes with the statistics of the batch, expected "
            "stored ones; call .eval() before the model is traced or exported"
        )
    layer = on_meta(BatchNorm, len(mean), eps=call.value("eps", 1e-5), affine=weight is not None)
    if weight is not None and bias is None:
        bias = torch.zeros_like(weight)
    layer.running_mean, layer.running_var = mean, variance
    layer.num_batches_tracked = None
    return with_parameters(layer, weight, bias)


def layer_norm(call: Arguments) -> nn.Module:
    """Return the layer of a call of `layer_norm`."""
    weight, bias = call.tensor("weight"), call.tensor("bias")
    layer = on_meta(
        nn.LayerNorm,
        tuple(call.value("normalized_shape")),
        eps=call.value("eps", 1e-5),
        elementwise_affine=weight is not None,
        bias=bias is not None,
    )
    return with_parameters(layer, weight, bias)


def group_norm(call: Arguments) -> nn.Module:
    """Return the layer of a call of `group_norm`."""
    weight, bias = call.tensor("weight"), call.tensor("bias")
    channels = call.channels()
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)
    elif bias is None and weight is not None:
        bias = torch.zeros_like(weight)
    groups, eps = call.value("num_groups"), call.value("eps", 1e-5)
    layer = on_meta(nn.GroupNorm, groups, channels, eps=eps, affine=weight is not None)
    return with_parameters(layer, weight, bias)


class InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """Instance norm of any number of dimensions, called as a function."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept all."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C, ...] to the same shape; the first dimension always is that of images."""
        result: Tensor = self._apply_instance_norm(input)  # type: ignore[no-untyped-call]
        return result


def instance_norm(call: Arguments) -> nn.Module:
    """Return the layer of a call of `instance_norm`.

    Raises:
        InputError: if it normalizes with stored statistics.
    """
    if call.value("use_input_stats", True) is False:
        raise InputError(
            f"classifier: {call.node.name} is an instance norm with stored statistics, which is "
            "batch norm; write it as that"
        )
    weight, bias = call.tensor("weight"), call.tensor("bias")
    eps = call.value("eps", 1e-5)
    layer = on_meta(InstanceNorm, call.channels(), eps=eps, affine=weight is not None)
    return with_parameters(layer, weight, bias)


def prelu(call: Arguments) -> nn.Module:
    """Return the layer of a call of `prelu`."""
    weight = call.weight()
    layer: nn.Module = on_meta(nn.PReLU, weight.numel())
    layer.weight = nn.Parameter(weight.flatten(), requires_grad=False)
    return layer


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
    F.instance_norm: instance_norm,
    F.prelu: prelu,
}
