"""The operators of the normal form: one function for each, whatever a classifier called.

`x.relu_()`, `torch.relu(x)`, `nn.ReLU()(x)` and `aten.relu` are all `F.relu(x)` here. A node in
normal form calls such a function with its tensors by position and its options by keyword; options
that have their default may be missing.
"""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

ARITHMETIC: tuple[Any, ...] = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg),
    *(operator.matmul, operator.floordiv, operator.mod),
)


@dataclass(frozen=True)
class Operator:
    """What the nodes of one operator call.

    Args:
        function: the one that the normal form calls.
        inputs: names of the arguments that are tensors, or a list of them; passed by position.
        options: names of all others; passed by keyword.
        takes_many: whether the first option may be given as several arguments.
    """

    function: Callable[..., Any]
    inputs: tuple[str, ...]
    options: tuple[str, ...] = ()
    takes_many: bool = False

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names."""
        names = (*self.inputs, *self.options)
        if self.takes_many and len(args) > len(self.inputs):
            rest = args[len(self.inputs) :]
            many = rest[0] if isinstance(rest[0], tuple | list) else tuple(rest)
            args = (*args[: len(self.inputs)], many)
        return bound_to(names, args, kwargs)


# What other libraries, or ATen, call an argument.
SYNONYMS = {
    **{"self": "input", "x": "input", "axis": "dim", "axes": "dim", "keepdims": "keepdim"},
    **{"exponent": "other", "ord": "p", "batch1": "mat1", "batch2": "mat2"},
}


def bound_to(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by names, which are also those of its keywords."""
    keywords = {SYNONYMS.get(name, name): value for name, value in kwargs.items()}
    return dict(zip(names, args, strict=False)) | keywords


def described(function: Callable[..., Any], text: str) -> Operator:
    """Return an operator from `inputs; options` as they stand in the function's signature."""
    inputs, _, options = text.partition(";")
    takes_many = "*" in options
    names = tuple(options.replace("*", " ").split())
    return Operator(function, tuple(inputs.split()), names, takes_many)


WINDOW = "input; kernel_size stride padding"
CONVOLUTION = "input weight bias; stride padding dilation groups"
TRANSPOSED = "input weight bias; stride padding output_padding groups dilation"
REDUCTION = "input; dim keepdim dtype"

# By the name that ATen gives to an operator: the function, and its arguments.
DESCRIPTIONS: dict[str, tuple[Any, str]] = {
    # ---- layers, whose weights are constant
    "conv1d": (F.conv1d, CONVOLUTION),
    "conv2d": (F.conv2d, CONVOLUTION),
    "conv3d": (F.conv3d, CONVOLUTION),
    "conv_transpose1d": (F.conv_transpose1d, TRANSPOSED),
    "conv_transpose2d": (F.conv_transpose2d, TRANSPOSED),
    "conv_transpose3d": (F.conv_transpose3d, TRANSPOSED),
    "linear": (F.linear, "input weight bias"),
    "batch_norm": (
        F.batch_norm,
        "input running_mean running_var weight bias; training momentum eps",
    ),
    "layer_norm": (F.layer_norm, "input; normalized_shape weight bias eps"),
    "group_norm": (F.group_norm, "input; num_groups weight bias eps"),
    "instance_norm": (
        F.instance_norm,
        "input; running_mean running_var weight bias use_input_stats momentum eps",
    ),
    "prelu": (F.prelu, "input weight"),
    # ---- activations
    "relu": (F.relu, "input"),
    "relu6": (F.relu6, "input"),
    "hardtanh": (F.hardtanh, "input; min_val max_val"),
    "silu": (F.silu, "input"),
    "gelu": (F.gelu, "input; approximate"),
    "mish": (F.mish, "input"),
    "hardswish": (F.hardswish, "input"),
    "hardsigmoid": (F.hardsigmoid, "input"),
    "sigmoid": (torch.sigmoid, "input"),
    "tanh": (torch.tanh, "input"),
    "leaky_relu": (F.leaky_relu, "input; negative_slope"),
    "elu": (F.elu, "input; alpha"),
    "celu": (F.celu, "input; alpha"),
    "selu": (F.selu, "input"),
    "glu": (F.glu, "input; dim"),
    "softplus": (F.softplus, "input; beta threshold"),
    "softsign": (F.softsign, "input"),
    "tanhshrink": (F.tanhshrink, "input"),
    "hardshrink": (F.hardshrink, "input; lambd"),
    "softshrink": (F.softshrink, "input; lambd"),
    "threshold": (F.threshold, "input; threshold value"),
    "logsigmoid": (F.logsigmoid, "input"),
    "softmax": (F.softmax, "input; dim dtype"),
    "softmin": (F.softmin, "input; dim dtype"),
    "log_softmax": (F.log_softmax, "input; dim dtype"),
    # ---- arithmetic
    "add": (operator.add, "input other; alpha"),
    "sub": (operator.sub, "input other; alpha"),
    "rsub": (torch.rsub, "input other; alpha"),
    "mul": (operator.mul, "input other"),
    "div": (operator.truediv, "input other; rounding_mode"),
    "floor_divide": (operator.floordiv, "input other"),
    "remainder": (operator.mod, "input other"),
    "pow": (operator.pow, "input other"),
    "neg": (operator.neg, "input"),
    "matmul": (operator.matmul, "input other"),
    "einsum": (torch.einsum, "equation operands"),
    "addmm": (torch.addmm, "input mat1 mat2; beta alpha"),
    "baddbmm": (torch.baddbmm, "input mat1 mat2; beta alpha"),
    "addcmul": (torch.addcmul, "input tensor1 tensor2; value"),
    "addcdiv": (torch.addcdiv, "input tensor1 tensor2; value"),
    "lerp": (torch.lerp, "input end weight"),
    "square": (torch.square, "input"),
    "sqrt": (torch.sqrt, "input"),
    "rsqrt": (torch.rsqrt, "input"),
    "reciprocal": (torch.reciprocal, "input"),
    "exp": (torch.exp, "input"),
    "log": (torch.log, "input"),
    "log2": (torch.log2, "input"),
    "log10": (torch.log10, "input"),
    "log1p": (torch.log1p, "input"),
    "expm1": (torch.expm1, "input"),
    "erf": (torch.erf, "input"),
    "sin": (torch.sin, "input"),
    "cos": (torch.cos, "input"),
    "abs": (torch.abs, "input"),
    "sign": (torch.sign, "input"),
    "floor": (torch.floor, "input"),
    "ceil": (torch.ceil, "input"),
    "round": (torch.round, "input"),
    "clamp": (torch.clamp, "input; min max"),
    "maximum": (torch.maximum, "input other"),
    "minimum": (torch.minimum, "input other"),
    "where": (torch.where, "condition input other"),
    "gt": (torch.gt, "input other"),
    "ge": (torch.ge, "input other"),
    "lt": (torch.lt, "input other"),
    "le": (torch.le, "input other"),
    "eq": (torch.eq, "input other"),
    "ne": (torch.ne, "input other"),
    "logical_and": (torch.logical_and, "input other"),
    "logical_or": (torch.logical_or, "input other"),
    "logical_not": (torch.logical_not, "input"),
    "masked_fill": (torch.masked_fill, "input mask value"),
    # ---- pooling and reductions
    "max_pool1d": (F.max_pool1d, f"{WINDOW} dilation ceil_mode"),
    "max_pool2d": (F.max_pool2d, f"{WINDOW} dilation ceil_mode"),
    "max_pool3d": (F.max_pool3d, f"{WINDOW} dilation ceil_mode"),
    "avg_pool1d": (F.avg_pool1d, f"{WINDOW} ceil_mode count_include_pad"),
    "avg_pool2d": (F.avg_pool2d, f"{WINDOW} ceil_mode count_include_pad divisor_override"),
    "avg_pool3d": (F.avg_pool3d, f"{WINDOW} ceil_mode count_include_pad divisor_override"),
    "lp_pool1d": (F.lp_pool1d, "input; norm_type kernel_size stride ceil_mode"),
    "lp_pool2d": (F.lp_pool2d, "input; norm_type kernel_size stride ceil_mode"),
    "adaptive_avg_pool1d": (F.adaptive_avg_pool1d, "input; output_size"),
    "adaptive_avg_pool2d": (F.adaptive_avg_pool2d, "input; output_size"),
    "adaptive_avg_pool3d": (F.adaptive_avg_pool3d, "input; output_size"),
    "adaptive_max_pool1d": (F.adaptive_max_pool1d, "input; output_size"),
    "adaptive_max_pool2d": (F.adaptive_max_pool2d, "input; output_size"),
    "adaptive_max_pool3d": (F.adaptive_max_pool3d, "input; output_size"),
    "mean": (torch.mean, REDUCTION),
    "sum": (torch.sum, REDUCTION),
    "prod": (torch.prod, REDUCTION),
    "amax": (torch.amax, "input; dim keepdim"),
    "amin": (torch.amin, "input; dim keepdim"),
    "max": (torch.max, "input; dim keepdim"),
    "min": (torch.min, "input; dim keepdim"),
    "std": (torch.std, "input; dim unbiased keepdim correction"),
    "var": (torch.var, "input; dim unbiased keepdim correction"),
    "norm": (torch.norm, "input; p dim keepdim dtype"),
    "logsumexp": (torch.logsumexp, "input; dim keepdim"),
    "normalize": (F.normalize, "input; p dim eps"),
    "local_response_norm": (F.local_response_norm, "input; size alpha beta k"),
    "var_mean": (torch.var_mean, "input; dim unbiased keepdim correction"),
    "std_mean": (torch.std_mean, "input; dim unbiased keepdim correction"),
    "rms_norm": (F.rms_norm, "input; normalized_shape weight eps"),
    "cosine_similarity": (F.cosine_similarity, "x1 x2; dim eps"),
    "argmax": (torch.argmax, "input; dim keepdim"),
    "argmin": (torch.argmin, "input; dim keepdim"),
    "sort": (torch.sort, "input; dim descending stable"),
    "cumsum": (torch.cumsum, "input; dim dtype"),
    "topk": (torch.topk, "input; k dim largest sorted"),
    # ---- shapes
    "reshape": (torch.reshape, "input; *shape"),
    "permute": (torch.permute, "input; *dims"),
    "split": (torch.split, "input; split_size_or_sections dim"),
    "unbind": (torch.unbind, "input; dim"),
    "getitem": (operator.getitem, "input index"),
    "cat": (torch.cat, "tensors; dim"),
    "stack": (torch.stack, "tensors; dim"),
    "expand": (torch.broadcast_to, "input; *size"),
    "repeat": (torch.tile, "input; *dims"),
    "repeat_interleave": (torch.repeat_interleave, "input; repeats dim"),
    "flip": (torch.flip, "input; *dims"),
    "roll": (torch.roll, "input; shifts dims"),
    "pad": (F.pad, "input; pad mode value"),
    "interpolate": (
        F.interpolate,
        "input; size scale_factor mode align_corners recompute_scale_factor antialias",
    ),
    "pixel_shuffle": (F.pixel_shuffle, "input; upscale_factor"),
    "pixel_unshuffle": (F.pixel_unshuffle, "input; downscale_factor"),
    "channel_shuffle": (F.channel_shuffle, "input; groups"),
    "im2col": (F.unfold, "input; kernel_size dilation padding stride"),
    "unfold": (torch.Tensor.unfold, "input dimension size step"),
    "index_select": (torch.index_select, "input dim index"),
    "affine_grid": (F.affine_grid, "theta; size align_corners"),
    "grid_sample": (F.grid_sample, "input grid; mode padding_mode align_corners"),
    "scaled_dot_product_attention": (
        F.scaled_dot_product_attention,
        "query key value; attn_mask dropout_p is_causal scale enable_gqa",
    ),
}
OPERATORS = {name: described(*description) for name, description in DESCRIPTIONS.items()}
# By the function that a node in normal form calls; the last two are called by rules only.
SIGNATURES: dict[Any, Operator] = {
    **{called.function: called for called in OPERATORS.values()},
    torch.div: described(torch.div, "input other; rounding_mode"),
    torch.Tensor.to: described(torch.Tensor.to, "input; dtype"),
}

# Other names of the same operators.
ALIASES = {
    **{"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"},
    **{"truediv": "div", "floordiv": "floor_divide", "mod": "remainder", "negative": "neg"},
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "ipow": "pow"},
    **{"bmm": "matmul", "mm": "matmul", "concat": "cat", "concatenate": "cat", "absolute": "abs"},
    **{"clip": "clamp", "special_expit": "sigmoid", "greater": "gt", "less": "lt"},
    **{"split_with_sizes": "split", "special_softmax": "softmax"},
    **{"special_log_softmax": "log_softmax", "linalg_vector_norm": "norm", "expand_as": "expand"},
    **{"_softmax": "softmax", "_log_softmax": "log_softmax", "tile": "repeat"},
    **{"log_sigmoid": "logsigmoid", "bitwise_and": "logical_and", "and": "logical_and"},
    **{"bitwise_or": "logical_or", "or": "logical_or", "bitwise_not": "logical_not"},
    **{"invert": "logical_not", "not": "logical_not", "greater_equal": "ge"},
    **{"less_equal": "le", "not_equal": "ne", "sgn": "sign", "vector_norm": "norm"},
    **{"grid_sampler": "grid_sample", "grid_sampler_2d": "grid_sample"},
    **{"affine_grid_generator": "affine_grid", "conj_physical": "conj"},
}
# In these the normal form has another function, which takes the dimensions that a trial run gave.
RESHAPING = {
    *("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "view_as"),
    *("reshape_as", "_unsafe_view", "_reshape_alias"),
}
PERMUTING = {
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint"),
    *("T", "mT"),
}
SPLITTING = {"split", "chunk", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"}
CASTING = {
    *("to", "float", "double", "half", "bfloat16", "bool", "int", "long", "type", "type_as"),
    *("contiguous", "clone", "detach", "alias", "data", "cpu"),
    *("cuda", "requires_grad_", "lift_fresh_copy", "_to_copy", "positive", "conj", "resolve_conj"),
    *("lift_fresh", "view_of", "identity"),
}
DROPOUTS = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
    *("feature_alpha_dropout", "native_dropout", "stochastic_depth", "drop_path", "drop_block2d"),
}
ASSERTIONS = {
    *("_assert", "_check", "_assert_async", "_assert_scalar", "_assert_tensor_metadata"),
    *("sym_constrain_range", "sym_constrain_range_for_size", "_check_is_size"),
}


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a node in normal form by their names; a layer takes its `input`."""
    called = SIGNATURES.get(node.target, Operator(torch.nn.Module, ("input",)))
    return called.bind(node.args, node.kwargs)


def name_of(target: Any) -> str | None:
    """Return ATen's name of what a node calls: a method, a function or an ATen operator.

    A function of the classifier's own has none, whatever it is called.
    """
    if isinstance(target, str):
        name = target
    elif isinstance(target, torch._ops.OpOverload):
        if target.namespace != "aten":
            return None
        name = target._schema.name.removeprefix("aten::")
    else:
        if not is_of_torch(target):
            return None
        name = "im2col" if target is F.unfold else target.__name__
    if name.endswith("_") and not name.endswith("__") and name not in CASTING:
        name = name.removesuffix("_")
    return ALIASES.get(name, name)


def is_of_torch(function: Any) -> bool:
    """Return True if a function is torch's, torchvision's or of the module `operator`."""
    name = getattr(function, "__name__", None)
    if name is None:
        return False
    module = getattr(function, "__module__", None) or ""
    if module.partition(".")[0] in ("torch", "torchvision", "operator", "_operator"):
        return True
    # Built-in functions of torch do not tell their module.
    return inspect.isbuiltin(function) and any(
        getattr(owner, name, None) is function for owner in (torch, F, torch._C._nn)
    )
