"""ATen's operators whose arguments are not those of the function that they came from.

Every entry of `CALLS` is given `call`, which adds a call of a function to a graph, and the
arguments of the operator; it returns what the operator gives.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def convolution(call: Any, x: Any, weight: Any, bias: Any, *options: Any) -> Any:
    """Call the convolution that ATen's general one is."""
    stride, padding, dilation, transposed, output_padding, groups = options
    if transposed:
        rest = (stride, padding, output_padding, groups, dilation)
        transposing = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        return call(transposing[len(stride) - 1], x, weight, bias, *rest)
    function = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
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


def softmax(call: Any, x: Any, dim: int, *_: Any) -> Any:
    """Call softmax; its dtype is that of x."""
    return call(torch.softmax, x, dim)


def elu(call: Any, x: Any, alpha: float = 1.0, scale: float = 1.0, inside: float = 1.0) -> Any:
    """Call ELU, or CELU where the input is divided by alpha; SELU is a scaled ELU."""
    function = F.celu if inside != 1 and math.isclose(inside, 1 / alpha) else F.elu
    if function is F.elu and inside != 1:
        return call(torch.ops.aten.elu.default, x, alpha, scale, inside)
    result = call(function, x, alpha)
    return result if scale == 1 else call(operator.mul, result, scale)


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


def instance_norm(call: Any, x: Any, *options: Any) -> Any:
    """Call instance norm, whose arguments have another order."""
    weight, bias, mean, variance, of_input, momentum, eps, *_ = options
    return call(F.instance_norm, x, mean, variance, weight, bias, of_input, momentum, eps)


def logarithmic(call: Any, x: Any, dim: int, *_: Any) -> Any:
    """Call the logarithm of softmax; its dtype is that of x."""
    return call(F.log_softmax, x, dim)


CALLS: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm_of_several,
    "instance_norm": instance_norm,
    "elu": elu,
    "_softmax": softmax,
    "_log_softmax": logarithmic,
    "adaptive_max_pool1d": maxima(F.adaptive_max_pool1d),
    "adaptive_max_pool2d": maxima(F.adaptive_max_pool2d),
    "max_pool2d_with_indices": maxima(F.max_pool2d),
    "constant_pad_nd": pad_with_constant,
    "upsample_nearest1d": resize("nearest"),
    "upsample_nearest2d": resize("nearest"),
    "upsample_linear1d": resize("linear"),
    "upsample_bilinear2d": resize("bilinear"),
    "upsample_bicubic2d": resize("bicubic"),
}
