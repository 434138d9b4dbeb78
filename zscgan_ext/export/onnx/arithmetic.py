"""Arithmetic, comparisons and products of tensors as ONNX nodes."""

import math
from typing import Any

import torch
from onnx import TensorProto

from zscgan_ext.export.onnx.call import ONNX_TYPES, Call, Operator
from zscgan_ext.export.onnx.graph import Value


def unary(op: str, **attributes: Any) -> Operator:
    """Return an operator that is one ONNX node of one input."""
    return lambda call: call.add(op, [call.floating()], **attributes)


def chain(*ops: str) -> Operator:
    """Return an operator that is several ONNX nodes of one input, one after the other."""

    def add(call: Call) -> Value:
        x = call.floating()
        for op in ops:
            x = call.add(op, [x])
        return x

    return add


def binary(op: str) -> Operator:
    """Return an operator that is one ONNX node of two inputs."""
    return lambda call: call.add(op, [call.floating(), call.floating("other")])


def divide(call: Call) -> Value:
    """Divide, and round if asked to."""
    quotient = call.add("Div", [call.floating(), call.floating("other")])
    rounding = call.argument("rounding_mode")
    if rounding is None:
        return quotient
    return call.add("Floor", [quotient]) if rounding == "floor" else truncate(call, quotient)


def floor_divide(call: Call) -> Value:
    """Divide and round down."""
    return call.add(
        "Floor", [call.add("Div", [call.floating(), call.floating("other")], "quotient")]
    )


def truncate(call: Call, x: str) -> str:
    """Round towards zero."""
    magnitude = call.add("Floor", [call.add("Abs", [x], "magnitude")], "whole")
    return call.add("Mul", [call.add("Sign", [x], "sign"), magnitude])


def exponential_minus_one(call: Call) -> Value:
    """Subtract one from the exponential."""
    return call.add("Sub", [call.add("Exp", [call.floating()], "power"), call.number("one", 1)])


def logarithm_of_one_more(call: Call) -> Value:
    """Take the logarithm of one more."""
    return call.add("Log", [call.add("Add", [call.floating(), call.number("one", 1)], "sum")])


def logarithm(base: float) -> Operator:
    """Return an operator that takes the logarithm to a base."""

    def add(call: Call) -> Value:
        natural = call.add("Log", [call.floating()], "natural")
        return call.add("Mul", [natural, call.number("factor", 1 / math.log(base))])

    return add


def remainder(call: Call) -> Value:
    """Take the remainder, of the sign of the divisor."""
    first, second = call.floating(), call.floating("other")
    whole = call.add("Floor", [call.add("Div", [first, second], "quotient")], "whole")
    return call.add("Sub", [first, call.add("Mul", [whole, second], "multiple")])


def multiply_and_add(call: Call, op: str) -> Value:
    """Add a product or quotient of the second and third operand, times a factor."""
    operands = [call.as_floating(call.raw(name)) for name in ("tensor1", "tensor2")]
    product = call.add(op, operands, "product")
    value = call.argument("value", 1)
    if value != 1:
        product = call.add("Mul", [product, call.number("value", value)], "scaled")
    return call.add("Add", [call.floating(), product])


def add_product(call: Call) -> Value:
    """Add a product of tensors."""
    return multiply_and_add(call, "Mul")


def add_quotient(call: Call) -> Value:
    """Add a quotient of tensors."""
    return multiply_and_add(call, "Div")


def add_matrix_product(call: Call) -> Value:
    """Add a product of matrices, both times factors."""
    added = call.floating()
    first, second = call.as_floating(call.raw("mat1")), call.as_floating(call.raw("mat2"))
    product = call.add("MatMul", [first, second], "product")
    for name in ("beta", "alpha"):
        factor = call.argument(name, 1)
        if factor != 1:
            number = call.number(name, factor)
            if name == "beta":
                added = call.add("Mul", [added, number], "added")
            else:
                product = call.add("Mul", [product, number], "scaled")
    return call.add("Add", [added, product])


def interpolate_linearly(call: Call) -> Value:
    """Go some part of the way from one tensor to another (`lerp`)."""
    start, end = call.floating(), call.as_floating(call.raw("end"))
    way = call.add("Sub", [end, start], "way")
    weight = call.as_floating(call.raw("weight"))
    return call.add("Add", [start, call.add("Mul", [way, weight], "part")])


def einsum(call: Call) -> Value:
    """Sum products over the dimensions that an equation names."""
    equation, *operands = call.node.args
    names = [call.as_floating(operand) for operand in operands]
    return call.add("Einsum", names, equation=str(equation).replace(" ", ""))


def attention(call: Call) -> Value:
    """Average values by the softmax of products of queries and keys."""
    query, key, value = (call.as_floating(call.raw(name)) for name in ("query", "key", "value"))
    options = [call.argument("dropout_p", 0.0), call.argument("is_causal", False)]
    if any(options) or call.argument("enable_gqa", False):
        raise call.unsupported("has dropout, a causal mask or groups of queries")
    shape = call.shape(call.raw("query"))
    order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    scale = call.argument("scale") or int(shape[-1] or 1) ** -0.5
    query = call.add("Mul", [query, call.number("scale", scale)], "queries")
    key = call.add("Transpose", [key], "keys", perm=order)
    scores = call.add("MatMul", [query, key], "scores")
    mask = call.raw("attn_mask")
    if mask is not None and call.dtype(mask) is torch.bool:
        lowest = call.number("lowest", -math.inf)
        scores = call.add("Where", [truth(call, mask), scores, lowest], "masked")
    elif mask is not None:
        scores = call.add("Add", [scores, call.as_floating(mask)], "masked")
    return call.add("MatMul", [call.add("Softmax", [scores], "weights", axis=-1), value])


def truth(call: Call, raw: Any) -> str:
    """Return a tensor or a number as truth values."""
    if not call.is_tensor(raw) or call.dtype(raw) is not torch.bool:
        return call.add("Cast", [call.as_floating(raw)], "truth", to=TensorProto.BOOL)
    return call.graph.floating(call.resolved(raw))


def logical(op: str) -> Operator:
    """Return an operator on truth values."""

    def add(call: Call) -> Value:
        names = ("input", "other")[: 1 if op == "Not" else 2]
        return call.add(op, [truth(call, call.raw(name)) for name in names])

    return add


def unequal(call: Call) -> Value:
    """Return where tensors differ."""
    return call.add("Not", [call.add("Equal", [call.floating(), call.floating("other")], "equal")])


def where(call: Call) -> Value:
    """Take elements of one tensor where a condition holds, else of another."""
    others = [call.as_floating(call.raw(name)) for name in ("input", "other")]
    return call.add("Where", [truth(call, call.raw("condition")), *others])


def masked_fill(call: Call) -> Value:
    """Put a number where a mask holds."""
    value = call.as_floating(call.raw("value"))
    return call.add("Where", [truth(call, call.raw("mask")), value, call.floating()])


def convert(call: Call) -> Value:
    """Give a tensor another type, as it did in a trial run."""
    before, after = call.dtype(call.raw("input")), call.dtype()
    if before is after:
        return call.input()
    if after not in ONNX_TYPES:
        raise call.unsupported(f"computes in {str(after).removeprefix('torch.')}")
    return call.add("Cast", [call.graph.floating(call.input())], to=ONNX_TYPES[after])
