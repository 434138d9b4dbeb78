"""Which function writes which operator as ONNX."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import stochastic_depth

from zscgan_ext.classifiers.graph import ADDITIONS, RELU, RELU6
from zscgan_ext.export import onnx_activations as activations
from zscgan_ext.export import onnx_arithmetic as arithmetic
from zscgan_ext.export import onnx_normalization as normalization
from zscgan_ext.export import onnx_pooling as pooling
from zscgan_ext.export import onnx_reductions as reductions
from zscgan_ext.export import onnx_resizing as resizing
from zscgan_ext.export import onnx_shaping as shaping
from zscgan_ext.export.onnx_call import Operator

Table = tuple[tuple[Operator, tuple[Any, ...]], ...]
unary, binary, chain = arithmetic.unary, arithmetic.binary, arithmetic.chain
option_node = activations.option_node

PADDING_MODULES = tuple(
    getattr(nn, f"{mode}Pad{dimensions}d")
    for mode in ("Zero", "Constant", "Reflection", "Replication", "Circular")
    for dimensions in (1, 2, 3)
)

ACTIVATIONS: Table = (
    (activations.rectify(0, float("inf")), RELU),
    (activations.rectify(0, 6), RELU6),
    (activations.hardtanh, (F.hardtanh, nn.Hardtanh)),
    (activations.clamp, (torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_")),
    (activations.clamp_from, (torch.clamp_min, "clamp_min", "clamp_min_")),
    (activations.clamp_to, (torch.clamp_max, "clamp_max", "clamp_max_")),
    (unary("Sigmoid"), (torch.sigmoid, F.sigmoid, nn.Sigmoid, "sigmoid", "sigmoid_")),
    (unary("Tanh"), (torch.tanh, F.tanh, nn.Tanh, "tanh", "tanh_")),
    (unary("HardSigmoid", alpha=1 / 6, beta=0.5), (F.hardsigmoid, nn.Hardsigmoid)),
    (unary("HardSwish"), (F.hardswish, nn.Hardswish)),
    (unary("Mish"), (F.mish, nn.Mish)),
    (unary("Softsign"), (F.softsign, nn.Softsign)),
    (unary("Selu"), (F.selu, torch.selu, nn.SELU)),
    (activations.silu, (F.silu, nn.SiLU)),
    (activations.gelu, (F.gelu, nn.GELU)),
    (activations.random_leaky_relu, (F.rrelu, torch.rrelu, nn.RReLU)),
    (activations.prelu, (F.prelu, torch.prelu, nn.PReLU)),
    (activations.softplus, (F.softplus, nn.Softplus)),
    (activations.log_sigmoid, (F.logsigmoid, nn.LogSigmoid)),
    (activations.tanh_shrink, (F.tanhshrink, nn.Tanhshrink)),
    (activations.shrink(moves=False), (F.hardshrink, nn.Hardshrink)),
    (activations.shrink(moves=True), (F.softshrink, nn.Softshrink)),
    (activations.threshold, (F.threshold, torch.threshold, nn.Threshold)),
    (activations.glu, (F.glu, nn.GLU)),
    (option_node("LeakyRelu", "alpha", "negative_slope", 0.01), (F.leaky_relu, nn.LeakyReLU)),
    (option_node("Elu", "alpha", "alpha", 1.0), (F.elu, nn.ELU)),
    (option_node("Celu", "alpha", "alpha", 1.0), (F.celu, torch.celu, nn.CELU)),
    (activations.softmax, (torch.softmax, F.softmax, nn.Softmax, "softmax")),
    (activations.softmin, (F.softmin, nn.Softmin)),
    (activations.softmax_of_channels, (nn.Softmax2d,)),
    (activations.log_softmax, (torch.log_softmax, F.log_softmax, nn.LogSoftmax, "log_softmax")),
)
ARITHMETIC: Table = (
    (arithmetic.sum_of_two("Add"), ADDITIONS),
    (arithmetic.sum_of_two("Sub"), (torch.sub, torch.subtract, operator.sub, operator.isub)),
    (arithmetic.sum_of_two("Sub"), ("sub", "sub_", "subtract")),
    (arithmetic.sum_of_two("Sub", is_reversed=True), (torch.rsub, "rsub")),
    (binary("Mul"), (torch.mul, torch.multiply, operator.mul, operator.imul, "mul", "mul_")),
    (arithmetic.divide, (torch.div, torch.divide, operator.truediv, operator.itruediv)),
    (arithmetic.divide, (torch.true_divide, "div", "div_", "divide")),
    (arithmetic.floor_divide, (torch.floor_divide, operator.floordiv, "floor_divide")),
    (arithmetic.remainder, (torch.remainder, operator.mod, "remainder")),
    (binary("Pow"), (torch.pow, operator.pow, "pow", "pow_")),
    (binary("Max"), (torch.maximum, "maximum")),
    (binary("Min"), (torch.minimum, "minimum")),
    (binary("MatMul"), (torch.matmul, torch.bmm, torch.mm, operator.matmul)),
    (binary("MatMul"), ("matmul", "bmm", "mm")),
    (arithmetic.add_matrix_product, (torch.addmm, torch.baddbmm, "addmm", "baddbmm")),
    (arithmetic.add_product, (torch.addcmul, "addcmul")),
    (arithmetic.add_quotient, (torch.addcdiv, "addcdiv")),
    (arithmetic.interpolate_linearly, (torch.lerp, "lerp")),
    (arithmetic.einsum, (torch.einsum,)),
    (arithmetic.attention, (F.scaled_dot_product_attention,)),
    (unary("Neg"), (torch.neg, torch.negative, operator.neg, "neg")),
    (unary("Abs"), (torch.abs, torch.absolute, abs, operator.abs, "abs", "abs_")),
    (unary("Sign"), (torch.sign, torch.sgn, "sign")),
    (unary("Exp"), (torch.exp, "exp")),
    (unary("Log"), (torch.log, "log")),
    (unary("Sqrt"), (torch.sqrt, "sqrt")),
    (chain("Sqrt", "Reciprocal"), (torch.rsqrt, "rsqrt")),
    (unary("Reciprocal"), (torch.reciprocal, "reciprocal")),
    (unary("Erf"), (torch.erf, torch.special.erf, "erf")),
    (unary("Sin"), (torch.sin, "sin")),
    (unary("Cos"), (torch.cos, "cos")),
    (unary("Floor"), (torch.floor, "floor")),
    (unary("Ceil"), (torch.ceil, "ceil")),
    (unary("Round"), (torch.round, "round")),
    (arithmetic.square, (torch.square, "square")),
    (arithmetic.exponential_minus_one, (torch.expm1, "expm1")),
    (arithmetic.logarithm_of_one_more, (torch.log1p, "log1p")),
    (arithmetic.logarithm(2), (torch.log2, "log2")),
    (arithmetic.logarithm(10), (torch.log10, "log10")),
    (binary("Greater"), (torch.gt, torch.greater, operator.gt, "gt")),
    (binary("GreaterOrEqual"), (torch.ge, torch.greater_equal, operator.ge, "ge")),
    (binary("Less"), (torch.lt, torch.less, operator.lt, "lt")),
    (binary("LessOrEqual"), (torch.le, torch.less_equal, operator.le, "le")),
    (binary("Equal"), (torch.eq, operator.eq, "eq")),
    (arithmetic.unequal, (torch.ne, torch.not_equal, operator.ne, "ne")),
    (arithmetic.logical("And"), (torch.logical_and, torch.bitwise_and, operator.and_)),
    (arithmetic.logical("Or"), (torch.logical_or, torch.bitwise_or, operator.or_)),
    (arithmetic.logical("Not"), (torch.logical_not, torch.bitwise_not, operator.invert)),
    (arithmetic.logical("Not"), (operator.not_, "logical_not")),
    (arithmetic.where, (torch.where,)),
    (arithmetic.masked_fill, (torch.masked_fill, "masked_fill", "masked_fill_")),
    (arithmetic.convert, ("to", "type", "type_as", "float", "double", "half", "bfloat16")),
    (arithmetic.convert, ("bool", "int", "long")),
)
NORMALIZATION: Table = (
    (normalization.layer_norm, (F.layer_norm, torch.layer_norm, nn.LayerNorm)),
    (normalization.group_norm, (F.group_norm, torch.group_norm, nn.GroupNorm)),
    (
        normalization.instance_norm,
        (F.instance_norm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    ),
    (normalization.rms_norm, (F.rms_norm, torch.rms_norm, nn.RMSNorm)),
    (normalization.local_response_norm, (F.local_response_norm, nn.LocalResponseNorm)),
    (normalization.normalize, (F.normalize,)),
    (
        normalization.cosine_similarity,
        (F.cosine_similarity, torch.cosine_similarity, nn.CosineSimilarity),
    ),
)
POOLING: Table = (
    (pooling.average_pool(1), (F.avg_pool1d, nn.AvgPool1d)),
    (pooling.average_pool(2), (F.avg_pool2d, nn.AvgPool2d)),
    (pooling.average_pool(3), (F.avg_pool3d, nn.AvgPool3d)),
    (pooling.power_average_pool(1), (F.lp_pool1d, nn.LPPool1d)),
    (pooling.power_average_pool(2), (F.lp_pool2d, nn.LPPool2d)),
    (pooling.maximum_pool(1), (F.max_pool1d, torch.max_pool1d, nn.MaxPool1d)),
    (pooling.maximum_pool(2), (F.max_pool2d, torch.max_pool2d, nn.MaxPool2d)),
    (pooling.maximum_pool(3), (F.max_pool3d, torch.max_pool3d, nn.MaxPool3d)),
    (pooling.maximum_pool(1), (F.max_pool1d_with_indices,)),
    (pooling.maximum_pool(2), (F.max_pool2d_with_indices,)),
    (pooling.adaptive_average_pool(1), (F.adaptive_avg_pool1d, nn.AdaptiveAvgPool1d)),
    (pooling.adaptive_average_pool(2), (F.adaptive_avg_pool2d, nn.AdaptiveAvgPool2d)),
    (pooling.adaptive_average_pool(3), (F.adaptive_avg_pool3d, nn.AdaptiveAvgPool3d)),
    (pooling.adaptive_maximum_pool(1), (F.adaptive_max_pool1d, nn.AdaptiveMaxPool1d)),
    (pooling.adaptive_maximum_pool(2), (F.adaptive_max_pool2d, nn.AdaptiveMaxPool2d)),
    (pooling.adaptive_maximum_pool(3), (F.adaptive_max_pool3d, nn.AdaptiveMaxPool3d)),
    (pooling.adaptive_maximum_pool(1), (F.adaptive_max_pool1d_with_indices,)),
    (pooling.adaptive_maximum_pool(2), (F.adaptive_max_pool2d_with_indices,)),
)
REDUCTIONS: Table = (
    (reductions.mean, (torch.mean, "mean")),
    (reductions.reduce("ReduceSum"), (torch.sum, "sum")),
    (reductions.reduce("ReduceProd"), (torch.prod, "prod")),
    (reductions.reduce("ReduceLogSumExp"), (torch.logsumexp, "logsumexp")),
    (reductions.extremes("ReduceMax"), (torch.amax, "amax")),
    (reductions.extremes("ReduceMin"), (torch.amin, "amin")),
    (reductions.extremes_or_larger("ReduceMax", "Max"), (torch.max, "max")),
    (reductions.extremes_or_larger("ReduceMin", "Min"), (torch.min, "min")),
    (reductions.position("ArgMax"), (torch.argmax, "argmax")),
    (reductions.position("ArgMin"), (torch.argmin, "argmin")),
    (reductions.variance, (torch.var, "var")),
    (reductions.standard_deviation, (torch.std, "std")),
    (reductions.variance_with_mean, (torch.var_mean,)),
    (reductions.standard_deviation_with_mean, (torch.std_mean,)),
    (reductions.vector_norm, (torch.linalg.vector_norm, torch.norm, "norm")),
    (reductions.largest_values, (torch.topk, "topk")),
    (reductions.sort, (torch.sort, "sort")),
    (reductions.cumulative_sum, (torch.cumsum, "cumsum")),
)
SHAPING: Table = (
    (
        shaping.reshape,
        (
            *(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze),
            *(nn.Flatten, nn.Unflatten, torch.ravel, "flatten", "unflatten", "view", "reshape"),
            *("squeeze", "unsqueeze", "squeeze_", "unsqueeze_", "view_as", "reshape_as", "ravel"),
        ),
    ),
    (shaping.transpose, (torch.transpose, torch.swapaxes, torch.swapdims, "transpose")),
    (shaping.transpose, ("swapaxes", "swapdims", "transpose_")),
    (shaping.transpose_last, (torch.t, "t")),
    (shaping.permute, (torch.permute, "permute")),
    (shaping.movedim, (torch.movedim, torch.moveaxis, "movedim", "moveaxis")),
    (shaping.channel_shuffle, (F.channel_shuffle, torch.channel_shuffle, nn.ChannelShuffle)),
    (shaping.pixel_shuffle, (F.pixel_shuffle, torch.pixel_shuffle, nn.PixelShuffle)),
    (shaping.pixel_unshuffle, (F.pixel_unshuffle, torch.pixel_unshuffle, nn.PixelUnshuffle)),
    (shaping.split, (torch.split, torch.chunk, torch.tensor_split, "split", "chunk")),
    (shaping.split, ("tensor_split",)),
    (shaping.unbind, (torch.unbind, "unbind")),
    (shaping.pick, (operator.getitem,)),
    (shaping.attribute, (getattr,)),
    (shaping.narrow, (torch.narrow, "narrow")),
    (shaping.select, (torch.select, "select")),
    (shaping.index_select, (torch.index_select, "index_select")),
    (shaping.concatenate, (torch.cat, torch.concat, torch.concatenate)),
    (shaping.stack, (torch.stack,)),
    (shaping.flip, (torch.flip, "flip")),
    (shaping.flip_dimension(1), (torch.fliplr, "fliplr")),
    (shaping.roll, (torch.roll, "roll")),
    (shaping.expand, ("expand", "expand_as", torch.broadcast_to, "broadcast_to")),
    (shaping.repeat, (torch.tile, "repeat", "tile")),
    (shaping.repeat_elements, (torch.repeat_interleave, "repeat_interleave")),
    (shaping.pad, (F.pad, *PADDING_MODULES)),
    (shaping.unfold, (F.unfold, nn.Unfold)),
    (shaping.unfold_dimension, ("unfold",)),
    (resizing.resize, (F.interpolate, nn.Upsample, nn.UpsamplingNearest2d)),
    (resizing.resize, (nn.UpsamplingBilinear2d,)),
    (resizing.grid_sample, (F.grid_sample, torch.grid_sampler)),
    (resizing.affine_grid, (F.affine_grid,)),
    (
        shaping.same,
        (
            *(nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, stochastic_depth),
            *("contiguous", "detach", "clone"),
        ),
    ),
)
OPERATORS: dict[Any, Operator] = {
    kind: written
    for table in (ACTIVATIONS, ARITHMETIC, NORMALIZATION, POOLING, REDUCTIONS, SHAPING)
    for written, kinds in table
    for kind in kinds
}
