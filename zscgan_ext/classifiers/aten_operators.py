"""ATen's operators as the functions of `torch` and `torch.nn.functional` that they came from.

Every entry of `CALLS` is given `call`, which adds a call of a function or of a tensor's method to a
graph, and the arguments of the operator; it returns what the operator gives.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


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
