"""Convolutions, linear layers and batch norm as ONNX nodes."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext.errors import InputError
from zscgan_ext.export.integers import IntegerWeight, integer_weight
from zscgan_ext.export.onnx.graph import PADDING_MODES, OnnxGraph, QuantizedValue, Value
from zscgan_ext.ops.layout import broadcast_per_channel
from zscgan_ext.quantization.quantizers import QuantizedLayer, TransposedConvolution, WeightedLayer

# Sums of products stay inside int32 with a bias of at most half its range.
LARGEST_BIAS = 2**30


def add_layer(graph: OnnxGraph, name: str, layer: WeightedLayer | nn.Conv3d, value: Value) -> str:
    """Add a float convolution or linear layer; return its output."""
    weight = graph.initializer(f"{name}_weight", layer.weight)
    bias = None if layer.bias is None else graph.initializer(f"{name}_bias", layer.bias)
    return add_product(graph, name, layer, graph.floating_apart(value), weight, bias)


def add_quantized_layer(graph: OnnxGraph, name: str, layer: QuantizedLayer, value: Value) -> str:
    """Add a layer with quantized weights; return its output.

    Where its input is quantized and its weight symmetric, its bias is int32 with the scale of the
    products, as integer kernels need it; elsewhere the layer computes in float32, and the bias
    stays so.
    """
    weight, bias = integer_weight(layer), layer.layer.bias
    bias_name = None
    if bias is not None and isinstance(value, QuantizedValue) and layer.symmetric:
        weight = make_room_for_bias(weight, bias, value.scale)
        integers, scale = integer_bias(bias, weight.scale, value.scale)
        bias_name = graph.dequantized_bias(f"{name}_bias", integers, scale)
    elif bias is not None:
        bias_name = graph.initializer(f"{name}_bias", bias)
    if isinstance(layer.layer, TransposedConvolution) and not graph.packs_weights:
        return add_explicit_transposed(graph, name, layer.layer, value, weight, bias_name)
    weight_name = graph.dequantized_weight(f"{name}_weight", weight)
    return add_product(graph, name, layer.layer, value, weight_name, bias_name)


def add_explicit_transposed(
    graph: OnnxGraph,
    name: str,
    layer: TransposedConvolution,
    value: Value,
    weight: IntegerWeight,
    bias: str | None,
) -> str:
    """Add a transposed convolution whose weight comes from DequantizeLinear directly.

    Raises:
        InputError: if it has groups: then no axis of its weight is that of the output channels.
    """
    if layer.groups > 1:
        raise InputError(
            f"export: {name} is a transposed convolution with groups, which TensorRT cannot "
            "execute with a scale for each output channel; quantize without --target tensorrt"
        )
    swapped = replace(weight, integers=layer.swapped(weight.integers).contiguous())
    others = [graph.dequantized_weight(f"{name}_weight", swapped, axis=1)]
    others += [] if bias is None else [bias]
    return add_transposed_node(graph, name, layer, graph.floating(value), others)


def integer_bias(
    bias: Tensor, weight_scale: Tensor, input_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Round a bias [O] to multiples of input scale times weight scale; return int32s and scales."""
    scale = weight_scale.numpy() * np.float32(input_scale)
    integers = np.rint(bias.detach().double().cpu().numpy() / scale)
    return integers.astype(np.int32), scale


def make_room_for_bias(weight: IntegerWeight, bias: Tensor, input_scale: float) -> IntegerWeight:
    """Give channels whose bias would leave int32 a larger scale.

    Their weights are many orders of magnitude smaller than their bias (a dead channel, say), so
    that rounding them to coarser integers changes less than float32 resolves.
    """
    least = bias.detach().float().cpu().abs() / (input_scale * LARGEST_BIAS)  # [O]
    scale = torch.maximum(weight.scale, least)
    if torch.equal(scale, weight.scale):
        return weight
    exact = weight.dequantize() / broadcast_per_channel(scale, weight.integers, 0)
    integers = torch.round(exact).to(torch.int16) + broadcast_per_channel(
        weight.zero_point, exact, 0
    )
    is_larger = broadcast_per_channel(scale > weight.scale, exact, 0)
    integers = torch.where(is_larger, integers, weight.integers)
    return replace(weight, integers=integers, scale=scale)


def add_product(
    graph: OnnxGraph,
    name: str,
    layer: WeightedLayer | nn.Conv3d,
    x: Value,
    weight: str,
    bias: str | None,
) -> str:
    """Add the node that multiplies an input with a weight and adds a bias."""
    others = [weight] + ([] if bias is None else [bias])
    if isinstance(layer, nn.Linear):
        return graph.node("Gemm", [graph.floating(x), *others], name, transB=1)  # [N, features]
    if isinstance(layer, TransposedConvolution):
        return add_transposed_convolution(graph, name, layer, graph.floating(x), others)
    pads = convolution_pads(layer)
    if layer.padding_mode != "zeros":
        x = add_padding(graph, name, x, PADDING_MODES[layer.padding_mode], pads)
        pads = [0] * len(pads)
    return graph.node(
        "Conv",
        [graph.floating(x), *others],
        name,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        group=layer.groups,
        pads=pads,
    )


def add_transposed_convolution(
    graph: OnnxGraph, name: str, layer: TransposedConvolution, x: str, others: list[str]
) -> str:
    """Add a transposed convolution, whose weight ONNX takes with the input channels first."""
    weight, *bias = others
    outputs, inputs, *kernel = layer.weight.shape  # [O, I / groups, kH, kW]
    groups = layer.groups
    shapes = [[groups, outputs // groups, inputs, *kernel], [-1, outputs // groups, *kernel]]
    before, after = (
        graph.initializer(f"{name}_shape", np.array(shape, np.int64)) for shape in shapes
    )
    weight = graph.node("Reshape", [weight, before], f"{weight}_grouped")
    weight = graph.node("Transpose", [weight], f"{weight}_swapped", perm=[0, 2, 1, 3, 4])
    weight = graph.node("Reshape", [weight, after], f"{weight}_input_first")
    return add_transposed_node(graph, name, layer, x, [weight, *bias])


def add_transposed_node(
    graph: OnnxGraph, name: str, layer: TransposedConvolution, x: str, others: list[str]
) -> str:
    """Add the node of a transposed convolution, given its weight as ONNX takes it, and its bias."""
    return graph.node(
        "ConvTranspose",
        [x, *others],
        name,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        group=layer.groups,
        pads=[int(p) for p in (*layer.padding, *layer.padding)],
        output_padding=list(layer.output_padding),
    )


def add_transposed_layer(
    graph: OnnxGraph, name: str, layer: nn.ConvTranspose1d | nn.ConvTranspose3d, value: Value
) -> str:
    """Add a float transposed convolution that is never quantized; return its output."""
    inputs = [graph.floating_apart(value), graph.initializer(f"{name}_weight", layer.weight)]
    if layer.bias is not None:
        inputs.append(graph.initializer(f"{name}_bias", layer.bias))
    return graph.node(
        "ConvTranspose",
        inputs,
        name,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        group=layer.groups,
        pads=[int(p) for p in (*layer.padding, *layer.padding)],
        output_padding=list(layer.output_padding),
    )


def add_padding(graph: OnnxGraph, name: str, value: Value, mode: str, pads: list[int]) -> Value:
    """Pad the last dimensions in one of ONNX's modes, keeping the input's quantization.

    Args:
        graph: gets the node.
        name: of the layer that pads.
        value: what is padded, with two dimensions before those.
        mode: `reflect`, `edge` or `wrap`.
        pads: before each dimension, then behind each.
    """
    half = len(pads) // 2
    whole = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    inputs = [graph.initializer(f"{name}_pads", whole)]
    if isinstance(value, QuantizedValue):
        padded = graph.node("Pad", [value.integers, *inputs], f"{name}_padded", mode=mode)
        return replace(value, integers=padded)
    return graph.node("Pad", [graph.floating(value), *inputs], f"{name}_padded", mode=mode)


def convolution_pads(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Return a convolution's padding as ONNX writes it: before each dimension, then behind."""
    if layer.padding == "valid":
        return [0] * (2 * len(layer.kernel_size))
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return [int(p) for p in (*layer.padding, *layer.padding)]


def add_batch_norm(graph: OnnxGraph, name: str, layer: _BatchNorm, value: Value) -> str:
    """Add batch norm with its stored statistics; return its output."""
    if layer.running_mean is None or layer.running_var is None:
        raise InputError(
            f"export: {name}: expected batch norm with running statistics, got one without"
        )
    ones = torch.ones_like(layer.running_mean)
    parameters = {
        "weight": ones if layer.weight is None else layer.weight,
        "bias": 0 * ones if layer.bias is None else layer.bias,
        "mean": layer.running_mean,
        "variance": layer.running_var,
    }
    inputs = [graph.initializer(f"{name}_{key}", values) for key, values in parameters.items()]
    x = graph.floating(value)
    return graph.node("BatchNormalization", [x, *inputs], name, epsilon=layer.eps)
