"""Convolutions, linear layers and batch norm as ONNX nodes."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from zscgan_ext.errors import InputError
from zscgan_ext.export.integers import IntegerWeight, integer_weight
from zscgan_ext.export.onnx_graph import Grid, OnnxGraph, Value
from zscgan_ext.quantization.quantizers import QuantizedLayer

# Sums of products stay inside int32 with a bias of at most half its range.
LARGEST_BIAS = 2**30


def add_layer(graph: OnnxGraph, name: str, layer: nn.Conv2d | nn.Linear, value: Value) -> str:
    """Add a float convolution or linear layer; return its output."""
    weight = graph.initializer(f"{name}_weight", layer.weight)
    bias = None if layer.bias is None else graph.initializer(f"{name}_bias", layer.bias)
    return add_product(graph, name, layer, graph.floating(value), weight, bias)


def add_quantized_layer(graph: OnnxGraph, name: str, layer: QuantizedLayer, value: Value) -> str:
    """Add a layer with quantized weights; return its output.

    Where its input is on a grid and its weight symmetric, its bias is int32 with the scale of the
    products, as integer kernels need it; elsewhere the layer computes in float32, and the bias
    stays so.
    """
    weight, bias = integer_weight(layer), layer.layer.bias
    bias_name = None
    if bias is not None and isinstance(value, Grid) and layer.symmetric:
        weight = make_room_for_bias(weight, bias, value.scale)
        integers, scale = integer_bias(bias, weight.scale, value.scale)
        bias_name = graph.dequantized_bias(f"{name}_bias", integers, scale)
    elif bias is not None:
        bias_name = graph.initializer(f"{name}_bias", bias)
    weight_name = graph.dequantized_weight(f"{name}_weight", weight)
    return add_product(graph, name, layer.layer, graph.floating(value), weight_name, bias_name)


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
    shape = (-1, *[1] * (weight.integers.dim() - 1))
    exact = weight.dequantize() / scale.view(shape)
    integers = torch.round(exact).to(torch.int16) + weight.zero_point.view(shape)
    integers = torch.where((scale > weight.scale).view(shape), integers, weight.integers)
    return replace(weight, integers=integers, scale=scale)


def add_product(
    graph: OnnxGraph,
    name: str,
    layer: nn.Conv2d | nn.Linear,
    x: str,
    weight: str,
    bias: str | None,
) -> str:
    """Add the node that multiplies an input with a weight and adds a bias."""
    inputs = [x, weight] + ([] if bias is None else [bias])
    if isinstance(layer, nn.Linear):
        return graph.node("Gemm", inputs, name, transB=1)  # of [N, features]
    if layer.padding_mode != "zeros":
        raise InputError(
            f"export: {name} pads with {layer.padding_mode!r}, "
            "ONNX convolutions pad with zeros; pad in a layer of its own"
        )
    return graph.node(
        "Conv",
        inputs,
        name,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        group=layer.groups,
        pads=convolution_pads(layer),
    )


def convolution_pads(layer: nn.Conv2d) -> list[int]:
    """Return a convolution's padding as ONNX writes it: top, left, bottom, right."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return [int(p) for p in (*layer.padding, *layer.padding)]


def add_batch_norm(
    graph: OnnxGraph, name: str, layer: nn.BatchNorm1d | nn.BatchNorm2d, value: Value
) -> str:
    """Add batch norm with its stored statistics; return its output."""
    if layer.running_mean is None or layer.running_var is None:
        raise InputError(f"export: {name} keeps no statistics, needed is batch norm that does")
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
