"""Normalization by statistics of the images themselves, as ONNX nodes."""

import math
from typing import Any

import numpy as np
import torch

from zscgan_ext.export.onnx.call import Call, as_list, known, reshaped
from zscgan_ext.export.onnx.graph import Value
from zscgan_ext.export.onnx.reductions import norm_along, reduce_over


def layer_norm(call: Call) -> Value:
    """Normalize the last dimensions of each vector."""
    shape = tuple(call.option("normalized_shape"))
    weight, bias = call.tensor("weight"), call.tensor("bias")
    weight = weight or call.graph.initializer(f"{call.name}_weight", torch.ones(shape))
    inputs = [call.floating(), weight, *([] if bias is None else [bias])]
    epsilon = float(call.option("eps", 1e-5))
    return call.add("LayerNormalization", inputs, axis=-len(shape), epsilon=epsilon)


def rms_norm(call: Call) -> Value:
    """Divide the last dimensions of each vector by the root of the mean of their squares."""
    shape, epsilon = tuple(call.option("normalized_shape")), call.option("eps")
    epsilon = torch.finfo(torch.float32).eps if epsilon is None else epsilon
    x = call.floating()
    axes = list(range(-len(shape), 0))
    mean = reduce_over(call, "ReduceMean", call.add("Mul", [x, x], "squares"), axes, True)
    mean = call.add("Add", [mean, call.number("eps", epsilon)], "positive")
    x = call.add("Div", [x, call.add("Sqrt", [mean], "root")])
    weight = call.tensor("weight")
    return x if weight is None else call.add("Mul", [x, weight])


def group_norm(call: Call) -> Value:
    """Normalize groups of channels of each image."""
    shape, groups = call.input_shape(), call.option("num_groups")
    size = math.prod(known(s) for s in shape[1:]) // groups
    grouped = reshaped(call, call.floating(), (None, groups, size))
    x = instances(call, grouped, groups, call.option("eps", 1e-5))
    return scaled_channels(call, reshaped(call, x, shape))


def instance_norm(call: Call) -> Value:
    """Normalize each channel of each image, or by stored statistics where they are kept."""
    channels = known(call.input_shape()[1])
    mean, variance = call.tensor("running_mean"), call.tensor("running_var")
    uses_stored = call.module is not None or not call.argument("use_input_stats", True)
    epsilon = call.option("eps", 1e-5)
    if mean is None or variance is None or not uses_stored:
        x = instances(call, call.floating(), channels, epsilon)
        return scaled_channels(call, x)
    ones, zeros = constants(call, channels)
    inputs = [call.tensor("weight") or ones, call.tensor("bias") or zeros, mean, variance]
    x = call.floating()
    return call.add("BatchNormalization", [x, *inputs], epsilon=float(epsilon))


def constants(call: Call, channels: int) -> tuple[str, str]:
    """Add as many ones, and zeros, as there are channels."""
    numbers = (("ones", torch.ones(channels)), ("zeros", torch.zeros(channels)))
    ones, zeros = (call.graph.initializer(f"{call.name}_{name}", n) for name, n in numbers)
    return ones, zeros


def instances(call: Call, x: str, channels: int, epsilon: float) -> str:
    """Normalize each channel of each image."""
    inputs = [x, *constants(call, channels)]
    return call.add("InstanceNormalization", inputs, epsilon=float(epsilon))


def scaled_channels(call: Call, x: str) -> str:
    """Multiply channels with a weight and add a bias, where there are any."""
    spread = (-1, *[1] * (len(call.input_shape()) - 2))
    for op, name in (("Mul", "weight"), ("Add", "bias")):
        parameter = call.tensor(name)
        if parameter is not None:
            x = call.add(op, [x, reshaped(call, parameter, spread)])
    return x


def local_response_norm(call: Call) -> Value:
    """Divide by a power of the mean of squares of the channels around each."""
    size, channels = call.option("size"), known(call.input_shape()[1])
    alpha, beta = call.option("alpha", 1e-4), call.option("beta", 0.75)
    matrix = np.zeros((channels, channels), np.float32)
    for channel in range(channels):
        start = channel - size // 2
        matrix[channel, max(0, start) : start + size] = alpha / size
    x = call.floating()
    squares = reshaped(call, call.add("Mul", [x, x], "squares"), (None, channels, *flat(call)))
    means = call.add("MatMul", [call.graph.initializer(f"{call.name}_around", matrix), squares])
    means = reshaped(call, means, call.shape())
    means = call.add("Add", [means, call.number("k", call.option("k", 1.0))], "positive")
    return call.add("Div", [x, call.add("Pow", [means, call.number("beta", beta)], "power")])


def flat(call: Call) -> list[int]:
    """Return the number of pixels."""
    return [math.prod(known(size) for size in call.input_shape()[2:])]


def normalize(call: Call) -> Value:
    """Divide vectors along a dimension by their norm, which is at least `eps`."""
    order: Any = call.argument("p", 2.0)
    axes, least = as_list(call.argument("dim", 1)), call.argument("eps", 1e-12)
    x = call.floating()
    norms = norm_along(call, x, order, axes, True)
    norms = call.add("Max", [norms, call.number("eps", least)], "positive")
    return call.add("Div", [x, norms])


def cosine_similarity(call: Call) -> Value:
    """Multiply vectors along a dimension, each divided by its norm."""
    axes, least = [call.argument("dim", 1)], call.argument("eps", 1e-8)
    parts = []
    for name in ("x1", "x2"):
        x = call.floating(name)
        norms = norm_along(call, x, 2, axes, True)
        norms = call.add("Max", [norms, call.number("eps", least)], "positive")
        parts.append(call.add("Div", [x, norms], "unit"))
    return reduce_over(call, "ReduceSum", call.add("Mul", parts, "products"), axes, False)
