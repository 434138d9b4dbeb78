"""Which function writes which operator as ONNX."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zscgan_ext.classifiers.normal_form.functional_layers import InstanceNorm
from zscgan_ext.export.onnx import (
    activations,
    arithmetic,
    indexing,
    normalization,
    pooling,
    reductions,
    resizing,
    shaping,
)
from zscgan_ext.export.onnx.call import Operator

Table = tuple[tuple[Operator, Any], ...]
unary, binary, chain = arithmetic.unary, arithmetic.binary, arithmetic.chain
option_node = activations.option_node

LAYERS: Table = (
    (activations.prelu, nn.PReLU),
    (normalization.layer_norm, nn.LayerNorm),
    (normalization.group_norm, nn.GroupNorm),
    (normalization.instance_norm, InstanceNorm),
    (normalization.instance_norm, nn.InstanceNorm1d),
    (normalization.instance_norm, nn.InstanceNorm2d),
    (normalization.instance_norm, nn.InstanceNorm3d),
)
ACTIVATIONS: Table = (
    (activations.rectify(0, float("inf")), F.relu),
    (activations.rectify(0, 6), F.relu6),
    (activations.hardtanh, F.hardtanh),
    (activations.clamp, torch.clamp),
    (unary("Sigmoid"), torch.sigmoid),
    (unary("Tanh"), torch.tanh),
    (unary("HardSigmoid", alpha=1 / 6, beta=0.5), F.hardsigmoid),
    (unary("HardSwish"), F.hardswish),
    (unary("Mish"), F.mish),
    (unary("Softsign"), F.softsign),
    (unary("Selu"), F.selu),
    (activations.silu, F.silu),
    (activations.gelu, F.gelu),
    (activations.prelu, F.prelu),
    (activations.softplus, F.softplus),
    (activations.log_sigmoid, F.logsigmoid),
    (activations.tanh_shrink, F.tanhshrink),
    (activations.shrink(moves=False), F.hardshrink),
    (activations.shrink(moves=True), F.softshrink),
    (activations.threshold, F.threshold),
    (activations.glu, F.glu),
    (option_node("LeakyRelu", "alpha", "negative_slope", 0.01), F.leaky_relu),
    (option_node("Elu", "alpha", "alpha", 1.0), F.elu),
    (option_node("Celu", "alpha", "alpha", 1.0), F.celu),
    (activations.softmax, F.softmax),
    (activations.softmin, F.softmin),
    (activations.log_softmax, F.log_softmax),
)
ARITHMETIC: Table = (
    (binary("Add"), operator.add),
    (binary("Sub"), operator.sub),
    (binary("Mul"), operator.mul),
    (arithmetic.divide, operator.truediv),
    (arithmetic.divide, torch.div),
    (arithmetic.floor_divide, operator.floordiv),
    (arithmetic.remainder, operator.mod),
    (binary("Pow"), operator.pow),
    (binary("Max"), torch.maximum),
    (binary("Min"), torch.minimum),
    (binary("MatMul"), operator.matmul),
    (arithmetic.add_matrix_product, torch.addmm),
    (arithmetic.add_matrix_product, torch.baddbmm),
    (arithmetic.add_product, torch.addcmul),
    (arithmetic.add_quotient, torch.addcdiv),
    (arithmetic.interpolate_linearly, torch.lerp),
    (arithmetic.einsum, torch.einsum),
    (arithmetic.attention, F.scaled_dot_product_attention),
    (unary("Neg"), operator.neg),
    (unary("Abs"), torch.abs),
    (unary("Sign"), torch.sign),
    (unary("Exp"), torch.exp),
    (unary("Log"), torch.log),
    (unary("Sqrt"), torch.sqrt),
    (chain("Sqrt", "Reciprocal"), torch.rsqrt),
    (unary("Reciprocal"), torch.reciprocal),
    (unary("Erf"), torch.erf),
    (unary("Sin"), torch.sin),
    (unary("Cos"), torch.cos),
    (unary("Floor"), torch.floor),
    (unary("Ceil"), torch.ceil),
    (unary("Round"), torch.round),
    (arithmetic.exponential_minus_one, torch.expm1),
    (arithmetic.logarithm_of_one_more, torch.log1p),
    (arithmetic.logarithm(2), torch.log2),
    (arithmetic.logarithm(10), torch.log10),
    (binary("Greater"), torch.gt),
    (binary("GreaterOrEqual"), torch.ge),
    (binary("Less"), torch.lt),
    (binary("LessOrEqual"), torch.le),
    (binary("Equal"), torch.eq),
    (arithmetic.unequal, torch.ne),
    (arithmetic.logical("And"), torch.logical_and),
    (arithmetic.logical("Or"), torch.logical_or),
    (arithmetic.logical("Not"), torch.logical_not),
    (arithmetic.where, torch.where),
    (arithmetic.masked_fill, torch.masked_fill),
    (arithmetic.convert, torch.Tensor.to),
)
NORMALIZATION: Table = (
    (normalization.rms_norm, F.rms_norm),
    (normalization.local_response_norm, F.local_response_norm),
    (normalization.normalize, F.normalize),
    (normalization.cosine_similarity, F.cosine_similarity),
)
POOLING: Table = (
    (pooling.average_pool(1), F.avg_pool1d),
    (pooling.average_pool(2), F.avg_pool2d),
    (pooling.average_pool(3), F.avg_pool3d),
    (pooling.power_average_pool(1), F.lp_pool1d),
    (pooling.power_average_pool(2), F.lp_pool2d),
    (pooling.maximum_pool(1), F.max_pool1d),
    (pooling.maximum_pool(2), F.max_pool2d),
    (pooling.maximum_pool(3), F.max_pool3d),
    (pooling.adaptive_average_pool(1), F.adaptive_avg_pool1d),
    (pooling.adaptive_average_pool(2), F.adaptive_avg_pool2d),
    (pooling.adaptive_average_pool(3), F.adaptive_avg_pool3d),
    (pooling.adaptive_maximum_pool(1), F.adaptive_max_pool1d),
    (pooling.adaptive_maximum_pool(2), F.adaptive_max_pool2d),
    (pooling.adaptive_maximum_pool(3), F.adaptive_max_pool3d),
)
REDUCTIONS: Table = (
    (reductions.mean, torch.mean),
    (reductions.reduce("ReduceSum"), torch.sum),
    (reductions.reduce("ReduceProd"), torch.prod),
    (reductions.reduce("ReduceLogSumExp"), torch.logsumexp),
    (reductions.extremes("ReduceMax"), torch.amax),
    (reductions.extremes("ReduceMin"), torch.amin),
    (reductions.position("ArgMax"), torch.argmax),
    (reductions.position("ArgMin"), torch.argmin),
    (reductions.variance, torch.var),
    (reductions.standard_deviation, torch.std),
    (reductions.variance_with_mean, torch.var_mean),
    (reductions.standard_deviation_with_mean, torch.std_mean),
    (reductions.vector_norm, torch.norm),
    (reductions.largest_values, torch.topk),
    (reductions.sort, torch.sort),
    (reductions.cumulative_sum, torch.cumsum),
)
SHAPING: Table = (
    (shaping.reshape, torch.reshape),
    (shaping.permute, torch.permute),
    (shaping.channel_shuffle, F.channel_shuffle),
    (shaping.pixel_shuffle, F.pixel_shuffle),
    (shaping.pixel_unshuffle, F.pixel_unshuffle),
    (indexing.split, torch.split),
    (indexing.unbind, torch.unbind),
    (indexing.pick, operator.getitem),
    (indexing.index_select, torch.index_select),
    (shaping.concatenate, torch.cat),
    (shaping.stack, torch.stack),
    (shaping.flip, torch.flip),
    (shaping.roll, torch.roll),
    (shaping.expand, torch.broadcast_to),
    (shaping.repeat, torch.tile),
    (shaping.repeat_elements, torch.repeat_interleave),
    (shaping.pad, F.pad),
    (shaping.unfold, F.unfold),
    (shaping.unfold_dimension, torch.Tensor.unfold),
    (resizing.resize, F.interpolate),
    (resizing.grid_sample, F.grid_sample),
    (resizing.affine_grid, F.affine_grid),
)
OPERATORS: dict[Any, Operator] = {
    kind: written
    for table in (LAYERS, ACTIVATIONS, ARITHMETIC, NORMALIZATION, POOLING, REDUCTIONS, SHAPING)
    for written, kind in table
}
